//! Health at a proxy.

use std::collections::HashSet;
use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket};
use slb_core::snapshot::Snapshot;
use slb_core::{Proxy, Verdict};

use super::frames::{CLIENT_MAC, client, datagram, ends, give, resets, tcp};
use super::plan::{
    BACKENDS, BEHIND, FABRIC, FIRST, KEY, OTHER, PLAIN, PROXIES, Plan, RULES, SICK, dip, vip,
};

#[test]
fn a_proxy_s_udp_flow_moves_by_its_own_rule() {
    type Dut = Proxy<'static, Box<Snapshot<'static>>>;
    for (ipv6, scheduler) in PROXIES {
        let mut plan = Plan::of_proxy(ipv6, scheduler);
        let mut proxy = Proxy::with_capacity(plan.snapshot(), 1024, KEY).expect("its role");
        let ask = |proxy: &mut Dut, number: u16, port: u16| {
            let (verdict, bytes) = give!(proxy, FABRIC, &datagram(number, port, ipv6));
            assert_eq!(verdict, Verdict::Forward(BEHIND));
            let mut servers = (0..BACKENDS).map(|number| dip(number, ipv6));
            let sliced = SlicedPacket::from_ethernet(&bytes).unwrap();
            let to: IpAddr = match sliced.net.unwrap() {
                NetSlice::Ipv4(ip) => ip.header().destination_addr().into(),
                NetSlice::Ipv6(ip) => ip.header().destination_addr().into(),
                NetSlice::Arp(_) => unreachable!("no ARP"),
            };
            servers.position(|server| server == to).unwrap()
        };
        let all = |proxy: &mut Dut| {
            [FIRST, OTHER, PLAIN]
                .map(|port| (0..100).map(|n| ask(proxy, n, port)).collect::<Vec<_>>())
        };
        let before = all(&mut proxy);
        assert!(before[1].contains(&2), "{scheduler:?}");
        plan.found[1][2] = SICK;
        let next = plan.after(Some(proxy.snapshot()));
        proxy.install(next).expect("it follows");
        for (place, (before, after)) in before.iter().zip(all(&mut proxy)).enumerate() {
            for (&before, after) in before.iter().zip(after) {
                assert_eq!(after != before, place == 1 && before == 2, "rule {place}");
            }
        }
    }
}

#[test]
fn a_proxy_chooses_and_resets_by_rule() {
    for (ipv6, scheduler) in PROXIES {
        let mut plan = Plan::of_proxy(ipv6, scheduler);
        let mut proxy = Proxy::with_capacity(plan.snapshot(), 1024, KEY).expect("its role");
        type Dut = Proxy<'static, Box<Snapshot<'static>>>;
        let open = |proxy: &mut Dut, number, port| {
            let syn = tcp(CLIENT_MAC, client(number, ipv6), (vip(ipv6), port), "S");
            let (verdict, bytes) = give!(proxy, FABRIC, &syn);
            assert_eq!(verdict, Verdict::Forward(BEHIND));
            let (_, server, _) = ends(&bytes);
            let answer = tcp([2, 0, 0, 0, 0, 7], server, client(number, ipv6), "SA");
            let (verdict, _) = give!(proxy, BEHIND, &answer);
            assert_eq!(verdict, Verdict::Forward(FABRIC));
            (0..BACKENDS).find(|&n| dip(n, ipv6) == server.0).unwrap()
        };
        let before: Vec<(u16, usize)> = RULES
            .into_iter()
            .flat_map(|port| (0..40).map(move |number| (number, port)))
            .map(|(number, port)| (port, open(&mut proxy, number, port)))
            .collect();
        plan.found[1][3] = SICK;
        proxy
            .install(plan.after(Some(proxy.snapshot())))
            .expect("it follows");
        let told = resets!(proxy);
        let of_other = before.iter().filter(|&&own| own == (OTHER, 3)).count();
        assert!(of_other > 0);
        assert_eq!(
            told.len(),
            2 * of_other,
            "both ends of {of_other} connections"
        );
        assert!(
            told.iter()
                .all(|(from, to, is_reset)| { *is_reset && [from.1, to.1].contains(&OTHER) })
        );
        for port in RULES {
            let chosen: HashSet<usize> = (100..200)
                .map(|number| open(&mut proxy, number, port))
                .collect();
            assert_eq!(chosen.contains(&3), port != OTHER, "port {port}");
            assert!(chosen.len() >= 3);
        }
    }
}
