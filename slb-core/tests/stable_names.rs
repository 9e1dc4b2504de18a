//! Names that metrics, JSON and configurations have, which dashboards and scripts rely on.

use slb_core::hash::Distribution;
use slb_core::health::Condition;
use slb_core::nat::ConnectionState;
use slb_core::spec::{BackendState, Protocol};

#[test]
fn states_of_connections_have_stable_names() {
    let names = ConnectionState::ALL.map(ConnectionState::name);
    assert_eq!(
        names,
        [
            "syn_sent",
            "syn_received",
            "established",
            "fin_wait_inward",
            "fin_wait_outward",
            "time_wait",
            "closed",
        ]
    );
}

#[test]
fn states_and_conditions_of_backends_have_stable_names() {
    let states = [BackendState::Up, BackendState::Draining, BackendState::Down];
    assert_eq!(states.map(BackendState::name), ["up", "draining", "down"]);
    let conditions = [Condition::Healthy, Condition::Unhealthy];
    assert_eq!(conditions.map(Condition::name), ["healthy", "unhealthy"]);
}

#[test]
fn protocols_and_distributions_have_stable_names() {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::All];
    assert_eq!(protocols.map(Protocol::name), ["tcp", "udp", "icmp", "all"]);
    let distributions = [
        Distribution::FiveTuple,
        Distribution::SourceIp,
        Distribution::SourceIpProtocol,
    ];
    assert_eq!(
        distributions.map(Distribution::name),
        ["five-tuple", "source-ip", "source-ip-protocol"]
    );
}
