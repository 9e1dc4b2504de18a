//! Ends of calls of private VIPs: refused, reset, expired; calls go on where the process of a host
//! ends.

use std::time::Duration;

use slb_core::state::{Age, Cursor};
use slb_core::{Burst, DropReason, Frame, HEADROOM, Verdict};

use super::net::{End, FABRIC, HTTP, Plan, SERVED, Segment, vip};
use super::{CLIENT, connect, send, syn};

#[test]
fn no_backend_is_told_with_a_reset_where_the_rule_says_so() {
    for (tcp_reset, is_ipv6) in [(true, false), (true, true), (false, false)] {
        let mut plan = Plan::two_tenants();
        plan.terms.tcp_reset = tcp_reset;
        for vm in &mut plan.vms {
            vm.weight = vm.weight.and(Some(0));
        }
        let mut net = plan.net();
        let end = send(&mut net, CLIENT, &syn(&plan, CLIENT, 47_000, is_ipv6));
        match end {
            End::Reply(frame) if tcp_reset => {
                let reset = Segment::of(&frame);
                assert_eq!(reset.from, (vip(is_ipv6), HTTP));
                assert_eq!((&*reset.flags, reset.acknowledged), ("AR", 1001));
            }
            End::Dropped(DropReason::NoBackend) if !tcp_reset => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_segment_of_no_connection_is_refused_through_the_network() {
    for only in [1, 2] {
        let mut plan = Plan::two_tenants().with_only(only);
        plan.terms.tcp_reset = true;
        let mut net = plan.net();
        for is_ipv6 in [false, true] {
            let client = (plan.vms[CLIENT].address(is_ipv6), 47_100);
            let stray = Segment::tcp(client, (vip(is_ipv6), HTTP), "A").at(77, 88);
            let end = send(&mut net, CLIENT, &stray);
            assert_eq!(end.vm(), CLIENT, "the caller is told");
            let reset = Segment::of(end.frame());
            assert_eq!((reset.from, reset.to), ((vip(is_ipv6), HTTP), client));
            assert_eq!((&*reset.flags, reset.sequence), ("R", 88));
        }
    }
}

#[test]
fn both_ends_are_reset_when_a_connection_expires() {
    for only in [1, 2] {
        let mut plan = Plan::two_tenants().with_only(only);
        plan.terms.tcp_reset = true;
        for is_ipv6 in [false, true] {
            let mut net = plan.net();
            assert_eq!(connect(&mut net, 47_200, is_ipv6), only);
            let host = plan.vms[only].host;
            net.now = net.now + Duration::from_secs(300);
            let mut told = Vec::new();
            for _ in 0..200 {
                net.now = net.now + Duration::from_millis(100);
                let mut buffers = vec![vec![0; 256]; 2];
                let mut burst = Burst::new();
                for buffer in &mut buffers {
                    let frame = Frame::new(buffer, HEADROOM, 0).expect("it fits");
                    burst.push(frame).expect("room");
                }
                net.hosts[host].advance(net.now, &mut burst);
                for frame in burst.iter_mut() {
                    if let Verdict::Forward(port) = frame.verdict() {
                        told.push((port, frame.bytes().to_vec()));
                    }
                }
            }
            assert_eq!(told.len(), 2);
            let mut ends = Vec::new();
            for (port, frame) in told {
                let (vm, frame) = match port {
                    FABRIC => {
                        let to = net.cross(&frame);
                        let end = net.enter(to, FABRIC, &frame);
                        (end.vm(), end.frame().to_vec())
                    }
                    port => (plan.vm_at(host, port).expect("a vm"), frame),
                };
                let reset = Segment::of(&frame);
                assert_eq!(frame[..6], plan.vms[vm].mac());
                ends.push((vm, reset.flags, reset.from, reset.to));
            }
            ends.sort_by_key(|end| end.0);
            let client = (plan.vms[CLIENT].address(is_ipv6), 47_200);
            let server = (plan.vms[only].address(is_ipv6), SERVED);
            let flags = || "AR".to_owned();
            assert_eq!(
                ends,
                [
                    (CLIENT, flags(), (vip(is_ipv6), HTTP), client),
                    (only, flags(), client, server),
                ]
            );
        }
    }
}

#[test]
fn a_backend_that_gets_its_own_call_is_refused_and_others_serve_it() {
    let plan = Plan::two_tenants();
    let mut net = plan.net();
    let mut met = [0; 4];
    for port in 51_000..51_060 {
        match send(&mut net, 2, &syn(&plan, 2, port, false)) {
            End::Vm(backend, _) => met[backend] += 1,
            End::Dropped(DropReason::Hairpin) => met[2] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(met[1] > 5 && met[2] > 5 && met[3] > 5, "{met:?}");
}

#[test]
fn a_connection_outlives_the_process_of_its_host() {
    for is_taken_up in [false, true] {
        let mut plan = Plan::two_tenants();
        (plan.vms[1].weight, plan.vms[3].weight) = (Some(0), Some(0));
        let mut net = plan.net();
        for is_ipv6 in [false, true] {
            assert_eq!(connect(&mut net, 52_000, is_ipv6), 2);
        }
        let mut records = vec![0; 1 << 16];
        let mut len = 0;
        let mut from = Some(Cursor::START);
        while let Some(place) = from {
            let exported = net.hosts[1].export(place, &mut records[len..]);
            len += exported.len;
            from = exported.next;
        }
        net.hosts[1] = plan.host(1);
        if is_taken_up {
            net.hosts[1].take_up(net.now);
        } else {
            let taken = net.hosts[1].import(net.now, Age::default(), &records[..len]);
            assert_eq!(taken.expect("whole").taken, 2);
        }
        for is_ipv6 in [false, true] {
            let client = (plan.vms[CLIENT].address(is_ipv6), 52_000);
            let server = (plan.vms[2].address(is_ipv6), SERVED);
            let front = (vip(is_ipv6), HTTP);
            let get = Segment::tcp(client, front, "A")
                .at(1001, 5001)
                .with(b"get\n");
            let page = Segment::tcp(server, client, "A")
                .at(5001, 1005)
                .with(b"page");
            // After a take-up the client's segments tell which name the server has for it.
            let is_server_first = is_ipv6 && !is_taken_up;
            for from_server in [is_server_first, !is_server_first] {
                if from_server {
                    let end = send(&mut net, 2, &page);
                    assert_eq!(end.vm(), CLIENT);
                    assert_eq!(Segment::of(end.frame()).from, front);
                } else {
                    assert_eq!(send(&mut net, CLIENT, &get).vm(), 2);
                }
            }
        }
    }
}
