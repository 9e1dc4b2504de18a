//! The rollout under random orders, delays and crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use slb_fleet::object::Digest;
use slb_fleet::rollout::{Machine, Member, PATIENCE, Plan, Refusal, Release, Rollout, Side, Stage};

/// Connections of leaving backends are waited for that long.
const DRAIN: Duration = Duration::from_secs(600);
/// A backend that every host refuses.
const POISON: u8 = 7;

/// The backends of an index: those that are present, and those of them that are leaving.
#[derive(Clone, Debug, Default, PartialEq)]
struct Spec {
    there: BTreeSet<u8>,
    leaving: BTreeSet<u8>,
}

#[derive(Clone, Debug)]
struct Node {
    side: Side,
    name: String,
    is_up: bool,
    live: Option<Release>,
    refused: Option<Refusal>,
}

struct Fleet {
    now: Duration,
    machine: Machine,
    specs: BTreeMap<Digest, Spec>,
    wanted: Option<Digest>,
    nodes: Vec<Node>,
    /// Connections of each backend.
    connections: BTreeMap<u8, u64>,
    /// Since when backends have been without new flows everywhere.
    drained: BTreeMap<u8, Duration>,
}

impl Fleet {
    fn new(hosts: usize, muxes: usize) -> Self {
        let of = |side: Side, count| {
            (0..count).map(move |number| Node {
                side,
                name: format!("{}{number}", side.name()),
                is_up: true,
                live: None,
                refused: None,
            })
        };
        Self {
            now: Duration::ZERO,
            machine: Machine::default(),
            specs: BTreeMap::new(),
            wanted: None,
            nodes: of(Side::Host, hosts).chain(of(Side::Mux, muxes)).collect(),
            connections: BTreeMap::new(),
            drained: BTreeMap::new(),
        }
    }

    fn add(&mut self, spec: Spec) -> Digest {
        let digest = Digest::of(format!("{spec:?}").as_bytes());
        self.specs.insert(digest.clone(), spec);
        digest
    }

    fn apply(&mut self, there: BTreeSet<u8>) {
        let digest = self.add(Spec {
            there,
            leaving: BTreeSet::new(),
        });
        self.wanted = Some(digest);
    }

    fn spec(&self, release: Option<&Release>) -> Spec {
        release.map_or_else(Spec::default, |release| self.specs[&release.index].clone())
    }

    /// One turn of the controller.
    fn turn(&mut self) {
        let record = self.machine.record().clone();
        if let Some(wanted) = self.wanted.clone()
            && record.target.as_ref() != Some(&wanted)
            && record.may_begin()
        {
            let target = self.specs[&wanted].clone();
            let settled = record.settled.as_ref().map(|index| &self.specs[index]);
            let former = settled.map(|own| own.there.clone()).unwrap_or_default();
            let leaving: BTreeSet<u8> = former.difference(&target.there).copied().collect();
            let first = match leaving.is_empty() {
                true => wanted.clone(),
                false => self.add(Spec {
                    there: target.there.union(&leaving).copied().collect(),
                    leaving,
                }),
            };
            let target = wanted;
            assert!(self.machine.begin(Plan { first, target }, self.now));
        }
        let members: Vec<Member> = self
            .nodes
            .iter()
            .filter(|node| node.is_up)
            .map(|node| {
                let leaving = self.spec(node.live.as_ref()).leaving;
                let left = leaving.iter().map(|own| self.connections.get(own));
                Member {
                    side: node.side,
                    name: node.name.clone(),
                    live: node.live.as_ref().map_or(0, |live| live.generation),
                    index: node.live.as_ref().map(|live| live.index.clone()),
                    refused: node.refused.clone(),
                    left: Some(left.flatten().sum()),
                }
            })
            .collect();
        // Any host counts the connections of all backends here.
        let is_counted = members.iter().any(|member| member.side == Side::Host);
        self.machine.advance(&members, self.now, DRAIN, is_counted);
        // Backends that no release gives new flows any more.
        let record = self.machine.record();
        let muxes = self.spec(record.muxes.as_ref());
        for backend in 0..8 {
            let takes_flows = muxes.there.contains(&backend) && !muxes.leaving.contains(&backend);
            match takes_flows {
                true => drop(self.drained.remove(&backend)),
                false => drop(self.drained.entry(backend).or_insert(self.now)),
            }
        }
    }

    /// A node takes what it is to have.
    fn follow(&mut self, place: usize) {
        let node = &self.nodes[place];
        let release = self.machine.record().of(node.side).cloned();
        let Some(release) = release.filter(|own| node.is_up && node.live.as_ref() != Some(own))
        else {
            return;
        };
        let new = self.spec(Some(&release));
        let generation = release.generation;
        if node.side == Side::Host && new.there.contains(&POISON) {
            let why = "poison".to_owned();
            self.nodes[place].refused = Some(Refusal {
                generation,
                index: Some(release.index),
                why,
            });
            return;
        }
        assert!(
            node.live
                .as_ref()
                .is_none_or(|live| live.generation < generation),
            "a node goes back"
        );
        let old = self.spec(node.live.as_ref());
        if node.side == Side::Mux {
            for host in self
                .nodes
                .iter()
                .filter(|own| own.side == Side::Host && own.is_up)
            {
                assert!(
                    !new.there.contains(&POISON),
                    "a mux has what a host refused"
                );
                let known = self.spec(host.live.as_ref()).there;
                assert!(
                    new.there.is_subset(&known),
                    "{} before {}: {new:?} and {known:?}",
                    self.nodes[place].name,
                    host.name
                );
            }
        }
        for gone in old.there.difference(&new.there) {
            let left = self.connections.get(gone).copied().unwrap_or_default();
            let since = self.drained.get(gone).copied();
            let waited = since.map_or(Duration::ZERO, |since| self.now - since);
            assert!(
                left == 0 || waited >= DRAIN,
                "{gone} is removed with {left} connections"
            );
        }
        let node = &mut self.nodes[place];
        node.live = Some(release);
        node.refused = None;
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Time passes in small steps, in which whoever is up follows and the controller works.
    fn settle(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.turn();
            for place in 0..self.nodes.len() {
                self.follow(place);
            }
            self.pass(Duration::from_millis(500));
        }
    }
}

fn set(bits: u8) -> BTreeSet<u8> {
    (0..8).filter(|bit| bits >> bit & 1 == 1).collect()
}

fn run(steps: &[(u8, u8)]) {
    let mut fleet = Fleet::new(3, 2);
    let mut last_good = BTreeSet::new();
    for &(what, which) in steps {
        let place = usize::from(which) % fleet.nodes.len();
        match what % 8 {
            0 => {
                fleet.apply(set(which));
                if !set(which).contains(&POISON) {
                    last_good = set(which);
                }
            }
            // A node ends, and comes back with what it has to have; a host that does not serve yet is not up.
            1 => fleet.nodes[place].is_up = false,
            2 => {
                fleet.nodes[place].is_up = true;
                fleet.follow(place);
                if fleet.nodes[place].refused.is_some() {
                    fleet.nodes[place].is_up = false;
                }
            }
            // Another controller takes over, by the record alone.
            3 => {
                let record: Rollout = fleet.machine.record().clone();
                fleet.machine = Machine::new(record, fleet.now);
            }
            // Connections come to backends that take new flows, and end.
            4 => {
                let muxes = fleet.spec(fleet.machine.record().muxes.as_ref());
                let backend = which % 8;
                if muxes.there.contains(&backend) && !muxes.leaving.contains(&backend) {
                    *fleet.connections.entry(backend).or_default() += 1;
                }
            }
            5 => drop(fleet.connections.remove(&(which % 8))),
            6 => fleet.follow(place),
            // Whoever is up answers within the time that the controller waits.
            _ => fleet.pass(Duration::from_millis(u64::from(which) * 4)),
        }
        fleet.turn();
        if what % 8 == 7 {
            for place in 0..fleet.nodes.len() {
                fleet.follow(place);
            }
        }
    }
    // In the end all are up, connections end, and what was wanted last is everywhere.
    fleet.apply(last_good.clone());
    fleet.connections.clear();
    for node in &mut fleet.nodes {
        node.is_up = true;
        node.refused = None;
    }
    // A host that is back serves once it has what it is to have.
    for place in 0..3 {
        fleet.follow(place);
        let refuses = fleet.nodes[place].refused.is_some();
        fleet.nodes[place].is_up = !refuses;
    }
    fleet.settle(2 * DRAIN);
    for node in &mut fleet.nodes {
        node.is_up = true;
    }
    fleet.settle(Duration::from_secs(60));
    assert_eq!(fleet.machine.record().stage, Stage::Live);
    for node in &fleet.nodes {
        let live = fleet.spec(node.live.as_ref());
        assert_eq!(live.there, last_good, "{}", node.name);
        assert!(live.leaving.is_empty());
    }
}

#[test]
fn no_mux_comes_before_its_hosts_and_nothing_is_removed_before_it_is_drained() {
    bolero::check!()
        .with_type::<Vec<(u8, u8)>>()
        .for_each(|steps| run(steps));
}

#[test]
fn a_change_goes_to_hosts_and_then_to_muxes() {
    let mut fleet = Fleet::new(1, 1);
    fleet.apply(set(0b11));
    fleet.turn();
    assert_eq!(fleet.machine.record().stage, Stage::Hosts);
    fleet.follow(1);
    assert!(fleet.nodes[1].live.is_none());
    fleet.follow(0);
    fleet.turn();
    assert_eq!(fleet.machine.record().stage, Stage::Muxes);
    fleet.follow(1);
    fleet.turn();
    assert_eq!(fleet.machine.record().stage, Stage::Live);
}

#[test]
fn a_node_that_is_silent_is_waited_for_five_seconds() {
    let mut fleet = Fleet::new(2, 1);
    fleet.apply(set(1));
    fleet.turn();
    fleet.follow(0);
    fleet.pass(PATIENCE - Duration::from_millis(1));
    fleet.turn();
    assert_eq!(fleet.machine.record().stage, Stage::Hosts);
    fleet.pass(Duration::from_millis(1));
    fleet.turn();
    assert_eq!(fleet.machine.record().stage, Stage::Muxes);
}

#[test]
fn a_refusal_stops_the_rollout_until_something_else_is_wanted() {
    let mut fleet = Fleet::new(1, 1);
    fleet.apply(set(1));
    fleet.settle(Duration::from_secs(5));
    fleet.apply(set(1 | 1 << POISON));
    fleet.settle(Duration::from_secs(60));
    let Stage::Stopped { node, why } = &fleet.machine.record().stage else {
        panic!("{:?}", fleet.machine.record());
    };
    assert_eq!((node.as_str(), why.as_str()), ("host host0", "poison"));
    assert_eq!(fleet.spec(fleet.nodes[1].live.as_ref()).there, set(1));
    fleet.apply(set(3));
    fleet.settle(Duration::from_secs(60));
    assert_eq!(fleet.machine.record().stage, Stage::Live);
    assert_eq!(fleet.spec(fleet.nodes[1].live.as_ref()).there, set(3));
}

#[test]
fn connections_of_what_leaves_are_waited_for() {
    let mut fleet = Fleet::new(2, 2);
    fleet.apply(set(3));
    fleet.settle(Duration::from_secs(5));
    fleet.connections.insert(1, 4);
    fleet.apply(set(1));
    fleet.settle(Duration::from_secs(100));
    assert_eq!(fleet.machine.record().stage, Stage::Draining);
    assert_eq!(fleet.spec(fleet.nodes[0].live.as_ref()).there, set(3));
    fleet.connections.clear();
    fleet.settle(Duration::from_secs(5));
    assert_eq!(fleet.machine.record().stage, Stage::Live);
    assert_eq!(fleet.spec(fleet.nodes[0].live.as_ref()).there, set(1));
    // Not for ever.
    fleet.connections.insert(0, 1);
    fleet.apply(set(2));
    fleet.settle(DRAIN + Duration::from_secs(10));
    assert_eq!(fleet.machine.record().stage, Stage::Live);
}
