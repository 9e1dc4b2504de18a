//! The Debian package: installed on machines that boot systemd, started, upgraded under downloads, and purged.
//!
//! A machine is a network namespace in which systemd runs on a copy of this machine's files: what is written goes to
//! memory, so each file that a package leaves behind is seen.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::fabric::{CLIENT, CLIENT6};
use common::lab::Io;
use common::sh;
use common::site::{DIP, DIP6, Site};
use common::world::{Process, World, lacking, peer};

const VIP: &str = "20.20.20.101";
const VIP6: &str = "2001:db8:20::101";
const OUT: &str = "20.20.20.200";
const OUT6: &str = "2001:db8:20::200";
const SIZE: usize = 500_000;
const RATE: &str = "100k";
const DOWNLOADS: usize = 60;
const OUTBOUND: usize = 20;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Builds the package of a version, without compression.
fn package(out: &Path, version: &str) -> PathBuf {
    let mut build = Command::new(root().join("packaging/deb/build"));
    build.args(["--program", env!("CARGO_BIN_EXE_slb"), "--version", version]);
    build.args(["--compression", "none", "--out"]).arg(out);
    let output = build.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// A machine of a world that has booted systemd.
struct Booted {
    /// The process that waits for systemd's end; `None` once it is gone.
    outer: Option<Process>,
    init: u32,
    /// The folder that has the machine's files.
    top: PathBuf,
}

impl Drop for Booted {
    fn drop(&mut self) {
        self.outer = None;
        sh(&format!("umount -l {}", self.top.display()));
    }
}

impl Booted {
    /// `packages` is a folder that is at /run/packages there.
    fn new(world: &World, machine: &str, packages: &Path) -> Self {
        let top = world.path(&format!("files-of-{machine}"));
        fs::create_dir(&top).unwrap();
        assert!(sh(&format!("mount -t tmpfs tmpfs {}", top.display())));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boot.sh");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &world.space(machine), "unshare"]);
        command.args(["-m", "-p", "-f", "-C", "-u", "-i", "--kill-child", "sh"]);
        command.arg(script).arg(&top).arg(packages);
        let log = fs::File::create(world.path(&format!("{machine}.boot"))).unwrap();
        command
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log);
        let outer = Process(command.spawn().unwrap());
        let parent = outer.0.id();
        let mut booted = Self {
            outer: Some(outer),
            init: 0,
            top,
        };
        let of_parent = format!("pgrep -P {parent}");
        booted.wait_until("systemd has booted", |own| {
            let child = Command::new("sh")
                .args(["-c", &of_parent])
                .output()
                .unwrap();
            let Ok(init) = String::from_utf8_lossy(&child.stdout).trim().parse() else {
                return false;
            };
            own.init = init;
            own.command("systemctl is-active basic.target")
                .stdout
                .starts_with(b"active")
        });
        booted
    }

    /// Runs a command in the machine.
    fn command(&self, command: &str) -> Output {
        let mut nsenter = Command::new("nsenter");
        nsenter.args([
            "-t",
            &self.init.to_string(),
            "-m",
            "-u",
            "-i",
            "-n",
            "-p",
            "-C",
            "-r",
            "-w",
        ]);
        nsenter
            .args(["sh", "-c", command])
            .env("DEBIAN_FRONTEND", "noninteractive");
        nsenter.output().unwrap()
    }

    fn journal(&self) -> String {
        let journal = self.command("journalctl -n 60 --no-pager -o cat").stdout;
        String::from_utf8_lossy(&journal).into_owned()
    }

    /// Runs a command that has to succeed, and returns its output.
    #[track_caller]
    fn on(&self, command: &str) -> String {
        let output = self.command(command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let is_well = output.status.success();
        assert!(is_well, "{command}: {text}{errors}\n{}", self.journal());
        text
    }

    #[track_caller]
    fn wait_until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so(self) {
            assert!(
                Instant::now() < end,
                "waited in vain: {what}\n{}",
                self.journal()
            );
            sleep(Duration::from_millis(100));
        }
    }

    /// The files that are others than this machine's, with what they are, but for logs, caches and the package
    /// manager's own.
    fn written(&self) -> BTreeMap<String, Vec<u8>> {
        const OTHERS: [&str; 6] = [
            "/var/lib/dpkg",
            "/var/log",
            "/var/cache",
            "/var/lib/systemd",
            "/tmp",
            "/var/tmp",
        ];
        // Former versions of lists, and their locks.
        const FORMER: [&str; 5] = [
            "/etc/passwd-",
            "/etc/shadow-",
            "/etc/group-",
            "/etc/gshadow-",
            "/etc/.pwd.lock",
        ];
        let upper = self.top.join("upper");
        let mut found = BTreeMap::new();
        collect(&upper, &upper, &mut found);
        found.retain(|path, content| {
            let is_others = OTHERS
                .iter()
                .any(|other| Path::new(path).starts_with(other));
            let is_the_same = describe(Path::new(path)).is_some_and(|here| here == *content);
            !is_others && !is_the_same && !FORMER.contains(&path.as_str())
        });
        found
    }

    fn main_pid(&self, unit: &str) -> String {
        self.on(&format!("systemctl show -P MainPID {unit}"))
            .trim()
            .to_owned()
    }
}

/// The kind and the content of a file; `None` where there is none.
fn describe(path: &Path) -> Option<Vec<u8>> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let kind = metadata.file_type();
    if kind.is_file() {
        return fs::read(path).ok();
    }
    if kind.is_symlink() {
        return Some(
            fs::read_link(path)
                .ok()?
                .into_os_string()
                .into_encoded_bytes(),
        );
    }
    let is_removed = metadata.rdev() == 0 && !kind.is_dir();
    Some(if is_removed {
        b"removed".to_vec()
    } else {
        b"a folder".to_vec()
    })
}

fn collect(folder: &Path, top: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let own = Path::new("/").join(path.strip_prefix(top).unwrap());
        if let Some(content) = describe(&path) {
            found.insert(own.display().to_string(), content);
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&path, top, found);
        }
    }
}

fn configuration(role: &str) -> String {
    let number = if role == "mux" { 11 } else { 101 };
    let mut text = format!(
        "[node]\nrole = \"{role}\"\nhash_seed = 7\nconnections = 4096\nflows = 4096\nmtu = 1600\n\
         underlay = [\"172.17.0.{number}\", \"fd00:17::{number}\"]\n\
         muxes = [\"172.17.0.11\", \"fd00:17::11\"]\n"
    );
    for (family, vip, out, dip, host) in [
        ("4", VIP, OUT, DIP, "172.17.0.101"),
        ("6", VIP6, OUT6, DIP6, "fd00:17::101"),
    ] {
        text += &format!(
            "[[frontend]]\nname = \"web{family}\"\naddress = \"{vip}\"\n\
             [[frontend]]\nname = \"out{family}\"\naddress = \"{out}\"\n\
             [[pool]]\nname = \"vms{family}\"\nvni = 5001\n\
             backends = [{{ name = \"vm1\", address = \"{dip}\", host = \"{host}\", \
             mac = \"02:00:0a:0a:01:0b\" }}]\n\
             [[rule]]\nname = \"http{family}\"\nfrontend = \"web{family}\"\n\
             pool = \"vms{family}\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
             backend_port = 8000\ntcp_reset = true\n\
             [[outbound_rule]]\nname = \"out{family}\"\nfrontends = [\"out{family}\"]\n\
             pool = \"vms{family}\"\ntcp_reset = true\n"
        );
    }
    text
}

/// Starts a server with a file to download.
fn serve(world: &World, machine: &str) -> Process {
    let directory = world.path(&format!("served-{machine}"));
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("blob"), vec![b'x'; SIZE]).unwrap();
    let server = world.start(
        machine,
        &peer(&format!("files {} 8000", directory.display())),
    );
    let end = Instant::now() + Duration::from_secs(30);
    while world
        .on(machine, "ss -Hlnt sport = :8000")
        .trim()
        .is_empty()
    {
        assert!(Instant::now() < end, "{machine} does not listen");
        sleep(Duration::from_millis(50));
    }
    server
}

/// Starts `count` downloads at once, half of them over IPv6.
fn download(
    world: &World,
    machine: &str,
    (ipv4, ipv6): (&str, &str),
    port: u16,
    count: usize,
) -> Process {
    let half = count / 2;
    let curl = format!(
        "curl -sS --no-progress-meter -Z --parallel-immediate --parallel-max {count} -m 60 \
         --limit-rate {RATE} -w '%{{size_download}}\\n' \
         -o /dev/null 'http://{ipv4}:{port}/blob?n=[1-{half}]' \
         -o /dev/null 'http://[{ipv6}]:{port}/blob?n=[1-{half}]' 2>/dev/null"
    );
    world.start(machine, &format!("sh -c \"{curl}\""))
}

/// The number of downloads that were whole.
fn whole(downloads: Process) -> usize {
    let size = SIZE.to_string();
    downloads
        .output()
        .lines()
        .filter(|line| **line == size)
        .count()
}

#[test]
#[ignore = "needs root"]
fn the_package_is_installed_started_upgraded_under_downloads_and_purged() {
    let tools = [
        "ethtool",
        "ss",
        "dpkg-deb",
        "nsenter",
        "unshare",
        "pgrep",
        "systemctl",
        "objdump",
        "strip",
    ];
    if let Some(why) = lacking(&tools) {
        skip!("{why}");
    }
    let site = Site::new(Io::Tun, "pk", (1, &[]), &[VIP, VIP6, OUT, OUT6]);
    let world = &site.world;
    let packages = world.path("packages");
    let files = [package(&packages, "0.0.1"), package(&packages, "0.0.2")];
    let names = files.map(|file| file.file_name().unwrap().to_str().unwrap().to_owned());
    let _servers = ["vm1", "client"].map(|machine| serve(world, machine));
    let mut machines = ["mux", "host"].map(|role| (role, Booted::new(world, role, &packages)));
    let install =
        |name: &str| format!("dpkg --force-unsafe-io --no-triggers -i /run/packages/{name}");

    let mut before = Vec::new();
    for (role, machine) in &mut machines {
        // Of a balancer that ran on this machine.
        machine.on("rm -rf /var/lib/slb /etc/slb");
        before.push(machine.written());
        assert!(!machine.command("getent passwd slb").status.success());
        machine.on(&install(&names[0]));
        // Nothing starts by itself, since there is no configuration.
        let unit = format!("slb-{role}");
        let state = machine
            .command(&format!("systemctl is-active {unit}"))
            .stdout;
        assert_eq!(String::from_utf8_lossy(&state), "inactive\n");
        assert_eq!(machine.on("stat -c '%U:%G %a' /etc/slb"), "root:slb 750\n");
        assert!(machine.on("slb --help").contains("slb"));
        let completed = "bash -c '. /usr/share/bash-completion/completions/slb; complete -p slb'";
        assert!(machine.on(completed).contains("_slb"));
        machine.on("test -s /usr/share/man/man1/slb-mux.1.gz");
        // What the package brought is as it was built.
        assert_eq!(machine.on("dpkg --verify slb"), "");
        let units = "mux host proxy controller".split(' ');
        for unit in units {
            machine.on(&format!(
                "systemd-analyze verify --man=no slb-{unit}.service"
            ));
        }

        fs::write(packages.join(format!("{role}.toml")), configuration(role)).unwrap();
        machine.on(&format!("cp /run/packages/{role}.toml /etc/slb/"));
        let devices = site.devices(role, 1);
        machine.on(&format!(
            "echo 'OPTIONS=\"{devices}\"' >/etc/default/{unit}"
        ));
        machine.on(&format!("systemctl enable --now {unit}"));
        machine.wait_until("it runs", |machine| {
            let state = machine
                .command(&format!("systemctl is-active {unit}"))
                .stdout;
            state == b"active\n"
        });
        let pid = machine.main_pid(&unit);
        // The values of an event are fields of the journal's entry.
        let entry = machine.on(&format!("journalctl -u {unit} SLB_EVENT=running -o json"));
        let entry: serde_json::Value = serde_json::from_str(&entry).unwrap();
        for (field, value) in [
            ("SLB_ROLE", *role),
            ("SLB_WORKERS", "1"),
            ("PRIORITY", "6"),
            ("SYSLOG_IDENTIFIER", "slb"),
            ("_PID", &pid),
        ] {
            assert_eq!(entry[field], value, "{field} of {entry}");
        }
        // A user of its own, with few capabilities.
        assert_eq!(machine.on(&format!("stat -c %U /proc/{pid}")), "slb\n");
        let rights = machine.on(&format!("grep CapEff /proc/{pid}/status"));
        // CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK and CAP_BPF: bits 12, 13, 14 and 39.
        assert_eq!(rights, "CapEff:\t0000008000007000\n");
        let alone = "mount -t tmpfs tmpfs /run/systemd && slb mux --io tun:slb9 --log journal /nowhere.toml";
        let alone = machine.command(&format!("unshare -m sh -c '{alone}'"));
        let why = String::from_utf8_lossy(&alone.stderr);
        assert!(why.contains("cannot reach systemd's journal"), "{why}");
        assert!(why.contains("/nowhere.toml"), "{why}");
        // Found without --socket, and closed to others.
        assert!(machine.on("slb status --once").contains(&**role));
        let socket = format!("/run/slb/slb-{role}.sock");
        assert_eq!(
            machine.on(&format!("stat -c '%U %a' {socket}")),
            "slb 600\n"
        );
    }

    let reach = |machine: &str, address: &str, port: u16| {
        let connect = format!(
            "python3 -c 'import socket; socket.create_connection((\"{address}\", {port}), 1)'"
        );
        let end = Instant::now() + Duration::from_secs(30);
        while !world
            .command(machine, &connect)
            .output()
            .unwrap()
            .status
            .success()
        {
            let journals: Vec<String> = machines.iter().map(|(_, own)| own.journal()).collect();
            assert!(
                Instant::now() < end,
                "{address} is not reached: {journals:#?}"
            );
        }
    };
    for (machine, addresses, port) in [
        ("client", [VIP, VIP6], 80),
        ("vm1", [CLIENT, CLIENT6], 8000),
    ] {
        addresses
            .iter()
            .for_each(|address| reach(machine, address, port));
    }

    let inbound = download(world, "client", (VIP, VIP6), 80, DOWNLOADS);
    let outbound = download(world, "vm1", (CLIENT, CLIENT6), 8000, OUTBOUND);
    sleep(Duration::from_secs(2));
    for (role, machine) in &machines {
        let unit = format!("slb-{role}");
        let old = machine.main_pid(&unit);
        machine.on(&install(&names[1]));
        let new = machine.main_pid(&unit);
        assert_ne!(old, new, "{role} goes on with the old program");
        assert_eq!(machine.on("dpkg-query -W -f '${Version}' slb"), "0.0.2-1");
        let status = machine.on("slb status --format json");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let imported = status["state"]["imported"].as_u64().unwrap();
        let all = DOWNLOADS + if *role == "host" { OUTBOUND } else { 0 };
        assert!(imported >= all as u64, "{role}: {}", status["state"]);
        // Options that were changed are kept.
        assert!(
            machine
                .on(&format!("cat /etc/default/{unit}"))
                .contains("slb0")
        );
    }
    assert_eq!([whole(inbound), whole(outbound)], [DOWNLOADS, OUTBOUND]);

    for ((role, machine), before) in machines.iter().zip(before) {
        machine.on("dpkg --force-unsafe-io --no-triggers --purge slb");
        assert!(
            !machine.command("pgrep -x slb").status.success(),
            "{role}: it still runs"
        );
        assert!(
            !machine.command("getent passwd slb").status.success(),
            "{role}"
        );
        assert!(
            !machine.command("getent group slb").status.success(),
            "{role}"
        );
        assert!(
            !machine.command("test -e /run/slb").status.success(),
            "{role}"
        );
        let (before, after): (Vec<_>, Vec<_>) = (
            before.into_keys().collect(),
            machine.written().into_keys().collect(),
        );
        assert_eq!(before, after, "{role}: files that are left");
    }
}

#[test]
fn the_packages_parts_are_what_the_program_writes() {
    for tool in ["dpkg-deb", "objdump", "strip", "gzip"] {
        if !sh(&format!("command -v {tool}")) {
            skip!("{tool} is not installed");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = package(folder.path(), "0.0.1");
    assert!(
        file.ends_with("slb_0.0.1-1_amd64.deb") || file.to_str().unwrap().contains("slb_0.0.1-1_")
    );
    let unpacked = folder.path().join("unpacked");
    let unpack = format!("dpkg-deb -R {} {}", file.display(), unpacked.display());
    assert!(sh(&unpack));
    let field = |name: &str| {
        let control = fs::read_to_string(unpacked.join("DEBIAN/control")).unwrap();
        let prefix = format!("{name}: ");
        let line = control.lines().find_map(|line| line.strip_prefix(&prefix));
        line.unwrap_or_else(|| panic!("{name}: {control}"))
            .to_owned()
    };
    assert!(field("Depends").contains("libc6 (>= 2."));
    assert!(field("Installed-Size").parse::<u64>().unwrap() > 1000);
    let conffiles = fs::read_to_string(unpacked.join("DEBIAN/conffiles")).unwrap();
    assert_eq!(conffiles.lines().count(), 4, "{conffiles}");
    for script in ["postinst", "prerm", "postrm"] {
        let path = unpacked.join("DEBIAN").join(script);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o755
        );
        assert!(sh(&format!("sh -n {}", path.display())), "{script}");
    }
    // Each unit has a page, and the page of each role's service names its command.
    for role in ["mux", "host", "proxy", "controller"] {
        let unit = unpacked.join(format!("usr/lib/systemd/system/slb-{role}.service"));
        let unit = fs::read_to_string(unit).unwrap();
        assert!(
            unit.contains(&format!("ExecStart=/usr/bin/slb {role} ")),
            "{unit}"
        );
        assert!(
            unpacked
                .join(format!("usr/share/man/man1/slb-{role}.1.gz"))
                .exists()
        );
        assert!(unit.contains(&format!("EnvironmentFile=/etc/default/slb-{role}")));
        // The place of its socket, where `slb status` looks.
        assert!(unit.contains("RuntimeDirectory=slb\n"), "{unit}");
    }
    // The same input gives the same package.
    let again = tempfile::tempdir().unwrap();
    let second = package(again.path(), "0.0.1");
    assert!(fs::read(&file).unwrap() == fs::read(second).unwrap());
}
