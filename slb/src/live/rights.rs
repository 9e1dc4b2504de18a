//! The rights of this process.

use std::fs;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::Failure;

/// The capabilities that AF_XDP needs, and their bits.
const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13), ("CAP_BPF", 39)];

/// Returns an error that names missing capabilities.
pub(super) fn expect_all() -> Result<(), Failure> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    Err(Failure::failed(format!(
        "AF_XDP takes CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF; missing: {missing} (run it as root, from \
         the systemd unit, or after: setcap cap_net_admin,cap_net_raw,cap_bpf,cap_ipc_lock+ep slb)"
    )))
}

/// Raises the limit on locked memory as far as this process may: where CAP_IPC_LOCK is missing, the
/// sockets' memory counts.
pub(super) fn raise_locked_memory() {
    let mut limit = getrlimit(Resource::Memlock);
    limit.current = limit.maximum;
    // Where it may not, the sockets say what they lack.
    let _ = setrlimit(Resource::Memlock, limit);
}

/// Raises the limit on open files as far as this process may, and gives what it is then: each probe that is
/// out is one.
pub(super) fn raise_open_files() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    open_files()
}

/// Returns the number of files that this process may have open.
pub(super) fn open_files() -> usize {
    let now = getrlimit(Resource::Nofile).current;
    now.and_then(|now| usize::try_from(now).ok())
        .unwrap_or(usize::MAX)
}

/// Returns a hint to append to a refusal.
pub(super) fn hint() -> &'static str {
    match missing().contains(&"CAP_NET_ADMIN") {
        true => " (CAP_NET_ADMIN is missing)",
        false => "",
    }
}

fn missing() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    let has = |bit: u32| effective.is_none_or(|bits| bits >> bit & 1 == 1);
    let missing = NEEDED.iter().filter(|(_, bit)| !has(*bit));
    missing.map(|(name, _)| *name).collect()
}
