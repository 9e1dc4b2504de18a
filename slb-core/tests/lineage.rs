//! A snapshot takes the place of one that it follows, and of no other: flows stay where they are.

use crate::common;

use std::sync::Arc;

use common::*;
use slb_core::nat::NatOptions;
use slb_core::snapshot::{InstallError, RoleError, Snapshot};
use slb_core::spec::{BackendState, FrontendPort, ProxyPorts};
use slb_core::{Host, Instant, Key, Mux, PortId, Proxy};

const KEY: Key = Key::new([1, 2]);
const NOW: Instant = Instant::from_secs(1000);

fn snapshot(setup: &Setup, previous: Option<&Snapshot<'_>>) -> Arc<Snapshot<'static>> {
    Arc::new(setup.after(previous))
}

/// The same configuration for a proxy.
fn of_proxy(setup: &Setup) -> Arc<Snapshot<'static>> {
    let frontends = [FrontendPort {
        port: PortId(0),
        address: None,
    }];
    let ports = ProxyPorts {
        frontends: &frontends,
        backend: PortId(1),
        ..ProxyPorts::default()
    };
    setup.with_spec(|spec| {
        let spec = slb_core::spec::Spec {
            proxy: Some(ports),
            ..spec.clone()
        };
        Arc::new(Snapshot::new(&spec, None).expect("good"))
    })
}

#[test]
fn a_snapshot_without_its_previous_is_refused_and_no_flow_moves() {
    let mut setup = Setup::new(10);
    let packets: Vec<_> = (0..30).map(|port| tcp(CLIENT, port, "S")).collect();
    let mut mux = Mux::with_capacity(snapshot(&setup, None), 1000, KEY).expect("a mux");
    let before = backends_of(&mut mux, NOW, &packets);

    // Even where nothing changed: what works by chance fails with the first backend that goes.
    let same = snapshot(&setup, None);
    let rejected = mux.install(same.clone()).expect_err("another lineage");
    assert_eq!(rejected.error, InstallError::OtherLineage);
    assert!(rejected.to_string().contains("as `previous`"), "{rejected}");
    assert!(Arc::ptr_eq(&rejected.snapshot, &same), "it comes back");

    setup.backends.remove(0);
    let other = snapshot(&setup, None);
    let rejected = mux.install(other).expect_err("another lineage");
    assert_eq!(rejected.error, InstallError::OtherLineage);
    assert_eq!(backends_of(&mut mux, NOW, &packets), before);

    let next = snapshot(&setup, Some(mux.snapshot()));
    mux.install(next).expect("it follows");
    let after = backends_of(&mut mux, NOW, &packets);
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || *before == 1, "{before} {after}");
    }
}

#[test]
fn lineages_that_part_do_not_meet_again() {
    let mut setup = Setup::new(10);
    let first = snapshot(&setup, None);
    let mut mux = Mux::with_capacity(first.clone(), 1000, KEY).expect("a mux");
    let gone = setup.backends.remove(3);
    let left = snapshot(&setup, Some(&first));
    // On the other side the slot stays with its owner, and then goes to another.
    setup.backends.insert(3, gone);
    let right = snapshot(&setup, Some(&first));
    assert!(left.follows(&first) && right.follows(&first));
    mux.install(left.clone()).expect("it follows");
    let rejected = mux.install(right).expect_err("it lives there still");
    assert_eq!(rejected.error, InstallError::OtherLineage);
    assert_eq!(
        mux.install(first)
            .expect_err("so it does in the first")
            .error,
        InstallError::OtherLineage
    );
    // One that a worker never had may be left out.
    setup.backends.remove(5);
    let second = snapshot(&setup, Some(&left));
    setup.set_state(1, BackendState::Draining);
    let third = snapshot(&setup, Some(&second));
    mux.install(third.clone())
        .expect("it follows by way of the second");
    // A role keeps what it has, and goes back where only health changed.
    mux.install(third.clone()).expect("its own");
    mux.install(second).expect("the same backends");
    mux.install(third).expect("it follows");
}

#[test]
fn a_slot_used_often_is_told_from_a_fresh_one() {
    let mut setup = Setup::new(3);
    let mut mux = Mux::with_capacity(snapshot(&setup, None), 1000, KEY).expect("a mux");
    let all = setup.backends.clone();
    for _ in 0..20 {
        setup.backends.truncate(2);
        let next = snapshot(&setup, Some(mux.snapshot()));
        mux.install(next).expect("it follows");
        setup.backends.clone_from(&all);
        let next = snapshot(&setup, Some(mux.snapshot()));
        mux.install(next).expect("it follows");
    }
    let fresh = snapshot(&setup, None);
    assert_eq!(
        mux.install(fresh).expect_err("another lineage").error,
        InstallError::OtherLineage
    );
}

#[test]
fn no_role_is_made_with_or_given_the_snapshot_of_another() {
    let setup = Setup::new(2);
    let (fabric, proxy) = (snapshot(&setup, None), of_proxy(&setup));
    assert!(proxy.is_for_proxy() && !fabric.is_for_proxy());
    let wrong = Some(RoleError::OtherRole);
    assert_eq!(Mux::with_capacity(proxy.clone(), 10, KEY).err(), wrong);
    assert_eq!(Mux::stateless(proxy.clone(), KEY).err(), wrong);
    assert_eq!(Host::with_capacity(proxy.clone(), 10, KEY).err(), wrong);
    assert_eq!(Proxy::with_capacity(fabric.clone(), 10, KEY).err(), wrong);
    let tables = slb_core::nat::NatTables::build(&fabric, 1, KEY, &mut slb_core::mem::Boxes);
    let made = Proxy::new(
        fabric.clone(),
        tables.expect("boxes"),
        NatOptions::default(),
    );
    assert_eq!(made.err(), wrong);

    let mut mux = Mux::with_capacity(fabric.clone(), 10, KEY).expect("a mux");
    let mut host = Host::with_capacity(fabric.clone(), 10, KEY).expect("a host");
    let mut of_proxy = Proxy::with_capacity(proxy.clone(), 10, KEY).expect("a proxy");
    let wrong = InstallError::OtherRole;
    assert_eq!(
        mux.install(proxy.clone()).expect_err("a proxy's").error,
        wrong
    );
    assert_eq!(host.install(proxy).expect_err("a proxy's").error, wrong);
    assert_eq!(of_proxy.install(fabric).expect_err("a mux's").error, wrong);
}

#[test]
fn time_passes_with_an_empty_burst() {
    let setup = Setup::new(10);
    let mut mux = Mux::with_capacity(snapshot(&setup, None), 1000, KEY).expect("a mux");
    let packets: Vec<_> = (0..100).map(|port| tcp(CLIENT, port, "S")).collect();
    backends_of(&mut mux, NOW, &packets);
    assert_eq!(mux.stats().flows.live, 100);
    for tick in 0..20_000 {
        let now = NOW + core::time::Duration::from_millis(50 * tick);
        mux.process(now, &mut []);
    }
    assert_eq!(mux.stats().flows.live, 0);
}
