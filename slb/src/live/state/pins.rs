//! Pins of XDP links, which outlive the process.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use slb_control::Role;

/// Where the links of XDP programs are pinned, so that these go on while no process is there.
#[derive(Clone, Debug)]
pub(in crate::live) struct Pins {
    pub(in crate::live) directory: PathBuf,
    role: Role,
}

impl Pins {
    /// The directory `bpf` in the state's, where a BPF file system is mounted there; else one in
    /// /sys/fs/bpf.
    pub(in crate::live) fn find(state: &Path, role: Role) -> Option<Self> {
        let own = fs::canonicalize(state).ok()?.join("bpf");
        let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let is_mounted = |path: &Path| {
            mounted.lines().any(|line| {
                let mut halves = line.split(" - ");
                let place = halves.next().and_then(|half| half.split(' ').nth(4));
                let kind = halves.next().and_then(|half| half.split(' ').next());
                place.map(Path::new) == Some(path) && kind == Some("bpf")
            })
        };
        if is_mounted(&own) {
            return Some(Self {
                directory: own,
                role,
            });
        }
        let common = Path::new("/sys/fs/bpf");
        let directory = common.join("slb");
        let is_there = is_mounted(common)
            && (directory.is_dir() || fs::DirBuilder::new().mode(0o700).create(&directory).is_ok());
        is_there.then_some(Self { directory, role })
    }

    /// Returns the name of an interface's link.
    pub(in crate::live) fn name(&self, interface: &str) -> String {
        format!("{}-{interface}", self.role.name())
    }
}
