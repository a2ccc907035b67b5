//! Merges in a storm: everything that may happen happens at any step, by a seed, and what was acknowledged must be there
//! in the end. Steps are those of the harness: one message, one log batch, one apply pass. flotilla-sim does the same for
//! whole nodes, with more of everything; here a thousand seeds cost seconds. `STORM=7000+1000 cargo test` runs these seeds, `STORM=7` this one.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_engine::config::Config;
use flotilla_engine::storage::Family;
use flotilla_engine::store::{Event, Input, Merge, RangeSummary, Split, SplitAt, Token, TransferLeader, Write};
use flotilla_proto::{NodeId, RangeId, v1};

use crate::cluster::{Cluster, LATER, put, request, rows};
use crate::merges::{assert_well, split_with};
use crate::ranges::whole;
use crate::which_storms;

/// splitmix64 (Steele, Lea, Flood 2014)
pub struct Dice(u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.roll(all.len() as u64) as usize])
    }
}

pub struct Storm {
    pub cluster: Cluster,
    pub dice: Dice,
    nodes: u64,
    /// What the last sync of each disk covered.
    pub synced: BTreeMap<u64, BTreeMap<(Family, Vec<u8>), Bytes>>,
    next: u64,
    /// Keys that were written, by token.
    pub keys: BTreeMap<u64, String>,
    order_id: u64,
    /// Blocks of range ids that were given out.
    blocks: u64,
    seen: Seen,
    /// Merges that were applied anywhere up to now.
    merged: usize,
    /// Steps for which a node stays away.
    away: u64,
}

/// How often the rarer ways of a merge were gone.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    merged: usize,
    thawed: usize,
    /// Replicas that ended with a snapshot of the range that took theirs in.
    ended_with_snapshot: usize,
    /// Frozen replicas that took the log of a snapshot, and left its data.
    kept_data: usize,
    /// Replicas of a merged range that were told so, where nobody needed their data.
    told: usize,
}

impl Storm {
    pub fn new(seed: u64, nodes: u64) -> Self {
        let config = Config {
            seed,
            log_retain_entries: [0, 1, 4][(seed % 3) as usize],
            log_lagging_bytes_max: 0,
            cache_bytes_max: 0,
            ..Config::default()
        };
        let mut cluster = split_with(config, nodes - 3);
        cluster.settle();
        let synced = cluster.nodes.iter().map(|(id, node)| (*id, node.disk.contents())).collect();
        Self {
            cluster,
            dice: Dice(seed),
            nodes,
            synced,
            next: 10_000,
            keys: BTreeMap::new(),
            order_id: 100,
            seen: Seen::default(),
            blocks: 10,
            merged: 0,
            away: 0,
        }
    }

    fn node(&mut self) -> u64 {
        let nodes = self.nodes;
        1 + self.dice.roll(nodes)
    }

    fn token(&mut self) -> Token {
        self.next += 1;
        Token(self.next)
    }

    pub fn led(&self) -> Vec<(u64, RangeId)> {
        let led = |(id, node): (&u64, &crate::cluster::Node)| -> Vec<(u64, RangeId)> {
            node.store.ranges().filter(|of| of.leads).map(|of| (*id, of.range)).collect()
        };
        self.cluster.nodes.iter().flat_map(led).collect()
    }

    pub fn summary(&self, id: u64, range: RangeId) -> RangeSummary {
        self.cluster.summary_of(id, range).expect("just seen")
    }

    fn persist(&mut self, id: u64) -> bool {
        for item in self.cluster.node(id).log.front().iter().flat_map(|log| &log.items) {
            self.seen.ended_with_snapshot += item.ends.len();
            self.seen.kept_data += usize::from(item.keeps_data);
            let told = item.destroy.as_ref().is_some_and(|of| of.tombstone.merged_into != 0 && !of.keeps_data);
            self.seen.told += usize::from(told);
        }
        let wrote = self.cluster.persist(id);
        if wrote {
            self.synced.insert(id, self.cluster.node(id).disk.contents());
        }
        wrote
    }

    fn deliver(&mut self) -> bool {
        let waiting = self.cluster.network.len() as u64;
        if waiting == 0 {
            return false;
        }
        // Now and then one overtakes others, is lost, or comes twice.
        let at = if self.dice.roll(8) == 0 { self.dice.roll(waiting) as usize } else { 0 };
        let envelope = self.cluster.network.remove(at).expect("within bounds");
        match self.dice.roll(60) {
            0 => return true,
            1 => self.cluster.network.push_back(envelope.clone()),
            _ => {}
        }
        self.cluster.network.push_front(envelope);
        self.cluster.deliver()
    }

    /// Everything was written, and synced, by other ways than [`Storm::step`].
    pub fn all_is_synced(&mut self) {
        self.synced = self.cluster.nodes.iter().map(|(id, node)| (*id, node.disk.contents())).collect();
    }

    /// One step of what goes on anyway; false: nothing does.
    pub fn step(&mut self) -> bool {
        let id = self.node();
        let done = match self.dice.roll(4) {
            0 => self.persist(id),
            1 => self.cluster.apply(id),
            _ => self.deliver(),
        };
        done || (1..=self.nodes).any(|id| self.persist(id) || self.cluster.apply(id)) || self.deliver()
    }

    pub fn tick(&mut self) {
        self.cluster.now = self.cluster.now + self.cluster.config.tick;
        for id in 1..=self.nodes {
            self.cluster.turn(id, vec![Input::Tick]);
        }
    }

    /// The process ends; the machine too, perhaps: then what was not synced is lost.
    pub fn crash(&mut self, id: u64) {
        if self.dice.roll(2) == 0 {
            self.cluster.node(id).disk.restore(self.synced[&id].clone());
        }
        self.cluster.restart(id);
        self.blocks += 1;
        let ids = Input::RangeIds { first: self.blocks * 100, count: 100 };
        self.cluster.turn(id, vec![Input::Keyspaces(vec![v1::Keyspace { keyspace_id: 1, ..Default::default() }]), ids]);
        self.synced.insert(id, self.cluster.node(id).disk.contents());
    }

    pub fn write(&mut self) {
        let Some((id, range)) = ({
            let led = self.led();
            self.dice.one_of(&led)
        }) else {
            return;
        };
        let descriptor = self.summary(id, range).descriptor;
        let token = self.token();
        let letter = ["a", "c", "g", "n", "r", "x"][self.dice.roll(6) as usize];
        let key = format!("{letter}-{}", token.0);
        self.keys.insert(token.0, key.clone());
        let epoch = descriptor.epoch.expect("set");
        let request = request(vec![put(&key, &key)]);
        self.cluster.turn(id, vec![Input::Write(Write { token, range, epoch, request, deadline: LATER })]);
    }

    /// Asks a leader for something about its range.
    pub fn stir(&mut self) {
        let led = self.led();
        let Some((id, range)) = self.dice.one_of(&led) else { return };
        let descriptor = self.summary(id, range).descriptor;
        let token = self.token();
        let input = match self.dice.roll(10) {
            0..6 => {
                let mut left = led.iter().map(|(id, of)| self.summary(*id, *of).descriptor);
                let target = left.rfind(|of| !of.end.is_empty() && of.end == descriptor.start);
                let Some(target) = target else { return };
                Input::Merge(Merge { token, range, target: RangeId(target.range_id), deadline: LATER })
            }
            6 => {
                let key = ["b", "f", "m", "p", "t"][self.dice.roll(5) as usize];
                Input::Split(Split { token, range, at: SplitAt::Keys(vec![key.into()]), deadline: LATER })
            }
            7 => Input::TransferLeader(TransferLeader { token, range, to: NodeId(self.node()), deadline: LATER }),
            _ => {
                self.order_id += 1;
                let absent = (1..=self.nodes).find(|id| descriptor.replicas.iter().all(|of| of.node_id != *id));
                let gone = descriptor.replicas[self.dice.roll(descriptor.replicas.len() as u64) as usize].node_id;
                let Some(absent) = absent else { return };
                Input::Order(v1::RangeOrder {
                    order_id: self.order_id,
                    range_id: range.0,
                    add_nodes: vec![absent],
                    remove_nodes: vec![gone],
                    ..Default::default()
                })
            }
        };
        self.cluster.turn(id, vec![input]);
    }

    /// A node that has not heard of a merge, when another one has applied it, stays away for long, or dies.
    fn trouble_a_merge(&mut self) {
        let merged = |(_, event): &&(u64, Event)| matches!(event, Event::Merged { .. });
        let count = self.cluster.events.iter().filter(merged).count();
        let news = count > std::mem::replace(&mut self.merged, count);
        if !news || self.dice.roll(2) == 0 {
            return;
        }
        let stands = |id: &u64| self.cluster.node(*id).store.ranges().any(|of| of.frozen.is_some());
        let behind: Vec<u64> = (1..=self.nodes).filter(stands).collect();
        let Some(id) = self.dice.one_of(&behind) else { return };
        match self.dice.roll(5) {
            0 => self.crash(id),
            // All that are behind hear nothing of the range that took the other one in.
            1..3 => {
                for id in behind {
                    let frozen = self.cluster.node(id).store.ranges().filter_map(|of| of.frozen);
                    let targets: Vec<u64> = frozen.map(|frozen| frozen.target_range_id).collect();
                    self.cluster.deaf.extend(targets.into_iter().map(|target| (id, RangeId(target))));
                }
                self.away = 100 + self.dice.roll(900);
            }
            _ => {
                self.cluster.cut_off = [id].into();
                self.away = 100 + self.dice.roll(900);
            }
        }
    }

    pub fn blow(&mut self, steps: usize) {
        for _ in 0..steps {
            let busy = self.step();
            self.trouble_a_merge();
            self.away = self.away.saturating_sub(1);
            if self.away > 0 && self.dice.roll(20) == 0 {
                self.write();
            }
            if !busy || self.dice.roll(30) == 0 {
                self.tick();
            }
            match self.dice.roll(400) {
                0..12 => self.write(),
                12..20 => self.stir(),
                20..22 => {
                    let id = self.node();
                    self.crash(id);
                }
                22 if self.away == 0 => {
                    let id = self.node();
                    self.cluster.cut_off = [id].into();
                }
                23..26 if self.away == 0 => {
                    self.cluster.cut_off.clear();
                    self.cluster.deaf.clear();
                }
                _ => {}
            }
            assert!(self.cluster.fatal.is_empty(), "{:?}", self.cluster.fatal);
        }
    }

    /// Whether all ranges are led, level, in order, and nothing is under way.
    fn is_calm(&self) -> bool {
        let mut all: BTreeMap<RangeId, Vec<(u64, RangeSummary)>> = BTreeMap::new();
        for (id, node) in &self.cluster.nodes {
            for summary in node.store.ranges() {
                all.entry(summary.range).or_default().push((*id, summary));
            }
        }
        all.values().all(|replicas| {
            let Some((_, leader)) = replicas.iter().find(|(_, of)| of.leads) else { return false };
            let members = leader.descriptor.replicas.len();
            let level = replicas.iter().all(|(_, of)| {
                of.applied == leader.applied
                    && of.applied_checksum == leader.applied_checksum
                    && of.descriptor == leader.descriptor
                    && of.frozen.is_none()
            });
            level && replicas.len() == members && leader.commit == leader.applied && members >= 3
        })
    }

    /// What placement sees to: replicas that were left behind, and have nobody to ask, are told to go.
    fn remove_strays(&mut self) {
        let leaders: Vec<RangeSummary> = self.led().into_iter().map(|(id, range)| self.summary(id, range)).collect();
        for leader in leaders {
            for id in 1..=self.nodes {
                let stray = self.cluster.summary_of(id, leader.range).filter(|of| {
                    let ids = leader.descriptor.replicas.iter().map(|replica| replica.replica_id);
                    of.replica_id < leader.descriptor.next_replica_id && !ids.into_iter().any(|id| id == of.replica_id)
                });
                if let Some(stray) = stray {
                    let removal = Input::Remove { range: leader.range, replica_id: stray.replica_id };
                    self.cluster.turn(id, vec![removal]);
                }
            }
        }
    }

    /// Heals all, and lets it come to rest.
    fn calm(&mut self) {
        self.cluster.cut_off.clear();
        self.cluster.deaf.clear();
        for round in 0..600 {
            if round % 50 == 49 {
                self.remove_strays();
            }
            for _ in 0..2_000 {
                let any =
                    (1..=self.nodes).any(|id| self.persist(id) || self.cluster.apply(id)) || self.cluster.deliver();
                if !any {
                    break;
                }
            }
            if self.is_calm() {
                return;
            }
            self.tick();
        }
        for (id, node) in &self.cluster.nodes {
            for of in node.store.ranges() {
                println!("{id}: {of:?}");
            }
        }
        let refused = self.cluster.events.iter().rev().take(20);
        refused.for_each(|(id, event)| println!("{id}: {event:?}"));
        panic!("it does not come to rest");
    }

    fn check(&self) {
        assert_well(&self.cluster);
        let mut spans: BTreeMap<Vec<u8>, v1::RangeDescriptor> = BTreeMap::new();
        let mut held = std::collections::BTreeSet::new();
        for node in self.cluster.nodes.values() {
            for of in node.store.ranges() {
                spans.insert(of.descriptor.start.to_vec(), (*of.descriptor).clone());
            }
        }
        let mut at: Option<Vec<u8>> = Some(Vec::new());
        for (start, descriptor) in &spans {
            assert_eq!(at.as_ref(), Some(start), "a gap, or an overlap: {spans:?}");
            at = (!descriptor.end.is_empty()).then(|| descriptor.end.to_vec());
            let mut seen: Option<crate::cluster::Rows> = None;
            for replica in &descriptor.replicas {
                let rows = rows(&self.cluster.node(replica.node_id).disk, descriptor);
                assert!(seen.as_ref().is_none_or(|seen| *seen == rows), "replicas of {} differ", descriptor.range_id);
                held.extend(rows.iter().map(|(_, value)| String::from_utf8_lossy(&value[9..]).into_owned()));
                seen = Some(rows);
            }
        }
        assert_eq!(at, None, "the end of the keyspace is held: {spans:?}");
        for (token, answer) in &self.cluster.writes {
            let Some(key) = self.keys.get(token) else { continue };
            match answer {
                Ok(_) => assert!(held.contains(key), "{key} was acknowledged, and is lost"),
                Err(error) if error.action() != flotilla_proto::error::Action::Ambiguous => {
                    assert!(!held.contains(key), "{key} was refused ({error}), and is there");
                }
                Err(_) => {}
            }
        }
        for (id, node) in &self.cluster.nodes {
            let own: usize = spans
                .values()
                .filter(|of| of.replicas.iter().any(|replica| replica.node_id == *id))
                .map(|of| rows(&node.disk, of).len())
                .sum();
            assert_eq!(rows(&node.disk, &whole()).len(), own, "node {id} holds keys of no replica");
            let boot = flotilla_engine::recover::load(&*node.disk).expect("whole").expect("bootstrapped");
            assert!(boot.removed.is_empty());
        }
    }
}

fn storm(seed: u64) -> Seen {
    let mut storm = Storm::new(seed, 4);
    for _ in 0..3 {
        storm.blow(700);
        storm.calm();
        storm.check();
    }
    let count = |is: &dyn Fn(&Event) -> bool| storm.cluster.events.iter().filter(|(_, event)| is(event)).count();
    let merged = count(&|event| matches!(event, Event::Merged { .. }));
    let thawed = count(&|event| matches!(event, Event::Thawed { .. }));
    Seen { merged, thawed, ..storm.seen }
}

#[test]
fn nothing_is_lost_in_a_storm_of_merges() {
    let (from, count) = which_storms(40);
    let mut sum = Seen::default();
    for seed in from..from + count {
        let done = std::panic::catch_unwind(|| storm(seed));
        match done {
            Ok(done) => {
                sum.merged += done.merged;
                sum.thawed += done.thawed;
                sum.ended_with_snapshot += done.ended_with_snapshot;
                sum.kept_data += done.kept_data;
                sum.told += done.told;
            }
            Err(_) => panic!("seed {seed}"),
        }
    }
    println!("{count} storms: {sum:?}");
    assert!(sum.merged > 0 && sum.thawed > 0);
}
