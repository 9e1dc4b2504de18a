//! Settings that an operator or another program changes while the program runs: those of its own devices are set
//! again, and those of the machine are reported.

use slb_control::Config;
use tracing::{info, warn};

use super::{
    lacks_address, machine_settings, needed_by_routed, needed_by_tun, prepare, sends_from_own,
};
use crate::live::device::Plan;
use slb_control::lasting::Lasting;

/// The settings of the kernel, followed.
#[derive(Debug, Default)]
pub(in crate::live) struct Followed {
    /// Settings that are set again and again, as somebody else changes them.
    changed: Lasting,
    /// True if packets left with an address of this machine when it was last looked; `None` before the first time.
    sent_from_own: Option<bool>,
    /// True for the families that the machine was seen to forward: IPv4 and IPv6.
    forwarded: [bool; 2],
}

impl Followed {
    /// Sets the settings of the devices again that are not as they have to be; `routed` is the device by which a
    /// proxy gives packets to the kernel. Returns why packets are lost, where the settings cannot be helped.
    pub(in crate::live) fn look(
        &mut self,
        plan: &Plan,
        config: &Config,
        routed: Option<&str>,
    ) -> Vec<String> {
        let devices = plan.routed_devices();
        let from_own = !devices.is_empty() && sends_from_own(config);
        // An address that was added asks for a setting that nobody has changed.
        let before = self.sent_from_own.replace(from_own);
        if from_own && before == Some(false) {
            let _ = prepare(plan, config);
        }
        let mut needs = Vec::new();
        for &device in &devices {
            needs.extend(needed_by_tun(device, config, from_own));
        }
        needs.extend(routed.into_iter().flat_map(needed_by_routed));
        let mut troubles = Vec::new();
        for (setting, value, why) in needs {
            let name = setting.name();
            // A device that was deleted a moment ago has no settings.
            let Some(found) = setting.present() else {
                continue;
            };
            match setting.write(value, why) {
                Ok(()) if self.changed.is_due(&name) => {
                    warn!("{name} was changed to {found}: it is set to {value} again, since {why}");
                }
                Ok(()) => {}
                Err(failure) => troubles.push(failure.to_string()),
            }
        }
        troubles.extend(
            devices
                .iter()
                .filter_map(|&device| lacks_address(device, config)),
        );
        troubles.extend(self.look_at_machine(plan, config));
        troubles
    }

    /// Returns which families the machine forwarded and forwards no more.
    fn look_at_machine(&mut self, plan: &Plan, config: &Config) -> Vec<String> {
        let missing = machine_settings(plan, config);
        let mut troubles = Vec::new();
        for (forwarded, missing) in self.forwarded.iter_mut().zip(missing) {
            match missing {
                // Where nothing was ever forwarded, clients may be on this machine.
                Some(why) if *forwarded => troubles.push(why),
                Some(_) => {}
                None => *forwarded = true,
            }
        }
        troubles
    }
}

/// The troubles that begin and end, each logged once.
pub(in crate::live) fn tell_apart(before: &[String], now: &[String]) {
    for new in now.iter().filter(|new| !before.contains(new)) {
        warn!("{new}");
    }
    for old in before.iter().filter(|old| !now.contains(old)) {
        info!("no longer so: {old}");
    }
}
