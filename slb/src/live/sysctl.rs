//! Settings of the kernel without which it drops what goes through a TUN device.
//!
//! ```text
//!  client ─► eth0 ─ route to the VIP ─► slb0 (TUN) ─► mux
//!            eth0 ◄──── forwarded ───── slb0       ◄─ VXLAN, from the node's own address
//! ```
//! Packets out of the device have this machine's own address as their source, so the kernel takes
//! it for forged unless the device's `accept_local` is set, and `rp_filter` is off, or loose and
//! the device has an address. It forwards packets out of the device if the device's `forwarding` is
//! set. These are settings of the device, which belongs to this process, so they are set.
//! `ip_forward` is the whole machine's: if it is off, a warning says so.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use slb_control::probe::CALLER_PORTS;
use slb_control::{Config, Role};
use slb_io_afxdp::{Link, Neighbours};
use tracing::{info, warn};

use super::device::{Plan, own_addresses};
use crate::Failure;

mod followed;

pub(super) use self::followed::{Followed, tell_apart};

/// `rp_filter`: a source has to be reached by the interface that it comes by.
const STRICT: u32 = 1;
/// `rp_filter`: a source has to be reached by any interface.
const LOOSE: u32 = 2;

/// The settings under `/proc/sys`, such as `net.ipv4.ip_forward`; a device's name may have dots in it.
struct Setting {
    /// The parts of the path before and behind the device's name.
    parts: (&'static str, &'static str),
    device: String,
}

impl Setting {
    fn of(field: &'static str, device: &str) -> Self {
        Self {
            parts: ("net/ipv4/conf", field),
            device: device.to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        let (before, field) = self.parts;
        PathBuf::from("/proc/sys")
            .join(before)
            .join(&self.device)
            .join(field)
    }

    fn read(&self) -> u32 {
        self.present().unwrap_or(0)
    }

    /// The value; `None` where there is no such setting, such as of a device that is gone.
    fn present(&self) -> Option<u32> {
        fs::read_to_string(self.path()).ok()?.trim().parse().ok()
    }

    /// The name as sysctl(8) takes it: dots of the device's name are slashes there.
    fn name(&self) -> String {
        let (before, field) = self.parts;
        let (before, device) = (before.replace('/', "."), self.device.replace('.', "/"));
        format!("{before}.{device}.{field}")
    }

    fn set(&self, value: u32, why: &str) -> Result<(), Failure> {
        self.write(value, why)?;
        info!("set {} = {value}, since {why}", self.name());
        Ok(())
    }

    fn write(&self, value: u32, why: &str) -> Result<(), Failure> {
        fs::write(self.path(), value.to_string()).map_err(|error| {
            let name = self.name();
            Failure::failed(format!(
                "{name} = {value} is needed, since {why}, and cannot be set: {error} (sysctl -w {name}={value})"
            ))
        })
    }
}

/// A setting that is not as a device needs it, the value that it needs, and the reason.
type Need = (Setting, u32, &'static str);

/// Sets what the TUN devices of a plan need, as far as they are there.
///
/// # Errors
/// A setting is missing and cannot be set: it is named.
pub(super) fn prepare(plan: &Plan, config: &Config) -> Result<(), Failure> {
    let devices = plan.routed_devices();
    if devices.is_empty() {
        return Ok(());
    }
    let from_own = sends_from_own(config);
    for &device in &devices {
        for (setting, value, why) in needed_by_tun(device, config, from_own) {
            setting.set(value, why)?;
        }
    }
    Ok(())
}

/// Returns true if packets leave with an address of this machine as their source.
fn sends_from_own(config: &Config) -> bool {
    let underlay = config.node.ipv4.map(IpAddr::from);
    let own = own_addresses().unwrap_or_default();
    underlay.is_some_and(|underlay| own.contains(&underlay))
}

/// The settings of a TUN device that are not as they have to be.
fn needed_by_tun(device: &str, config: &Config, from_own: bool) -> Vec<Need> {
    let mut needs = Vec::new();
    let of = |field| (Setting::of(field, device), Setting::of(field, "all").read());
    let (accept_local, of_all) = of("accept_local");
    if from_own && accept_local.read() == 0 && of_all == 0 {
        let why = "packets come out of it from an address of this machine";
        needs.push((accept_local, 1, why));
    }
    needs.extend(needed_by_routed(device));
    let (forwarding, _) = of("forwarding");
    if forwarding.read() == 0 {
        needs.push((forwarding, 1, "packets that come out of it are forwarded"));
    }
    let disable_ipv6 = Setting {
        parts: ("net/ipv6/conf", "disable_ipv6"),
        device: device.to_owned(),
    };
    if has_family(config, true) && disable_ipv6.read() != 0 {
        needs.push((disable_ipv6, 0, "IPv6 packets come out of it"));
    }
    needs
}

/// Returns true if packets of a family go through the devices: IPv6, or IPv4.
fn has_family(config: &Config, is_ipv6: bool) -> bool {
    let own = match is_ipv6 {
        true => config.node.ipv6.is_some(),
        false => config.node.ipv4.is_some(),
    };
    let vips = config.frontends.iter().map(|frontend| frontend.address);
    let publics = config.public_addresses.iter().map(|public| public.address);
    own || vips
        .chain(publics)
        .any(|address| address.is_ipv6() == is_ipv6)
}

/// Sets what a TUN device needs that a proxy gives packets to which the kernel routes. It forwards them where
/// the machine does (`net.ipv4.ip_forward`).
///
/// # Errors
/// A setting is missing and cannot be set: it is named.
pub(super) fn prepare_routed(device: &str) -> Result<(), Failure> {
    if let Some((setting, value, why)) = needed_by_routed(device) {
        setting.set(value, why)?;
    }
    if let Some(why) = lacks_any_address(device) {
        warn!("{why}");
    }
    Ok(())
}

/// The setting of a device whose packets the kernel routes that is not as it has to be.
fn needed_by_routed(device: &str) -> Option<Need> {
    // The larger of the two counts.
    let (rp_filter, of_all) = (
        Setting::of("rp_filter", device),
        Setting::of("rp_filter", "all").read(),
    );
    let why = "answers to its packets do not come back by it";
    if of_all == 0 && rp_filter.read() != 0 {
        return Some((rp_filter, 0, why));
    }
    (rp_filter.read().max(of_all) == STRICT).then_some((rp_filter, LOOSE, why))
}

/// Returns the reason why the kernel drops the IPv4 packets of a device, if it does: it checks
/// their sources, and the device has no address.
fn lacks_address(device: &str, config: &Config) -> Option<String> {
    lacks_any_address(device).filter(|_| has_family(config, false))
}

fn lacks_any_address(device: &str) -> Option<String> {
    let of_all = Setting::of("rp_filter", "all").read();
    (of_all != 0 && !has_ipv4(device)).then(|| {
        format!(
            "net.ipv4.conf.all.rp_filter is {of_all}: the kernel drops packets out of {device} while it has no IPv4 address (ip address add ADDRESS dev {device}, or sysctl -w net.ipv4.conf.all.rp_filter=0)"
        )
    })
}

/// Returns true if an interface has an IPv4 address: without one, the kernel finds no source valid
/// there unless `rp_filter` is off.
fn has_ipv4(device: &str) -> bool {
    let index = Link::find(device).ok().map(|link| link.index);
    let addresses = Neighbours::open().and_then(|tables| tables.addresses_by_interface());
    let mut addresses = addresses.unwrap_or_default().into_iter();
    addresses.any(|(of, address)| Some(of) == index && address.is_ipv4())
}

/// Says where the machine forwards nothing to the devices: packets for VIPs that come in by other interfaces
/// are lost then.
pub(super) fn warn_of_machine(plan: &Plan, config: &Config) {
    for why in machine_settings(plan, config).into_iter().flatten() {
        warn!("{why}");
    }
}

/// Returns the reasons why packets for VIPs from other interfaces are lost, if they are: those of
/// IPv4, and those of IPv6.
fn machine_settings(plan: &Plan, config: &Config) -> [Option<String>; 2] {
    let devices = plan.routed_devices();
    if devices.is_empty() {
        return [None, None];
    }
    let vips = config.outside_addresses();
    let vips = vips.map(|address| address.is_ipv6());
    let families: BTreeSet<bool> = vips.collect();
    let entries = fs::read_dir("/proc/sys/net/ipv4/conf")
        .into_iter()
        .flatten();
    let mut others = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !["all", "default", "lo"].contains(&&**name) && !devices.contains(&&**name));
    let forwards = |name: String| Setting::of("forwarding", &name).read() != 0;
    let devices = devices.join(", ");
    let ipv4 = (families.contains(&false) && !others.any(forwards)).then(|| {
        format!(
            "no other interface forwards IPv4: packets for VIPs that arrive elsewhere do not reach {devices} \
             (sysctl -w net.ipv4.ip_forward=1)"
        )
    });
    let setting = Setting {
        parts: ("net/ipv6/conf", "forwarding"),
        device: "all".to_owned(),
    };
    let ipv6 = (families.contains(&true) && setting.read() == 0).then(|| {
        format!(
            "no interface forwards IPv6: packets for VIPs that arrive elsewhere do not reach {devices} \
             (sysctl -w {}=1)",
            setting.name()
        )
    });
    [ipv4, ipv6]
}

/// Fails where the kernel drops the answers to calls of announced VIPs: they come in by the fabric's interface, and the
/// kernel's routes to the VIPs lead to the one that announces them.
///
/// # Errors
/// The setting that is in the way is named.
pub(super) fn expect_answers(config: &Config, device: &str) -> Result<(), Failure> {
    let mut vips = config.frontends.iter().map(|own| own.address);
    let setting = Setting::of("rp_filter", device);
    // The larger of the two counts. IPv6 has no such setting.
    let value = setting.read().max(Setting::of("rp_filter", "all").read());
    if value != STRICT || !vips.any(|vip| vip.is_ipv4()) {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "--probe-vips with --announce: the kernel drops answers of VIPs, whose routes lead to another interface than \
         {device}: expected {0} = {LOOSE}, got {value} (sysctl -w {0}={LOOSE})",
        setting.name()
    )))
}

/// Warns where the kernel may have a mux's probes come from ports that VIPs are called from: host agents over AF_XDP
/// keep the answers for those.
pub(super) fn warn_of_ports(config: &Config) {
    let read = |field: &str| {
        let path = PathBuf::from("/proc/sys/net/ipv4").join(field);
        fs::read_to_string(path).unwrap_or_default()
    };
    let (range, reserved) = (read("ip_local_port_range"), read("ip_local_reserved_ports"));
    if config.node.role == Role::Mux && may_choose(&CALLER_PORTS, &range, &reserved) {
        let (first, last) = (CALLER_PORTS.start(), CALLER_PORTS.end());
        warn!(
            "the kernel may probe backends from ports {first} to {last}: host agents over AF_XDP mistake answers to these for answers of VIPs, and the probes fail (sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last})"
        );
    }
}

/// Returns true if the kernel chooses any of some ports, by its `ip_local_port_range` and `ip_local_reserved_ports`.
fn may_choose(ports: &RangeInclusive<u16>, range: &str, reserved: &str) -> bool {
    let mut ends = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return false;
    };
    let reserved: Vec<RangeInclusive<u16>> = reserved
        .trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .collect();
    let mut chosen = ports.clone().filter(|port| (first..=last).contains(port));
    chosen.any(|port| !reserved.iter().any(|range| range.contains(&port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_the_kernel_may_choose_are_in_its_range_and_not_reserved() {
        for (range, reserved, expected) in [
            ("32768\t60999\n", "\n", false),
            ("1024\t65535\n", "\n", true),
            ("62463 62463", "", true),
            ("62464 65535", "", false),
            ("1024 65535", "61440-62463\n", false),
            ("1024 65535", "8080,61440-62000,62001-62463", false),
            ("1024 65535", "61440-62462", true),
            ("", "", false),
        ] {
            assert_eq!(
                may_choose(&CALLER_PORTS, range, reserved),
                expected,
                "{range} {reserved}"
            );
        }
    }

    #[test]
    fn settings_have_the_names_that_sysctl_takes() {
        let setting = Setting::of("rp_filter", "eth0.7");
        assert_eq!(setting.name(), "net.ipv4.conf.eth0/7.rp_filter");
        let path = setting.path();
        assert_eq!(
            path.to_str(),
            Some("/proc/sys/net/ipv4/conf/eth0.7/rp_filter")
        );
    }

    #[test]
    fn what_cannot_be_set_is_named_with_its_cure() {
        let setting = Setting::of("accept_local", "no-such-device");
        let failure = setting.set(1, "it is a test").unwrap_err().to_string();
        for part in [
            "net.ipv4.conf.no-such-device.accept_local = 1 is needed, since it is a test, and cannot be set: ",
            "(sysctl -w net.ipv4.conf.no-such-device.accept_local=1)",
        ] {
            assert!(failure.contains(part), "{failure}");
        }
    }
}
