//! The tables of all muxes are equal, byte for byte, after each change.
//!
//! Three muxes follow one store. The first compiles each configuration behind the one before, as a mux that runs does;
//! the second compiles each anew, as one that has just started; the third starts in the middle. The changes come from
//! operators and from probes, by turns that a seed chooses.

use crate::common;

use std::sync::Arc;

use common::{Controller, Running, apply, stage, wait_until};
use slb_control::Config;
use slb_core::snapshot::Snapshot;
use slb_fleet::rollout::{Side, Stage};
use slb_fleet::store::{MemoryStore, Store};

const HOSTS: u8 = 3;
const VMS: usize = 9;
const CHANGES: u32 = 40;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
}

/// A vm as the operator wants it.
#[derive(Clone, Copy)]
struct Vm {
    is_there: bool,
    weight: u32,
    is_draining: bool,
    /// The vm whose seat it has.
    seat: usize,
}

/// The state of a fleet that the changes lead to.
struct Wanted {
    vms: [Vm; VMS],
    seed: u32,
    table_size: u32,
    failing: [bool; VMS],
}

impl Wanted {
    fn new() -> Self {
        let vm = |number: usize| Vm {
            is_there: number < 6,
            weight: 1,
            is_draining: false,
            seat: number,
        };
        Self {
            vms: std::array::from_fn(vm),
            seed: 7,
            table_size: 251,
            failing: [false; VMS],
        }
    }

    /// The host of a vm.
    fn host(vm: usize) -> u8 {
        1 + vm as u8 % HOSTS
    }

    /// Returns true if a vm and another one have one seat, with weight.
    fn has_clash(&self) -> bool {
        let own = |vm: &&Vm| vm.is_there && vm.weight > 0 && !vm.is_draining;
        let mut seats: Vec<usize> = self.vms.iter().filter(own).map(|vm| vm.seat).collect();
        seats.sort_unstable();
        seats.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// Changes something; returns true if it was the operator who did.
    fn change(&mut self, random: &mut Random) -> bool {
        let vm = random.below(VMS);
        let before = self.vms;
        match random.below(8) {
            0 => self.vms[vm].is_there ^= true,
            1 => self.vms[vm].weight = random.below(5) as u32,
            2 => self.vms[vm].is_draining ^= true,
            3 => self.vms[vm].seat = random.below(VMS),
            4 => self.seed = random.below(1000) as u32,
            5 => self.table_size = [251, 509, 1021][random.below(3)],
            _ => {
                self.failing[vm] ^= true;
                return false;
            }
        }
        // A pool without backends has no table, and two with weight in one seat are a fault.
        if self.has_clash() || !self.vms.iter().any(|vm| vm.is_there) {
            self.vms = before;
        }
        true
    }

    fn spec(&self) -> String {
        let vms = self.vms.iter().enumerate().filter(|(_, vm)| vm.is_there);
        let vms = vms.map(|(number, vm)| {
            let state = if vm.is_draining { "draining" } else { "up" };
            format!(
                "{{ name = \"vm{number}\", address = \"10.10.{number}.11\", host = \"172.16.0.{}\", \
                 weight = {}, state = \"{state}\", seat = \"vm{}\" }}",
                100 + Self::host(number),
                vm.weight,
                vm.seat
            )
        });
        let vms: Vec<String> = vms.collect();
        format!(
            "[fleet]\nhash_seed = {}\n\
             [[frontend]]\nname = \"web\"\naddress = \"203.0.113.80\"\n\
             [[pool]]\nname = \"servers\"\nvni = 5001\ntable_size = {}\nbackends = [{}]\n\
             [[probe]]\nname = \"alive\"\nprotocol = \"tcp\"\nport = 80\n\
             [[rule]]\nname = \"probed\"\nfrontend = \"web\"\npool = \"servers\"\nprobe = \"alive\"\n\
             protocol = \"tcp\"\nfrontend_port = 80\n\
             [[rule]]\nname = \"not\"\nfrontend = \"web\"\npool = \"servers\"\nprotocol = \"udp\"\nfrontend_port = 53\n",
            self.seed,
            self.table_size,
            vms.join(", ")
        )
    }

    /// Has the agents of all hosts say which of their vms fail.
    fn tell(&self, hosts: &[Running]) {
        for (number, host) in (1..).zip(hosts) {
            let own = (0..VMS).filter(|&vm| Self::host(vm) == number && self.failing[vm]);
            let own = own.map(|vm| {
                let of = |text: &str| text.to_owned();
                (of("servers"), of("alive"), format!("vm{vm}"))
            });
            host.node.set_failing(own.collect());
        }
    }

    /// Returns true if a configuration is of this state, and shows this health.
    fn is(&self, config: &Config) -> bool {
        let pool = &config.pools[0];
        let expected = self.vms.iter().enumerate().filter(|(_, vm)| vm.is_there);
        let expected: Vec<(String, u32, bool)> = expected
            .map(|(number, vm)| {
                let serves = vm.weight > 0 && !vm.is_draining && !self.failing[number];
                (format!("vm{number}"), vm.weight, serves)
            })
            .collect();
        let backends = pool.backends.iter().enumerate();
        let found: Vec<(String, u32, bool)> = backends
            .map(|(place, own)| {
                let serves = config.serves(&config.rules[0], place);
                (own.name.clone(), own.weight, serves)
            })
            .collect();
        config.node.hash_seed == u64::from(self.seed)
            && pool.table_size == self.table_size
            && found == expected
    }
}

/// The tables of all rules as bytes: the name of each slot's backend.
fn bytes(config: &Config, snapshot: &Snapshot<'_>) -> Vec<u8> {
    let rules = (0..).take_while(|&rule| snapshot.rule(rule).is_some());
    let slots = rules.flat_map(|rule| snapshot.slots(rule));
    let names = slots.map(|id| {
        let place = id.and_then(|id| snapshot.backend_index(id));
        let own = place.and_then(|place| config.pools[0].backends.get(place as usize));
        own.map_or("-", |own| own.name.as_str())
    });
    names
        .flat_map(|name| [name.as_bytes(), b"\n"].concat())
        .collect()
}

fn all_muxes_have_one_table(seed: u64) {
    let store = MemoryStore::default();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let _controller = Controller::with_drain(Arc::clone(&shared), "one", std::time::Duration::ZERO);
    let start = |side, number| Running::start(Arc::clone(&shared), side, number, None);
    let hosts: Vec<Running> = (1..=HOSTS).map(|n| start(Side::Host, n)).collect();
    let mut muxes: Vec<Running> = (1..=2).map(|n| start(Side::Mux, n)).collect();
    let (mut random, mut wanted) = (Random(seed), Wanted::new());
    let mut previous: Option<Arc<Snapshot<'static>>> = None;
    let mut tables: Vec<Vec<u8>> = Vec::new();
    apply(&store, &wanted.spec());
    for change in 0..CHANGES {
        if change > 0 && wanted.change(&mut random) {
            apply(&store, &wanted.spec());
        }
        if change == CHANGES / 2 {
            muxes.push(start(Side::Mux, 3));
        }
        wanted.tell(&hosts);
        let mut configs: Vec<Config> = Vec::new();
        wait_until(
            &format!("change {change} of seed {seed} is everywhere"),
            || {
                let all: Option<Vec<Config>> = muxes.iter().map(Running::config).collect();
                configs = all.unwrap_or_default();
                configs.len() == muxes.len()
                    && configs.iter().all(|config| wanted.is(config))
                    && stage(&store) == Stage::Live
            },
        );
        let compile =
            |config: &Config, before: Option<&Snapshot<'_>>| config.snapshot(before).unwrap();
        let first = compile(&configs[0], previous.as_deref());
        let expected = bytes(&configs[0], &first);
        assert_eq!(
            expected.split(|&byte| byte == b'\n').count() - 1,
            2 * wanted.table_size as usize
        );
        for config in &configs[1..] {
            let own = bytes(config, &compile(config, None));
            assert!(
                own == expected,
                "change {change} of seed {seed}: the tables differ"
            );
        }
        previous = Some(first);
        tables.push(expected);
    }
    // Otherwise nothing of this tested anything.
    tables.dedup();
    assert!(
        tables.len() > CHANGES as usize / 4,
        "{} tables",
        tables.len()
    );
}

#[test]
fn the_tables_of_all_muxes_are_equal_after_each_change() {
    let seeds = 1..=4;
    let threads = seeds.map(|seed| std::thread::spawn(move || all_muxes_have_one_table(seed)));
    let threads: Vec<_> = threads.collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}
