//! The C functions in any order: with handles of all kinds, NULL, texts that are none, and snapshots freed
//! while they are in use. Each says what is wrong, and nothing that it was lent is written beyond.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one C program's calls, of which the same is promised"
)]

use std::ptr::{null, null_mut};

use bolero::TypeGenerator;
use slb::{slb_config, slb_mux, slb_snapshot};
use slb_core::{Frame, HEADROOM, PortId, Verdict};
use slb_fuzz::Nearly;

#[derive(Clone, Debug, TypeGenerator)]
enum Call {
    Parse(bool, Vec<u8>),
    Snapshot(u8, bool),
    Mux(u8),
    Process(u8, Vec<Nearly>, u32),
    Install(u8, u8),
    SetBackend(u8, u8, u8),
    FreeSnapshot(u8),
    FreeMux(u8),
    FreeConfig(u8),
    /// A handle of another kind.
    Wrong(u8, u8),
}

const GOOD: &str = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\nflows = 64\n\
    [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
    [[pool]]\nname = \"p\"\nvni = 1\ntable_size = 251\n\
    backends = [{ name = \"vm\", address = \"10.0.0.1\", host = \"172.16.0.1\" }]\n";

/// What a program holds. A handle is NULL once it was freed.
#[derive(Default)]
struct Program {
    configs: Vec<*mut slb_config>,
    snapshots: Vec<*mut slb_snapshot>,
    muxes: Vec<*mut slb_mux>,
}

fn pick<T>(all: &[*mut T], which: u8) -> *mut T {
    // One more than there are: NULL.
    let place = usize::from(which) % (all.len() + 1);
    all.get(place).copied().unwrap_or(null_mut())
}

fn forget<T>(all: &mut [*mut T], gone: *mut T) {
    all.iter_mut()
        .filter(|own| **own == gone)
        .for_each(|own| *own = null_mut());
}

impl Program {
    fn call(&mut self, call: &Call) {
        // SAFETY: handles are this program's, and not freed; memory is as long as is said.
        unsafe {
            match call {
                Call::Parse(is_good, bytes) => {
                    let text: &[u8] = if *is_good { GOOD.as_bytes() } else { bytes };
                    let mut faults = [0x5a_u8; 64];
                    let mut config = null_mut();
                    // The last bytes are not lent.
                    let result = slb::slb_config_parse(
                        text.as_ptr().cast(),
                        text.len(),
                        faults.as_mut_ptr().cast(),
                        faults.len() - 8,
                        &mut config,
                    );
                    assert_eq!(faults[56..], [0x5a; 8]);
                    assert_eq!(result >= 0, !config.is_null());
                    assert!(!is_good || result >= 0);
                    if result >= 0 {
                        self.configs.push(config);
                    } else {
                        assert!(faults[..56].contains(&0), "faults end with a NUL");
                    }
                }
                Call::Snapshot(which, follows) => {
                    let config = pick(&self.configs, *which);
                    let before = self.snapshots.last().copied().filter(|_| *follows);
                    let mut snapshot = null_mut();
                    let before = before.unwrap_or(null_mut());
                    let result = slb::slb_config_snapshot(config, before, &mut snapshot);
                    assert_eq!(result >= 0, !snapshot.is_null());
                    assert_eq!(result >= 0, !config.is_null());
                    if result >= 0 {
                        self.snapshots.push(snapshot);
                    }
                }
                Call::Mux(which) => {
                    let snapshot = pick(&self.snapshots, *which);
                    let mut options = std::mem::MaybeUninit::uninit();
                    slb::slb_mux_options_init(options.as_mut_ptr());
                    let mut options = options.assume_init();
                    options.flows = 64;
                    let mut mux = null_mut();
                    let result = slb::slb_mux_new(snapshot, &options, &mut mux);
                    assert_eq!(result >= 0, !mux.is_null());
                    assert_eq!(result >= 0, !snapshot.is_null());
                    if result >= 0 {
                        self.muxes.push(mux);
                    }
                }
                Call::Process(which, packets, now) => self.process(*which, packets, *now),
                Call::Install(which, snapshot) => {
                    let (mux, next) = (pick(&self.muxes, *which), pick(&self.snapshots, *snapshot));
                    let mut before = null_mut();
                    let result = slb::slb_mux_install(mux, next, &mut before);
                    assert_eq!(result >= 0, !mux.is_null() && !next.is_null());
                    assert!(result < 0 || self.snapshots.contains(&before));
                }
                Call::SetBackend(which, weight, state) => {
                    let config = pick(&self.configs, *which);
                    let weight = (*weight).into();
                    for name in [c"vm", c"p/vm", c"", c"none"] {
                        slb::slb_config_set_backend(config, name.as_ptr(), weight, *state);
                    }
                    let result = slb::slb_config_set_backend(config, null(), weight, *state);
                    assert!(result < 0);
                }
                Call::FreeSnapshot(which) => {
                    let snapshot = pick(&self.snapshots, *which);
                    if slb::slb_snapshot_free(snapshot) >= 0 {
                        forget(&mut self.snapshots, snapshot);
                        self.snapshots.retain(|own| !own.is_null());
                    }
                }
                Call::FreeMux(which) => {
                    let mux = pick(&self.muxes, *which);
                    assert!(slb::slb_mux_free(mux) >= 0);
                    forget(&mut self.muxes, mux);
                    self.muxes.retain(|own| !own.is_null());
                }
                Call::FreeConfig(which) => {
                    let config = pick(&self.configs, *which);
                    assert!(slb::slb_config_free(config) >= 0);
                    forget(&mut self.configs, config);
                    self.configs.retain(|own| !own.is_null());
                }
                Call::Wrong(mux, snapshot) => {
                    let (mux, snapshot) =
                        (pick(&self.muxes, *mux), pick(&self.snapshots, *snapshot));
                    assert!(slb::slb_mux_free(snapshot.cast()) < 0 || snapshot.is_null());
                    assert!(slb::slb_snapshot_free(mux.cast()) < 0 || mux.is_null());
                    assert_eq!(slb::slb_snapshot_generation(mux.cast()), 0);
                }
            }
        }
    }

    fn process(&mut self, which: u8, packets: &[Nearly], now: u32) {
        let mux = pick(&self.muxes, which);
        let packets: Vec<Vec<u8>> = packets.iter().map(Nearly::packet).collect();
        let mut memory: Vec<Vec<u8>> = packets
            .iter()
            .map(|packet| [&[0; HEADROOM], &packet[..], &[0xa5; 16]].concat())
            .collect();
        let frames = memory.iter_mut().zip(&packets);
        let mut frames: Vec<Frame<'_>> = frames
            .filter_map(|(buffer, packet)| Frame::new(buffer, HEADROOM, packet.len()))
            .collect();
        let (first, count) = (frames.as_mut_ptr().cast(), frames.len());
        // SAFETY: so many frames there are, each with its memory.
        let result = unsafe { slb::slb_mux_process(mux, now.into(), first, count, null_mut()) };
        assert_eq!(result >= 0, !mux.is_null());
        let sent = frames
            .iter()
            .filter(|f| f.verdict() == Verdict::Forward(PortId(0)));
        assert!(!mux.is_null() || sent.count() == 0);
        drop(frames);
        for (buffer, packet) in memory.iter().zip(&packets) {
            assert!(
                buffer[HEADROOM + packet.len()..]
                    .iter()
                    .all(|&byte| byte == 0xa5)
            );
        }
    }

    /// What is in use cannot go; in the right order all goes.
    fn end(self) {
        // SAFETY: handles are this program's, and not freed.
        unsafe {
            for mux in self.muxes {
                assert!(slb::slb_mux_free(mux) >= 0);
            }
            for snapshot in self.snapshots {
                assert!(slb::slb_snapshot_free(snapshot) >= 0);
            }
            for config in self.configs {
                assert!(slb::slb_config_free(config) >= 0);
            }
        }
    }
}

#[test]
fn c_functions_in_any_order() {
    bolero::check!().with_type::<Vec<Call>>().for_each(|calls| {
        let mut program = Program::default();
        for call in calls {
            program.call(call);
        }
        program.end();
    });
}
