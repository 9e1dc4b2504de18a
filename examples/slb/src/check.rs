//! `slb check`: is the configuration good, and what does it come to?

use slb_control::{Config, format_duration};
use slb_core::service::BackendState;

use crate::Failure;
use crate::cli::{BalancerOptions, CheckOptions};

pub(crate) fn run(options: &CheckOptions) -> Result<(), Failure> {
    let config = load(&options.config)?;
    config.snapshot(None).map_err(Failure::usage)?;
    println!("{}: good", options.config.display());
    for rule in &config.rules {
        let (frontend, pool) = (&config.frontends[rule.frontend], &config.pools[rule.pool]);
        let serving = pool
            .backends
            .iter()
            .filter(|backend| backend.weight > 0 && backend.state == BackendState::Healthy);
        let port = match rule.frontend_port {
            0 => "every port".to_owned(),
            port => format!("port {port}"),
        };
        println!(
            "  rule {:?}: {} {} of {} to pool {:?} ({} of {} backends serve, {}, idle {})",
            rule.name,
            rule.protocol.name(),
            port,
            frontend.address,
            pool.name,
            serving.count(),
            pool.backends.len(),
            rule.distribution.name(),
            format_duration(rule.idle_timeout),
        );
    }
    Ok(())
}

/// Reads a configuration.
pub(crate) fn load(path: &std::path::Path) -> Result<Config, Failure> {
    Config::from_path(path).map_err(|errors| Failure {
        status: 2,
        message: errors.to_string(),
    })
}

/// Reads the configuration of a balancer, its options applied.
pub(crate) fn load_balancer(options: &BalancerOptions) -> Result<Config, Failure> {
    let mut config = load(&options.config)?;
    if options.stateless {
        config.node.flows = 0;
    }
    for (names, state) in [
        (&options.down, BackendState::Unhealthy),
        (&options.drain, BackendState::Draining),
    ] {
        for name in names {
            let backend = config.backend_mut(name);
            let missing = || Failure::usage(format!("there is no backend {name:?}"));
            backend.ok_or_else(missing)?.state = state;
        }
    }
    Ok(config)
}
