//! A client that chooses its server as the muxes would, and so can connect to it directly.
//!
//! ```sh
//! cargo run -p slb-core --example client_side
//! ```

use std::error::Error;

use slb_core::hash::{Distribution, Hasher, Xxh3};
use slb_core::maglev::{Member, Table};
use slb_core::packet::Tuple;

/// The muxes' configuration has these as well: `hash_seed`, and the names and weights of the pool.
const HASH_SEED: u64 = 1;
const SERVERS: [(&str, u32); 3] = [("vm1", 1), ("vm2", 2), ("vm3", 1)];

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let members = SERVERS.map(|(name, weight)| Member { name, weight });
    let table = Table::with_members(&members, 65_537, HASH_SEED)?;
    let hasher = Hasher::Xxh3(Xxh3::new(HASH_SEED));

    let mut connections = [0; SERVERS.len()];
    for source_port in 40_000..41_000 {
        let tuple = Tuple {
            source: "198.51.100.7".parse()?,
            destination: "203.0.113.80".parse()?, // the VIP
            source_port,
            destination_port: 80,
            protocol: 6, // TCP
        };
        let hash = tuple.hash(&hasher, Distribution::FiveTuple);
        let server = hash
            .and_then(|hash| table.choose(hash))
            .ok_or("no server has a weight")?;
        connections[server] += 1;
    }
    for ((name, weight), count) in SERVERS.iter().zip(connections) {
        println!("{name}: weight {weight}, {count} of 1000 connections");
    }
    if connections[1] < connections[0] || connections.contains(&0) {
        return Err("the shares do not follow the weights".into());
    }
    Ok(())
}
