//! `slb fleet forget`: forgets the agent of a host.

use std::thread::sleep;
use std::time::{Duration, Instant};

use slb_fleet::object::{Agents, Forget, Keys, Object as _};
use slb_fleet::rollout::Side;
use slb_fleet::store::{Operation, Store};

use super::show::read;
use super::wanted::plain;
use crate::Failure;
use crate::cli::ForgetOptions;

/// The interval of checks whether the agent is forgotten.
const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for a controller: longer than the lease of one that was killed.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn run(options: &ForgetOptions) -> Result<(), Failure> {
    let store = super::open(&options.store)?;
    let keys = Keys::new(&options.store.access.cluster);
    let name = &options.name;
    let agents =
        || read::<Agents>(&*store, &keys.key("state/agents")).map(Option::unwrap_or_default);
    let known = agents()?;
    if known.of(name).is_none() {
        let names: Vec<String> = known.agents.keys().map(|name| plain(name)).collect();
        return Err(Failure::failed(match names.as_slice() {
            [] => "no host agent has ever reported to this fleet".to_owned(),
            names => format!(
                "expected a host agent's name ({}), got {name:?}",
                names.join(", ")
            ),
        }));
    }
    let own = keys.of_node("node", Side::Host.name(), name);
    if store.get(&own).map_err(Failure::failed)?.is_some() {
        return Err(Failure::failed(format!(
            "host {name} is still running: stop its agent first (10 s after a kill, it counts as gone)"
        )));
    }
    let key = keys.forget(name);
    let asked = [Operation::put(&key, Forget::default().write())];
    store.commit(&[], &asked).map_err(Failure::failed)?;
    let begin = Instant::now();
    while store.get(&key).map_err(Failure::failed)?.is_some() {
        if begin.elapsed() >= PATIENCE {
            let taken_back = store.commit(&[], &[Operation::Delete(key)]);
            taken_back.map_err(Failure::failed)?;
            let seconds = PATIENCE.as_secs();
            return Err(Failure::failed(format!(
                "host {name} is not forgotten: no controller has led for {seconds} s"
            )));
        }
        sleep(LOOK);
    }
    match agents()?.of(name) {
        None => say_line!("forgotten: host {name}"),
        Some(_) => Err(Failure::failed(format!(
            "host {name} is running again, and not forgotten"
        ))),
    }
}
