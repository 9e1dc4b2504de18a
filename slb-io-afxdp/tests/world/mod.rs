//! Network namespaces that live as long as a thread of the test: gone with it, however it ends.

use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};

/// Says why a test is skipped, and ends it.
macro_rules! skip {
    ($($why:tt)*) => {{
        assert!(std::env::var_os("SLB_REQUIRE_ALL").is_none(), $($why)*);
        eprintln!("SKIPPED: {}", format_args!($($why)*));
        return;
    }};
}

/// Returns a requirement of the tests that is missing here.
pub fn lacking() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("AF_XDP and network namespaces need root".to_owned());
    }
    let mut tools = ["ip", "ethtool", "ping"].into_iter();
    let missing = tools.find(|tool| Command::new(tool).arg("-V").output().is_err())?;
    Some(format!("{missing} is not installed"))
}

/// Takes this thread, and what it starts, into a network namespace of its own.
pub fn enter_own_namespace() {
    // SAFETY: network namespaces are of a thread, and nothing of this one is shared with another.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    run("ip link set lo up");
}

/// Runs a command to its end, in this thread's namespace; gives what it printed.
#[track_caller]
pub fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}{errors}");
    text
}

type Job = Box<dyn FnOnce() + Send>;

/// Another machine: a thread in a namespace of its own, which does what it is told.
pub struct Machine {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    id: i32,
}

impl Machine {
    /// A machine that a cable leads to: `near` is the end here, `eth0` the one there.
    pub fn behind(near: &str) -> Self {
        let (jobs, list) = channel::<Job>();
        let (tell, told) = channel();
        let thread = thread::spawn(move || {
            enter_own_namespace();
            tell.send(gettid().as_raw_nonzero().get()).unwrap();
            list.into_iter().for_each(|job| job());
        });
        let id = told.recv().unwrap();
        let machine = Self {
            jobs: Some(jobs),
            thread: Some(thread),
            id,
        };
        run(&format!(
            "ip link add {near} numrxqueues 1 numtxqueues 1 type veth peer name eth0 numrxqueues 1 numtxqueues 1 netns {}",
            machine.id
        ));
        run(&format!("ip link set {near} up"));
        machine.run("ip link set eth0 up");
        // What arrives is not to be waited for, nor its checksum left to a card that is none.
        machine.run("ethtool -K eth0 tx off gro off gso off tso off");
        machine
    }

    /// Does something there.
    pub fn within<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(job)()
    }

    /// Begins something there, which is waited for by calling what comes back.
    pub fn start<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl FnOnce() -> T {
        let (tell, told) = channel();
        let job = Box::new(move || {
            let _ = tell.send(job());
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        move || told.recv().expect("the job there ends well")
    }

    /// Runs a command there.
    #[track_caller]
    pub fn run(&self, command: &str) -> String {
        let command = command.to_owned();
        self.within(move || run(&command))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
