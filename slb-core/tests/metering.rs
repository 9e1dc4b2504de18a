//! Traffic of vms, by direction and by the other end. That each frame counts once, with its bytes at the vm's port, is
//! checked for all packets of the worlds by `common::meter`.

use slb_core::snapshot::Snapshot;
use slb_core::spec::{NetworkVm, Spec};
use slb_core::stats::{Count, VmCounters};
use slb_core::wire::ethernet::MacAddress;
use slb_core::{Burst, Frame, HEADROOM, Host, Instant, Key, PortId, Verdict};

use crate::networks;
use crate::private::net::{End, GATEWAY_MAC, HTTP, Net, Plan, SERVED, Segment, vip};
use crate::public::net::{self as public, Kind, OTHER, SERVER};
use crate::snat_world::{Family, Plan as SnatPlan, World, client, far, front, vip as snat_vip, vm};

const NOW: Instant = Instant::from_secs(1);

/// Frames to and from a vm: inside, then with the Internet.
fn packets(counters: VmCounters) -> [u64; 4] {
    let (network, internet) = (counters.network(), counters.internet());
    [
        network.to_vm.packets,
        network.from_vm.packets,
        internet.to_vm.packets,
        internet.from_vm.packets,
    ]
}

fn of(host: &Host<'static, Box<Snapshot<'static>>>, port: u16) -> [u64; 4] {
    packets(host.vm_counters(PortId(port)).expect("a vm"))
}

fn of_net(net: &Net, vm: usize) -> [u64; 4] {
    let host = &net.hosts[net.plan.vms[vm].host];
    packets(host.vm_counters(net.plan.port_of(vm)).expect("a vm"))
}

#[test]
fn calls_of_private_vips_count_as_the_networks_at_both_ends() {
    // The backend on the caller's host, and one elsewhere.
    for backend in [1, 2] {
        let plan = Plan::two_tenants().with_only(backend);
        let mut net = plan.net();
        for (place, is_ipv6) in [false, true].into_iter().enumerate() {
            let caller = (plan.vms[0].address(is_ipv6), 40_000);
            let server = (plan.vms[backend].address(is_ipv6), SERVED);
            let front = (vip(is_ipv6), HTTP);
            let send = |net: &mut Net, from: usize, segment: &Segment| {
                let frame = segment.frame(net.plan.vms[from].mac(), GATEWAY_MAC);
                assert!(matches!(net.send(from, &frame), End::Vm(..)));
            };
            send(&mut net, 0, &Segment::tcp(caller, front, "S"));
            let answer = Segment::tcp(server, caller, "SA").at(5000, 1001);
            send(&mut net, backend, &answer);
            send(
                &mut net,
                0,
                &Segment::tcp(caller, front, "A").at(1001, 5001),
            );
            for turn in 0..4 {
                let page = Segment::tcp(server, caller, "A").at(5001 + 4 * turn, 1001);
                send(&mut net, backend, &page.with(b"page"));
            }
            let times = place as u64 + 1;
            assert_eq!(of_net(&net, 0), [5 * times, 2 * times, 0, 0]);
            assert_eq!(of_net(&net, backend), [2 * times, 5 * times, 0, 0]);
        }
    }
}

#[test]
fn public_addresses_count_as_the_internets() {
    let mut world = public::World::new();
    let udp = Kind::Udp { has_checksum: true };
    for is_ipv6 in [false, true] {
        let far = public::client(is_ipv6);
        let own = public::own(&world.plan, OTHER, is_ipv6);
        let front = public::public(OTHER, is_ipv6);
        let query = public::packet(udp, (far, front), (5000, 53), b"query", 60);
        assert!(matches!(world.enter(&query), public::End::Vm(OTHER, _)));
        for _ in 0..2 {
            let answer = public::packet(udp, (own, far), (53, 5000), b"answer", 64);
            assert!(matches!(
                world.leave(OTHER, &answer),
                public::End::Outside(_)
            ));
        }
        // To a vm of the network, which is at another host.
        let other = public::own(&world.plan, SERVER, is_ipv6);
        let between = public::packet(udp, (own, other), (53, 5000), b"between", 64);
        assert!(matches!(
            world.leave(OTHER, &between),
            public::End::Vm(SERVER, _)
        ));
    }
    let at = |vm: usize| {
        let host = &world.hosts[world.plan.vms[vm].host];
        packets(host.vm_counters(world.plan.port_of(vm)).expect("a vm"))
    };
    assert_eq!(at(OTHER), [0, 2, 2, 4]);
    assert_eq!(at(SERVER), [2, 0, 0, 0]);
}

/// Calls of a vm to a server, and of a client to it; returns the vm's counters.
fn inbound(world: &mut World, family: Family, clients: &[std::net::IpAddr]) -> [u64; 4] {
    use crate::snat_world::tcp;
    for &from in clients {
        let (from, front, own) = (
            (from, 40_000),
            (snat_vip(family), 80),
            (vm(family, 0), 8080),
        );
        for (is_in, flags) in [(true, 2), (false, 18), (true, 16), (true, 24), (false, 24)] {
            let (verdict, _) = match is_in {
                true => world.of_mux(NOW, 0, &tcp(from, front, flags)),
                false => world.of_vm(NOW, 0, &tcp(own, from, flags)),
            };
            assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
        }
    }
    of(&world.host, 1)
}

#[test]
fn snat_counts_as_the_internets_and_a_refused_call_not_at_all() {
    use crate::snat_world::Kind;
    for family in [Family::Ipv4, Family::Ipv6] {
        let mut world = SnatPlan::new(family, 1).world();
        let request = Kind::Udp.request((vm(family, 0), 5000), far(family, 1));
        let (verdict, sent) = world.of_vm(NOW, 0, &request);
        assert_eq!(verdict, Verdict::Forward(PortId(0)));
        let (from, to) = crate::snat_world::ends(&sent);
        assert_eq!(from.0, front(family, 0));
        for turn in 1..4 {
            let (verdict, _) = world.of_mux(NOW, 0, &Kind::Udp.request(to, from));
            assert_eq!(verdict, Verdict::Forward(PortId(1)));
            assert_eq!(of(&world.host, 1), [0, 0, turn, 1]);
        }
        // From an address that is not the vm's.
        let spoofed = Kind::Udp.request((client(family, 1), 5000), far(family, 1));
        let (verdict, _) = world.of_vm(NOW, 0, &spoofed);
        assert!(matches!(verdict, Verdict::Drop(_)));
        assert_eq!(of(&world.host, 1), [0, 0, 3, 1]);
    }
}

#[test]
fn clients_of_a_vip_count_by_their_own_address() {
    for family in [Family::Ipv4, Family::Ipv6] {
        let mut world = SnatPlan::new(family, 1).world();
        let outside = inbound(&mut world, family, &[client(family, 1)]);
        assert_eq!(outside, [0, 0, 3, 2]);
        let inside = match family {
            Family::Ipv4 => "10.77.0.1",
            Family::Ipv6 => "fd00:77::1",
        };
        let both = inbound(&mut world, family, &[inside.parse().expect("an address")]);
        assert_eq!(both, [3, 2, 3, 2]);
    }
}

#[test]
fn bytes_are_those_at_the_vms_port() {
    let plan = networks::net::Plan::two_tenants();
    let mut hosts = [plan.host(0), plan.host(1)];
    let frame = networks::datagram(&plan, 0, plan.vms[1].mac, plan.vms[1].addresses[0], 64);
    let (_, sent) = networks::net::process(&mut hosts[0], plan.port_of(0), &frame);
    networks::net::process(&mut hosts[1], networks::net::FABRIC, &sent);
    let one = Count {
        packets: 1,
        bytes: frame.len() as u64,
    };
    let at = |host: usize, vm: usize| hosts[host].vm_counters(plan.port_of(vm)).expect("a vm");
    assert_eq!(at(0, 0).network().from_vm, one);
    assert_eq!(at(1, 1).network().to_vm, one);
    assert!(sent.len() > frame.len());
}

/// A vm that stays at its port keeps its counters, under any name; another one at the port starts at zero, and one that
/// is gone has none.
#[test]
fn counters_belong_to_the_vm_at_its_port() {
    let plan = networks::net::Plan::two_tenants();
    // The third vm of the first network is at the first host.
    let port = plan.port_of(2);
    let mut host = plan.host(0);
    let frame = networks::datagram(&plan, 2, plan.vms[1].mac, plan.vms[1].addresses[0], 64);
    networks::net::process(&mut host, port, &frame);
    let install = |host: &mut networks::net::TestHost, change: &dyn Fn(&mut NetworkVm<'_>)| {
        let next = plan.with_spec(0, |spec| {
            let mut vms = spec.vms.to_vec();
            let vm = vms.iter_mut().find(|vm| vm.port == Some(port));
            change(vm.expect("a vm"));
            let spec = Spec {
                vms: &vms,
                ..spec.clone()
            };
            Snapshot::new(&spec, Some(host.snapshot())).expect("a good spec")
        });
        host.install(Box::new(next)).expect("it follows");
    };
    let counted = |host: &networks::net::TestHost| host.vm_counters(port).map(packets);
    install(&mut host, &|vm| vm.name = "renamed");
    assert_eq!(counted(&host), Some([0, 1, 0, 0]));
    install(&mut host, &|vm| {
        vm.mac = Some(MacAddress([2, 0, 0, 9, 9, 9]));
    });
    assert_eq!(counted(&host), Some([0; 4]));
    install(&mut host, &|vm| vm.port = Some(PortId(60)));
    assert_eq!(counted(&host), None);
    // Without memory for its row, a vm is not counted.
    assert!(!host.has_counters_for(host.snapshot()));
    host.replace_counters(slb_core::counters::CounterMemory::new(host.snapshot()));
    let next = plan.with_spec(0, |spec| {
        Snapshot::new(spec, Some(host.snapshot())).expect("a good spec")
    });
    host.install(Box::new(next)).expect("it follows");
    assert_eq!(counted(&host), Some([0; 4]));
}

#[test]
fn resets_of_expired_connections_count_for_the_vm() {
    for family in [Family::Ipv4, Family::Ipv6] {
        let mut world = SnatPlan::new(family, 1).tcp_reset().world();
        let request = crate::snat_world::Kind::Tcp;
        let request = request.request((vm(family, 0), 5000), far(family, 1));
        let (_, sent) = world.of_vm(NOW, 0, &request);
        let (from, to) = crate::snat_world::ends(&sent);
        let (verdict, _) = world.of_mux(NOW, 0, &crate::snat_world::tcp(to, from, 18));
        assert_eq!(verdict, Verdict::Forward(PortId(1)));
        let before = world.host.vm_counters(PortId(1)).expect("a vm");
        let mut bytes = 0;
        for step in 0..200u64 {
            let mut memory = [[0; HEADROOM + 256]; 2];
            let mut spare = Burst::new();
            for frame in &mut memory {
                let _ = spare.push(Frame::new(frame, HEADROOM, 0).expect("it fits"));
            }
            world
                .host
                .advance(Instant::from_secs(2000 + step), &mut spare);
            let sent = spare
                .iter()
                .filter(|frame| frame.verdict() == Verdict::Forward(PortId(1)));
            bytes += sent.map(|frame| frame.len() as u64).sum::<u64>();
        }
        assert!(bytes > 0, "it was reset");
        let after = world.host.vm_counters(PortId(1)).expect("a vm");
        assert_eq!(
            after.internet().to_vm.bytes - before.internet().to_vm.bytes,
            bytes
        );
        assert_eq!(
            after.network(),
            before.network(),
            "and nothing else was counted"
        );
    }
}

#[test]
fn a_host_without_vms_has_no_rows() {
    // A host agent without vms has no rows.
    let snapshot = Snapshot::new(&Spec::default(), None).expect("a good spec");
    assert_eq!(snapshot.vm_slots(), 0);
    let host = Host::with_capacity(Box::new(snapshot), 64, Key::new([1, 2])).expect("its role");
    assert_eq!(host.vm_counters(PortId(0)), None);
}
