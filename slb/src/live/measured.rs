//! Metrics of what was measured beside packets: probes of backends, calls of VIPs, and which program runs since when.

use std::time::SystemTime;

use slb_control::Config;
use slb_control::probe::{PROBE_CLASSES, ProbeCounts, ProbeTallies, VipResults};

use crate::report::metrics::{Family, Histogram, Labels};

/// The program, and the time of its start.
pub(crate) fn of_process(role: &str, started: SystemTime) -> [Family; 2] {
    let labels = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("role", role.to_owned()),
        ("architecture", std::env::consts::ARCH.to_owned()),
    ];
    let started = started
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    [
        Family::gauge(
            "slb_build_info",
            "The running program: always 1",
            vec![(labels, 1.0)],
        ),
        Family::gauge(
            "slb_start_time_seconds",
            "Unix time of the start",
            vec![(Vec::new(), started.as_secs_f64())],
        ),
    ]
}

/// Backends that each rule has for new flows.
pub(super) fn of_rules(config: &Config) -> Family {
    let rules = config.rules.iter().enumerate();
    let sample = |(place, rule): (usize, &slb_control::config::Rule)| {
        let frontend = config.frontends.get(rule.frontend);
        let labels = vec![
            ("rule", rule.name.clone()),
            (
                "frontend",
                frontend.map(|own| own.name.clone()).unwrap_or_default(),
            ),
        ];
        (labels, config.backends_of_rule(place) as f64)
    };
    Family::gauge(
        "slb_rule_backends",
        "Backends that take new flows of a rule, by their probes and the configuration",
        rules.map(sample).collect(),
    )
}

/// Probes of backends: a sample for each rule that goes by the probe.
pub(super) fn of_probes(config: &Config, tallies: &ProbeTallies) -> [Family; 2] {
    let all = tallies.read();
    let (mut counts, mut times) = (Vec::new(), Vec::new());
    for rule in &config.rules {
        let pool = config.pools.get(rule.pool);
        let probe = rule.probe.and_then(|probe| config.probes.get(probe));
        let (Some(pool), Some(probe)) = (pool, probe) else {
            continue;
        };
        for backend in &pool.backends {
            let name = (pool.name.clone(), backend.name.clone(), probe.name.clone());
            let Some(own) = all.get(&name) else { continue };
            let labels = vec![
                ("rule", rule.name.clone()),
                ("pool", name.0),
                ("backend", name.1),
                ("probe", name.2),
            ];
            counts.extend(by_result(&labels, own));
            times.push((labels, histogram(own)));
        }
    }
    [
        Family::counter("slb_probes", "Probes of a backend, by their result", counts),
        Family::histogram(
            "slb_probe_duration_seconds",
            "Time until a probe was answered, or failed",
            times,
        ),
    ]
}

/// Calls of VIPs as a client would make them.
pub(super) fn of_vips(results: &VipResults) -> [Family; 3] {
    let (mut counts, mut times, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for (port, own, is_available) in results.read() {
        let labels = vec![
            ("frontend", port.frontend),
            ("rule", port.rule),
            ("address", port.address.to_string()),
            ("port", port.port.to_string()),
            ("protocol", "tcp".to_owned()),
        ];
        counts.extend(by_result(&labels, &own));
        if let Some(is_available) = is_available {
            last.push((labels.clone(), f64::from(u8::from(is_available))));
        }
        times.push((labels, histogram(&own)));
    }
    [
        Family::counter(
            "slb_vip_probes",
            "Calls of a VIP as a client, by their result",
            counts,
        ),
        Family::histogram(
            "slb_vip_probe_duration_seconds",
            "Time until a call of a VIP was answered, or failed",
            times,
        ),
        Family::gauge(
            "slb_vip_available",
            "1 if the last call of a VIP was answered: data path availability",
            last,
        ),
    ]
}

fn by_result(labels: &Labels, counts: &ProbeCounts) -> [(Labels, f64); 3] {
    [
        ("succeeded", counts.succeeded),
        ("failed", counts.failed),
        ("not_sent", counts.not_sent),
    ]
    .map(|(result, count)| {
        let mut labels = labels.clone();
        labels.push(("result", result.to_owned()));
        (labels, count as f64)
    })
}

fn histogram(counts: &ProbeCounts) -> Histogram {
    let count = counts.succeeded + counts.failed;
    let mut before = 0;
    let classes = PROBE_CLASSES.iter().zip(counts.within);
    let mut buckets: Vec<(f64, u64)> = classes
        .map(|(most, within)| {
            let own = within.saturating_sub(before);
            before = before.max(within);
            (most.as_secs_f64(), own)
        })
        .collect();
    buckets.push((f64::INFINITY, count.saturating_sub(before)));
    Histogram {
        sum: counts.took.as_secs_f64(),
        count,
        buckets,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_histogram_has_each_number_once() {
        let counts = ProbeCounts {
            succeeded: 5,
            failed: 2,
            not_sent: 1,
            within: [0, 1, 1, 4, 5, 5, 6, 6],
            took: Duration::from_millis(61_500),
        };
        let histogram = histogram(&counts);
        let own: Vec<u64> = histogram.buckets.iter().map(|(_, own)| *own).collect();
        assert_eq!(own, [0, 1, 0, 3, 1, 0, 1, 0, 1]);
        assert_eq!((histogram.count, histogram.sum), (7, 61.5));
        assert_eq!(histogram.buckets[0].0, 0.001);
        assert!(histogram.buckets[8].0.is_infinite());
    }
}
