//! Files that a user names and that are no regular files: a FIFO would block its reader for ever.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
#[cfg(feature = "live")]
use std::thread::sleep;
#[cfg(feature = "live")]
use std::time::{Duration, Instant};

use crate::common::sh;
#[cfg(feature = "live")]
use crate::common::world::Process;

/// A directory with a file of each type; `web.toml` and `sample.pcap` are what their names say.
struct Desk {
    folder: tempfile::TempDir,
    _socket: UnixListener,
}

/// The files that no command reads, and what messages call them.
const OTHERS: [(&str, &str); 5] = [
    ("fifo", "a FIFO"),
    ("link", "a FIFO"),
    ("folder", "a directory"),
    ("socket", "a socket"),
    ("device", "a character device"),
];

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(sh(&format!("mkfifo {}", at("fifo").display())));
        symlink(at("fifo"), at("link")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        symlink("/dev/zero", at("device")).unwrap();
        let socket = UnixListener::bind(at("socket")).unwrap();
        for name in ["web.toml", "sample.pcap"] {
            let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
            fs::copy(example.join(name), at(name)).unwrap();
        }
        Self {
            folder,
            _socket: socket,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command in the directory, for ten seconds at most.
    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new("timeout");
        command.args(["10", env!("CARGO_BIN_EXE_slb")]);
        command.args(arguments.split_whitespace());
        let command = command.current_dir(self.folder.path()).stdin(Stdio::null());
        command.output().unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn commands_refuse_files_that_are_no_regular_ones() {
    let desk = Desk::new();
    let mut commands = vec![
        "check X",
        "diff X web.toml",
        "diff web.toml X",
        "explain --config X tcp 1.2.3.4:50000 20.20.20.100:80",
        "replay --config X --in sample.pcap",
        "replay --config web.toml --in X",
        "init --from X",
    ];
    if cfg!(feature = "azure") {
        commands.extend(["import X", "import web.toml --inventory X"]);
    }
    if cfg!(feature = "live") {
        commands.extend([
            "mux X --io tun:slb0",
            "state import X --state folder",
            "probe X",
        ]);
    }
    for command in commands {
        for (name, kind) in OTHERS {
            let output = desk.run(&command.replace('X', name));
            let (said, code) = (said(&output), output.status.code());
            assert!(matches!(code, Some(1 | 2)), "{command} {name}: {said}");
            let expected = format!("expected a regular file, got {kind}");
            let is_named = said.contains(&expected) && said.contains(name);
            assert!(is_named, "{command} {name}: {said}");
        }
    }
}

/// Commands read any file that a shell passes to them.
#[test]
fn pipes_that_the_caller_made_are_read() {
    let desk = Desk::new();
    let web = fs::read(desk.path("web.toml")).unwrap();
    for name in ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
        let command = command.args(["check", name]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&web).unwrap();
        assert!(child.wait_with_output().unwrap().status.success(), "{name}");
    }
}

/// A running program refuses them, and reads the file that comes after.
#[cfg(feature = "live")]
#[test]
#[ignore = "needs root"]
fn a_fifo_in_place_of_the_file_of_a_running_program_is_refused() {
    use crate::common::world::{World, lacking, log, wait_until};
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let world = World::new("ff", &["m"]);
    let web = include_str!("../../examples/web.toml").replace("flows", "# flows");
    let path = world.path("m.toml");
    fs::write(&path, &web).unwrap();
    let command = format!(
        "{} mux {} --io tun:slb0 --status {} 2>>{}",
        env!("CARGO_BIN_EXE_slb"),
        path.display(),
        world.path("m.sock").display(),
        world.path("m.log").display()
    );
    let mux: Process = world.start("m", &command);
    wait_until(&world, "it runs", || log(&world).contains("running"));
    let refused = "the configuration is unchanged";
    for (number, (make, kind)) in [("mkfifo", "a FIFO"), ("mkdir", "a directory")]
        .into_iter()
        .enumerate()
    {
        fs::remove_file(&path).unwrap();
        assert!(sh(&format!("{make} {}", path.display())));
        mux.signal("HUP");
        wait_until(&world, "it is refused", || {
            log(&world).contains(&format!("expected a regular file, got {kind}"))
        });
        assert!(log(&world).contains(refused), "{}", log(&world));
        assert!(sh(&format!("rm -r {}", path.display())));
        fs::write(&path, format!("{web}\n# {number}\n")).unwrap();
        let begin = Instant::now();
        let in_place = || log(&world).matches("configuration in place").count();
        while in_place() <= number {
            assert!(begin.elapsed() < Duration::from_secs(20), "{}", log(&world));
            sleep(Duration::from_millis(50));
        }
    }
    mux.signal("TERM");
    mux.finish();
}
