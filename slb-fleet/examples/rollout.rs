//! A fleet in one process, over a store in memory: a controller that leads, a host agent's node, and a configuration
//! that reaches it.
//!
//! ```sh
//! cargo run -p slb-fleet --example rollout
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slb_fleet::document::Spec;
use slb_fleet::fetch;
use slb_fleet::leader::{Leader, LeaderOptions};
use slb_fleet::node::{Node, NodeOptions};
use slb_fleet::object::Keys;
use slb_fleet::rollout::{Side, Stage};
use slb_fleet::store::{MemoryStore, Store};

const CLUSTER: &str = "dublin";
const SPEC: &str = r#"
    [[frontend]]
    name = "web"
    address = "203.0.113.80"

    [[pool]]
    name = "servers"
    vni = 5001
    backends = [{ name = "vm1", address = "10.10.1.11", host = "172.16.0.101" }]

    [[rule]]
    name = "http"
    frontend = "web"
    pool = "servers"
    protocol = "tcp"
    frontend_port = 80
"#;

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default()); // `EtcdStore` in production
    let spec = Spec::parse("fleet.toml", SPEC)?;
    fetch::change(&*store, &Keys::new(CLUSTER), |_| Ok(spec.clone()))?;

    let node = Node::start(
        Arc::clone(&store),
        NodeOptions {
            cluster: CLUSTER.to_owned(),
            side: Side::Host,
            name: "host1".to_owned(),
            addresses: vec!["172.16.0.101".parse()?],
            version: env!("CARGO_PKG_VERSION").to_owned(),
            zone: None,
            cache: None,
        },
    )?;
    let own = "role = \"host\"\nunderlay = \"172.16.0.101\"\n".parse()?;
    let mut leader = Leader::new(
        store,
        LeaderOptions {
            name: "controller1".to_owned(),
            cluster: CLUSTER.to_owned(),
            drain: Duration::from_secs(30),
        },
    );

    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(60) {
        leader.turn(begin.elapsed(), Duration::from_millis(50))?;
        if let Some(next) = node.take() {
            // A program would install the snapshot of this configuration.
            let config = next.spec.config("the fleet", &own)?;
            println!(
                "generation {}: {} rules",
                next.release.generation,
                config.rules.len()
            );
            node.acknowledge(&next.release);
        }
        let rollout = leader.view().map(|view| view.rollout);
        if rollout.is_some_and(|rollout| rollout.generation > 0 && rollout.stage == Stage::Live) {
            leader.resign();
            return Ok(());
        }
    }
    Err("the rollout has not ended within a minute".into())
}
