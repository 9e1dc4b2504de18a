//! A watchdog for this process: a process of its own, which takes the interface of the announced
//! VIPs down when this one is stuck; and signs of life for systemd, if it asks for them.
//!
//! ```text
//!  slb mux ── a byte each half second ──► slb watchdog ── none for three seconds ──► interface down
//! ```
//! A process that is stopped, or waits for pages from a disk, keeps its interfaces, so the routing
//! daemon would continue to announce the VIPs. The watchdog ends when the pipe is closed.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::mm::{MlockAllFlags, mlockall};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use slb_io_afxdp::{Link, bring_up, take_down};
use tracing::{Level, debug, error, info, warn};

use super::log;
use crate::Failure;
use crate::cli::{LogFormat, WatchdogOptions};

/// The interval of heartbeats.
const BEAT: Duration = Duration::from_millis(500);
/// The time without a heartbeat after which the watchdog acts.
const PATIENCE: Duration = Duration::from_secs(3);

/// The time in which a watchdog ends by itself when its process does.
const FAREWELL: Duration = Duration::from_millis(500);

/// The time after which a watchdog that ended is started again, at first; and the longest such time, if it ends again and
/// again.
const AGAIN: Duration = Duration::from_secs(2);
const AT_LAST: Duration = Duration::from_secs(60);

/// The signs of life of this process.
pub(super) struct Life {
    watchdog: Option<Watchdog>,
    systemd: Option<Systemd>,
    last: Instant,
}

impl Life {
    /// Starts a watchdog for the interface that VIPs are announced by, if there is one, and tells systemd that
    /// the process runs, if that wants to know.
    pub(super) fn begin(interface: Option<&str>, log: LogFormat) -> Self {
        let watchdog = interface.map(|interface| Watchdog::begin(interface, log));
        let systemd = Systemd::from_environment();
        if let Some(systemd) = &systemd {
            systemd.tell("READY=1");
        }
        Self {
            watchdog,
            systemd,
            last: Instant::now(),
        }
    }

    /// Gives signs of life where they are due. `is_well`: the workers move packets.
    pub(super) fn beat(&mut self, is_well: bool) {
        if self.last.elapsed() < BEAT {
            return;
        }
        self.last = Instant::now();
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.beat();
        }
        if let Some(systemd) = self.systemd.as_ref().filter(|_| is_well) {
            systemd.tell("WATCHDOG=1");
        }
    }

    /// Says that the process is about to end, and which process of the same service goes on, if one does.
    pub(super) fn end(self, successor: Option<u32>) {
        if let Some(systemd) = &self.systemd {
            match successor {
                Some(pid) => systemd.tell(&format!("MAINPID={pid}")),
                None => systemd.tell("STOPPING=1"),
            }
        }
        if let Some((mut child, pipe)) = self.watchdog.and_then(|watchdog| watchdog.child) {
            drop(pipe);
            // One that is stopped does not see that the pipe is closed.
            let begin = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && begin.elapsed() < FAREWELL {
                thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.try_wait();
        }
    }
}

/// The watchdog of an interface, a process that is started again if it ends or does not read.
struct Watchdog {
    interface: String,
    log: LogFormat,
    child: Option<(Child, ChildStdin)>,
    /// The one before it, which was killed, and may take its time to end.
    killed: Option<Child>,
    /// The time of the last attempt to start it.
    started: Instant,
    /// The time from that attempt to the next one, should it be needed.
    pause: Duration,
}

impl Watchdog {
    fn begin(interface: &str, log: LogFormat) -> Self {
        let mut watchdog = Self {
            interface: interface.to_owned(),
            log,
            child: None,
            killed: None,
            started: Instant::now(),
            pause: AGAIN,
        };
        watchdog.start();
        watchdog
    }

    fn start(&mut self) {
        self.started = Instant::now();
        let start = || {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["watchdog", "--announce", &self.interface]);
            command.args(["--log", self.log.word()]);
            let mut child = command.stdin(Stdio::piped()).spawn()?;
            let pipe = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
            // A watchdog that is stopped must not stop this process.
            ioctl_fionbio(&pipe, true)?;
            Ok::<_, io::Error>((child, pipe))
        };
        let started = start();
        match started {
            Ok(started) => self.child = Some(started),
            Err(error) => {
                self.pause = AT_LAST;
                warn!("no watchdog: VIPs stay announced if the process stalls: {error}");
            }
        }
    }

    /// Gives a sign of life. Starts the watchdog again if it has ended, or does not read.
    fn beat(&mut self) {
        let lived = self.started.elapsed();
        let Some((_, pipe)) = &mut self.child else {
            let killed = self.killed.as_mut();
            let has_ended = killed.is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if has_ended && lived >= self.pause {
                self.killed = None;
                self.start();
            }
            return;
        };
        let Err(error) = pipe.write_all(b".") else {
            return;
        };
        if let Some((mut child, _)) = self.child.take() {
            let _ = child.kill();
            self.killed = Some(child);
        }
        self.pause = match lived < AT_LAST {
            true => (2 * self.pause).min(AT_LAST),
            false => AGAIN,
        };
        let seconds = self.pause.saturating_sub(lived).as_secs_f64();
        warn!(
            "the watchdog exited or did not read, and is started again in {seconds:.1} s: {error}"
        );
    }
}

/// The service manager, systemd, that is told how the service is (sd_notify(3)).
struct Systemd {
    socket: UnixDatagram,
    to: SocketAddr,
}

impl Systemd {
    fn from_environment() -> Option<Self> {
        let name = std::env::var("NOTIFY_SOCKET").ok()?;
        let to = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&name),
        };
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Self {
            socket,
            to: to.ok()?,
        })
    }

    fn tell(&self, what: &str) {
        // Whoever does not listen does not want to know.
        let _ = self.socket.send_to_addr(what.as_bytes(), &self.to);
    }
}

/// `slb watchdog`: takes an interface down while nothing comes by standard input, and ends when that does.
pub(crate) fn run(options: &WatchdogOptions) -> Result<(), Failure> {
    // Those signals are for the process that it watches, and it ends with that.
    for signal in [SIGHUP, SIGINT, SIGTERM, SIGUSR2] {
        let ignored = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal, ignored).map_err(Failure::failed)?;
    }
    let _log = log::begin(options.log, Level::INFO);
    let name = &options.announce;
    // Memory that runs short stops the process that it watches, and must not stop the watchdog as well, which would wait
    // for its own pages. Where it may not lock them, it goes on without.
    let of_touched = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(of_touched) {
        debug!("slb watchdog: its memory is not locked: {error}");
    }
    // Most of what taking it down needs is in memory from now on.
    let _ = Link::find(name);
    let mut input = io::stdin();
    let mut stalled: Option<Instant> = None;
    let most = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    loop {
        let mut fds = [PollFd::new(&input, PollFlags::IN)];
        let ready = match poll(&mut fds, Some(&most)) {
            Err(rustix::io::Errno::INTR) => continue,
            ready => ready.map_err(Failure::failed)?,
        };
        if ready == 0 {
            if stalled.is_none() {
                // First what matters: the log may have to wait.
                let taken = take_down(name);
                error!(
                    interface = name,
                    seconds = PATIENCE.as_secs_f64(),
                    event = "watchdog_interface_down",
                    "slb watchdog: the process has stalled: the interface goes down, and the VIPs with it"
                );
                if let Err(error) = taken {
                    error!("slb watchdog: {name}: {error}");
                }
                stalled = Some(Instant::now());
            }
            continue;
        }
        if input.read(&mut [0; 64]).map_err(Failure::failed)? == 0 {
            return Ok(());
        }
        if let Some(since) = stalled.take() {
            let stood = since.elapsed() + PATIENCE;
            info!(
                interface = name,
                seconds = stood.as_secs_f64(),
                event = "watchdog_interface_up",
                "slb watchdog: the process runs again: the interface goes up"
            );
            if let Err(error) = bring_up(name) {
                error!("slb watchdog: {name}: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A watchdog that reads nothing, as one that is stopped.
    fn deaf() -> Watchdog {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::piped())
            .spawn()
            .expect("sleep is there");
        let pipe = child.stdin.take().expect("it has a pipe");
        ioctl_fionbio(&pipe, true).expect("a pipe can be so");
        Watchdog {
            interface: "lo".to_owned(),
            log: LogFormat::Text,
            child: Some((child, pipe)),
            killed: None,
            started: Instant::now(),
            pause: AGAIN,
        }
    }

    #[test]
    fn a_watchdog_that_is_stopped_does_not_delay_the_end() {
        let watchdog = deaf();
        let pid = watchdog.child.as_ref().map(|(child, _)| child.id());
        let life = Life {
            watchdog: Some(watchdog),
            systemd: None,
            last: Instant::now(),
        };
        let begin = Instant::now();
        life.end(None);
        assert!(begin.elapsed() < Duration::from_secs(5));
        let proc = format!("/proc/{}/stat", pid.expect("it runs"));
        let is_over = || match std::fs::read_to_string(&proc) {
            // A process that was killed is a zombie until its parent waits for it.
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        while !is_over() {
            assert!(
                begin.elapsed() < Duration::from_secs(10),
                "no watchdog is left"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_watchdog_that_does_not_read_keeps_nobody_waiting() {
        let mut watchdog = deaf();
        // More than a pipe holds.
        for _ in 0..70_000 {
            watchdog.beat();
        }
        assert!(
            watchdog.child.is_none(),
            "it is ended, and started again later"
        );
        assert!(watchdog.pause > AGAIN);
    }
}
