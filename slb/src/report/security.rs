//! Counters of the rules of access lists, by the configuration's names.

use slb_control::Config;
use slb_core::nat::Direction;
use slb_core::spec::Access;
use slb_core::stats::SecurityCounters;

/// A rule of an access list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SecurityLine {
    pub(crate) list: String,
    pub(crate) rule: String,
    pub(crate) direction: &'static str,
    pub(crate) access: Access,
    pub(crate) priority: u16,
    pub(crate) counters: SecurityCounters,
}

/// The rules of a configuration's lists with what they counted: `counted` has each list's own rules, then its
/// default ones. None where the node has no vm with a list, and so no counters.
pub(crate) fn lines(config: &Config, counted: &[Vec<SecurityCounters>]) -> Vec<SecurityLine> {
    config.with_spec(|spec| {
        let lists = spec.security_lists.iter().zip(counted);
        let lines = lists.flat_map(|(list, counted)| {
            let rules = list.all_rules().zip(counted);
            rules.map(|(rule, &counters)| SecurityLine {
                list: list.name.to_owned(),
                rule: rule.name.to_owned(),
                direction: match rule.direction {
                    Direction::Inward => "inbound",
                    Direction::Outward => "outbound",
                },
                access: rule.access,
                priority: rule.priority,
                counters,
            })
        });
        lines.collect()
    })
}
