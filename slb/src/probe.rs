//! `slb probe`: asks each backend once, as a running balancer would.

use std::time::{Duration, Instant};

use slb_control::probe::{Asker, ProbeFailure, Target, targets};

use crate::Failure;
use crate::check::load;
use crate::cli::ProbeOptions;

pub(crate) fn run(options: &ProbeOptions) -> Result<(), Failure> {
    let config = load(options.config.path())?;
    let asker = Asker::new(&config.node.probe_sources);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(Failure::failed)?;
    let targets = targets(&config);
    say_line!(
        "{:<16} {:<24} {:<16} {:>8}  answer",
        "probe",
        "address",
        "backend",
        "ms"
    )?;
    // All at once: each takes its timeout at most.
    let asked: Vec<_> = targets
        .iter()
        .map(|(target, _)| runtime.spawn(timed(asker.clone(), target.clone())))
        .collect();
    let mut unwell = 0;
    for ((target, names), asked) in targets.iter().zip(asked) {
        let (took, answer) = runtime.block_on(asked).map_err(Failure::failed)?;
        unwell += usize::from(answer.is_err());
        let answer = answer.map_or_else(|failure| failure.to_string(), |()| "well".to_owned());
        for (pool, backend) in names {
            say_line!(
                "{:<16} {:<24} {:<16} {:>8.1}  {answer}",
                target.probe.name,
                std::net::SocketAddr::new(target.address, target.probe.port).to_string(),
                format!("{pool}/{backend}"),
                took.as_secs_f64() * 1e3,
            )?;
        }
    }
    match unwell {
        0 => Ok(()),
        unwell => Err(Failure::failed(format!(
            "{unwell} of {} are unhealthy",
            targets.len()
        ))),
    }
}

async fn timed(asker: Asker, target: Target) -> (Duration, Result<(), ProbeFailure>) {
    let begin = Instant::now();
    let answer = asker.ask(&target).await;
    (begin.elapsed(), answer)
}
