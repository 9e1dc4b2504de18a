//! The cost of calls from C: one mux, by its method and by its C function, in turn.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one C program's calls, of which the same is promised"
)]

use std::hint::black_box;
use std::time::Instant;

use slb_bench::{Case, FRAMES, Failure, Frames, Limits, Options, Report, Sample};
use slb_core::{BURST, Key};

const NAMES: [&str; 2] = ["from Rust, stateless, 64 B", "from C, stateless, 64 B"];

fn configuration() -> String {
    let mut text = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\nflows = 0\nmtu = 1600\n\
                    [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
                    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"servers\"\n\
                    protocol = \"tcp\"\nfrontend_port = 80\n\
                    [[pool]]\nname = \"servers\"\nvni = 5001\nbackends = [\n"
        .to_owned();
    for i in 1..=100 {
        text += &format!(
            "{{ name = \"vm{i}\", address = \"10.10.1.{i}\", host = \"172.16.0.{i}\" }},\n"
        );
    }
    text + "]\n"
}

/// A mux behind its C handle, made as a C program makes it.
struct FromC {
    mux: *mut slb::slb_mux,
    snapshot: *mut slb::slb_snapshot,
}

impl FromC {
    #[expect(unsafe_code, reason = "C functions are what is measured")]
    fn new(text: &str) -> Result<Self, Failure> {
        let mut made = Self {
            mux: std::ptr::null_mut(),
            snapshot: std::ptr::null_mut(),
        };
        let mut config = std::ptr::null_mut();
        let mut options = std::mem::MaybeUninit::uninit();
        let none = std::ptr::null_mut();
        // SAFETY: all pointers are to locals of the right types, or NULL where that is allowed.
        let results = unsafe {
            slb::slb_mux_options_init(options.as_mut_ptr());
            (*options.as_mut_ptr()).key = [1, 2];
            [
                slb::slb_config_parse(text.as_ptr().cast(), text.len(), none, 0, &mut config),
                slb::slb_config_mux_options(config, options.as_mut_ptr()),
                slb::slb_config_snapshot(config, std::ptr::null(), &mut made.snapshot),
                slb::slb_mux_new(made.snapshot, options.as_ptr(), &mut made.mux),
                slb::slb_config_free(config),
            ]
        };
        match results.iter().find(|result| **result < 0) {
            Some(error) => Err(Failure::failed(format!("C says {error}"))),
            None => Ok(made),
        }
    }

    #[expect(unsafe_code, reason = "C functions are what is measured")]
    fn process(&self, burst: &mut [slb_core::Frame<'_>]) -> i32 {
        let (first, count) = (burst.as_mut_ptr().cast(), burst.len());
        // SAFETY: a frame is C's frame, as slb-ffi asserts, and these are good ones.
        unsafe { slb::slb_mux_process(self.mux, 1, first, count, std::ptr::null_mut()) }
    }
}

impl Drop for FromC {
    #[expect(unsafe_code, reason = "C functions are what is measured")]
    fn drop(&mut self) {
        // SAFETY: both are handles, or NULL, and neither is used any more.
        unsafe {
            slb::slb_mux_free(self.mux);
            slb::slb_snapshot_free(self.snapshot);
        }
    }
}

pub(super) fn measure(
    options: &Options,
    report: &mut Report,
    limits: &Limits,
) -> Result<(), Failure> {
    if !NAMES.iter().any(|name| report.wants(name)) {
        return Ok(());
    }
    report.group("the mux called from Rust and from C, for each packet");
    let text = configuration();
    let config = slb_control::Config::parse("benches", &text).map_err(Failure::failed)?;
    let snapshot = config.snapshot(None).map_err(Failure::failed)?;
    let mut from_rust = slb_core::Mux::stateless(snapshot, Key::new([1, 2])).expect("its role");
    let from_c = FromC::new(&text)?;
    let case = Case::FLOOR;
    let mut memory = vec![0u8; case.stride() * FRAMES];
    let mut frames = Frames::new(case);
    let now = slb_core::Instant::from_nanos(1);
    let mut nanos = [Vec::new(), Vec::new()];
    let begin = Instant::now();
    while begin.elapsed() < 2 * options.time() {
        for (way, nanos) in nanos.iter_mut().enumerate() {
            let mut made = frames.write(&mut memory, false);
            let start = Instant::now();
            for burst in made.chunks_mut(BURST) {
                if way == 0 {
                    from_rust.process(now, burst);
                } else if from_c.process(burst) != burst.len() as i32 {
                    return Err(Failure::failed("C did not process all"));
                }
            }
            nanos.push(start.elapsed().as_nanos() as f64 / FRAMES as f64);
            black_box(&mut made);
        }
    }
    for (name, nanos) in NAMES.iter().zip(nanos) {
        report.show(name, Sample::of(nanos), Some(limits.floor));
    }
    Ok(())
}
