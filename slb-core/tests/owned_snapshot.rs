//! Without an allocator, snapshots replace each other for ever in two pieces of memory.

use crate::common;

use common::*;
use slb_core::mem::Line;
use slb_core::snapshot::{OwnedSnapshot, Snapshot};
use slb_core::spec::{Backend, BackendState, Pool, Spec, SpecError};
use slb_core::{Instant, Key, Mux, PortId};

const NOW: Instant = Instant::from_secs(1000);

/// The index of each packet's backend.
fn chosen<'m>(mux: &mut Mux<'m, OwnedSnapshot<'m>>, packets: &[Vec<u8>]) -> Vec<u16> {
    let mut seen = Vec::new();
    for packet in packets {
        let mut buffer = vec![0; slb_core::HEADROOM];
        buffer.extend(packet);
        let frame = slb_core::Frame::new(&mut buffer, slb_core::HEADROOM, packet.len());
        let mut frames = [frame.expect("room")];
        let mut member = None;
        let mut observe = |_: usize, step| {
            if let slb_core::observe::Step::Selected(index) = step {
                member = Some(index as u16);
            }
        };
        mux.process_observed(NOW, &mut frames, &mut observe);
        seen.push(member.expect("a backend"));
    }
    seen
}

#[test]
fn two_pieces_of_memory_are_enough_for_ever() {
    let mut setup = Setup::new(10);
    let lines = setup.with_spec(|spec| Snapshot::lines_for(spec, None));
    let mut memory = vec![Line::EMPTY; 2 * lines];
    let (first, mut spare) = memory.split_at_mut(lines);
    let at = |lines: &[Line]| lines.as_ptr();
    let both = [at(first), at(spare)];
    let built = setup.with_spec(|spec| OwnedSnapshot::build(spec, None, first));
    let mut mux = Mux::with_capacity(built.expect("good"), 1000, Key::new([1, 2])).expect("a mux");
    let of_kind = |flags| {
        (0..60)
            .map(|port| tcp(CLIENT, port, flags))
            .collect::<Vec<_>>()
    };
    let before = chosen(&mut mux, &of_kind("S"));
    let packets = of_kind("A");
    for reload in 0..1000_u64 {
        let number = 1 + (reload % 10) as u16;
        setup.set_state(number, BackendState::Draining);
        let next = setup.with_spec(|spec| OwnedSnapshot::build(spec, Some(mux.snapshot()), spare));
        let old = mux.install(next.expect("good")).expect("it follows");
        spare = old.into_lines();
        assert_eq!(spare.len(), lines);
        assert!(both.contains(&at(spare)));
        assert_eq!(mux.snapshot().generation(), 2 + reload);
        if reload % 100 == 0 {
            assert_eq!(chosen(&mut mux, &packets), before);
        }
        setup.set_state(number, BackendState::Up);
    }
    // What was lent can be written over: nothing uses it.
    spare.fill(Line::EMPTY);
    assert_eq!(chosen(&mut mux, &packets), before);
}

#[test]
fn a_host_whose_vms_stay_needs_no_more_memory_for_the_next_snapshot() {
    let setup = Setup::new(10);
    setup.with_spec(|spec| {
        let backends: Vec<Vec<Backend<'_>>> = (1..)
            .zip(spec.pools)
            .map(|(pool, of_pool)| {
                let backends = (0..).zip(of_pool.backends);
                let local = backends.map(|(number, backend)| Backend {
                    port: Some(PortId(100 * pool + number)),
                    ..*backend
                });
                local.collect()
            })
            .collect();
        let pools: Vec<_> = backends
            .iter()
            .zip(spec.pools)
            .map(|(backends, pool)| Pool { backends, ..*pool })
            .collect();
        let of_host = Spec {
            pools: &pools,
            ..spec.clone()
        };
        let lines = Snapshot::lines_for(&of_host, None);
        let mut snapshot = Snapshot::new(&of_host, None).expect("good");
        for _ in 0..10 {
            assert_eq!(Snapshot::lines_for(&of_host, Some(&snapshot)), lines);
            snapshot = Snapshot::new(&of_host, Some(&snapshot)).expect("good");
        }
    });
}

#[test]
fn what_cannot_be_compiled_gives_its_memory_back() {
    let setup = Setup::new(3);
    let lines = setup.with_spec(|spec| Snapshot::lines_for(spec, None));
    let mut memory = vec![Line::EMPTY; lines];
    let (few, _) = memory.split_at_mut(lines - 1);
    let unbuilt = setup
        .with_spec(|spec| OwnedSnapshot::build(spec, None, few))
        .expect_err("too few lines");
    assert_eq!(unbuilt.error, SpecError::Memory { lines });
    assert_eq!(unbuilt.lines.len(), lines - 1);
    let unbuilt = setup.with_spec(|spec| {
        let spec = Spec {
            pools: &[],
            ..spec.clone()
        };
        let unbuilt = OwnedSnapshot::build(&spec, None, unbuilt.lines);
        unbuilt.map(|_| ()).map_err(|unbuilt| unbuilt.lines.len())
    });
    assert_eq!(unbuilt, Err(lines - 1));
}

#[test]
fn it_goes_to_another_thread() {
    const fn is_send<T: Send>() {}
    const { is_send::<OwnedSnapshot<'static>>() };
    const { is_send::<Mux<'static, OwnedSnapshot<'static>>>() };
}
