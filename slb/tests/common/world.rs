//! Machines that are network namespaces, and processes in them: gone with the test.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{is_root, sh};

/// A process, which ends with its test.
pub struct Process(pub Child);

impl Process {
    pub fn signal(&self, signal: &str) {
        assert!(sh(&format!("kill -{signal} {}", self.0.id())));
    }

    /// Waits for its end; gives what it printed, where it ended well.
    #[track_caller]
    pub fn finish(mut self) -> String {
        let said = self.read();
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}: {said}");
        said
    }

    /// Waits for its end, whatever that is; gives what it printed.
    pub fn output(mut self) -> String {
        self.read()
    }

    fn read(&mut self) -> String {
        let mut said = String::new();
        if let Some(out) = &mut self.0.stdout {
            out.read_to_string(&mut said).unwrap();
        }
        said
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The worlds that this process has made: tests of several files may call theirs the same.
static WORLDS: AtomicUsize = AtomicUsize::new(0);

/// Namespaces, and the processes in them: gone with it.
pub struct World {
    tag: String,
    machines: Vec<String>,
    servers: Vec<Process>,
    directory: tempfile::TempDir,
}

impl World {
    pub fn new(kind: &str, machines: &[&str]) -> Self {
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let mut world = Self {
            tag: format!("slb{kind}{}n{number}", std::process::id() % 100_000),
            machines: Vec::new(),
            servers: Vec::new(),
            directory: tempfile::tempdir().unwrap(),
        };
        for machine in machines {
            assert!(sh(&format!("ip netns add {}-{machine}", world.tag)));
            world.machines.push((*machine).to_owned());
            world.on(machine, "ip link set lo up");
        }
        world
    }

    /// A cable between two machines.
    pub fn cable(&self, a: &str, a_end: &str, b: &str, b_end: &str) {
        let tag = &self.tag;
        assert!(sh(&format!(
            "ip link add {a_end} netns {tag}-{a} type veth peer name {b_end} netns {tag}-{b}"
        )));
        self.on(a, &format!("ip link set {a_end} up"));
        self.on(b, &format!("ip link set {b_end} up"));
    }

    /// The namespace of a machine.
    pub fn space(&self, machine: &str) -> String {
        format!("{}-{machine}", self.tag)
    }

    pub fn command(&self, machine: &str, command: &str) -> Command {
        let mut all = Command::new("ip");
        all.args(["netns", "exec", &self.space(machine)]);
        all.args(["sh", "-c", &format!("exec {command}")]);
        all
    }

    /// A cable that carries packets of `mtu` bytes, whose ends compute checksums themselves: those that
    /// are left to a card that is none are wrong in user space.
    pub fn plain_cable(&self, a: &str, a_end: &str, b: &str, b_end: &str, mtu: u32) {
        let tag = &self.tag;
        assert!(sh(&format!(
            "ip link add {a_end} netns {tag}-{a} mtu {mtu} type veth \
             peer name {b_end} netns {tag}-{b} mtu {mtu}"
        )));
        for (machine, end) in [(a, a_end), (b, b_end)] {
            let off = "tx off rx off gro off gso off tso off";
            self.on(machine, &format!("ethtool -K {end} {off}"));
            self.on(machine, &format!("ip link set {end} up"));
        }
    }

    /// Runs a command to its end; gives what it printed.
    #[track_caller]
    pub fn on(&self, machine: &str, command: &str) -> String {
        let output = self.command(machine, command).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{machine}: {command}: {said}{errors}"
        );
        said
    }

    pub fn start(&self, machine: &str, command: &str) -> Process {
        let mut command = self.command(machine, command);
        Process(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Starts a server on a machine, and waits until it listens for connections and datagrams:
    /// pings, which its kernel answers, say nothing of that.
    #[track_caller]
    pub fn serve(&mut self, machine: &str) {
        let server = self.start(machine, &peer(&format!("serve {machine}")));
        self.servers.push(server);
        let listens = (0..200).any(|_| {
            sleep(Duration::from_millis(50));
            self.on(machine, "ss -Hlntu sport = :8080").lines().count() == 2
        });
        assert!(listens, "{machine}: nobody listens on port 8080");
    }

    /// Starts a server that runs until the world ends.
    pub fn keep(&mut self, machine: &str, command: &str) {
        let server = self.start(machine, command);
        self.servers.push(server);
    }

    /// Ends processes of the program under test that were started by others than this process.
    pub fn end_strangers(&self) {
        for machine in &self.machines {
            let pids = Command::new("ip")
                .args(["netns", "pids", &self.space(machine)])
                .output();
            let pids = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            for pid in pids.unwrap_or_default().split_whitespace() {
                let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                if comm.trim() == "slb" {
                    sh(&format!("kill -KILL {pid}"));
                }
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.servers.clear();
        for machine in &self.machines {
            sh(&format!("ip netns del {}-{machine}", self.tag));
        }
    }
}

/// Returns a requirement of the tests that is missing here.
pub fn lacking(more: &[&str]) -> Option<String> {
    if !is_root() {
        return Some("network namespaces need root".to_owned());
    }
    let usual = ["ip", "sysctl", "curl", "python3", "ping"];
    let mut tools = usual.iter().chain(more);
    let missing = tools.find(|tool| !sh(&format!("command -v {tool}")))?;
    Some(format!("{missing} is not installed"))
}

/// Returns the log of the program under test, `m.log`.
pub fn log(world: &World) -> String {
    fs::read_to_string(world.path("m.log")).unwrap_or_default()
}

/// Waits until a condition holds, and fails with the log if it never does.
#[track_caller]
pub fn wait_until(world: &World, what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(45);
    while !is_so() {
        assert!(Instant::now() < end, "{what}: {}", log(world));
        sleep(Duration::from_millis(50));
    }
}

/// Returns the answer of `/readyz` on the machine `m`.
pub fn ready(world: &World) -> String {
    let curl = "curl -sS -m 2 http://127.0.0.1:9100/readyz";
    let output = world.command("m", curl).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn peer(arguments: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer.py");
    format!("python3 {} {arguments}", script.display())
}
