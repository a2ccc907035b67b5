//! The majority is lost in the middle of a storm of merges, splits and moves, and a person recovers what is left, as
//! `flotilla recover` does it. `STORM=7000+1000 cargo test loss_storms` runs these
//! seeds, `STORM=7` this one.
//!
//! Held to, at every pass and in the end: no two replicas serve the same keys; a range that kept a majority loses nothing;
//! what a living voter had applied is there again; what is gone lies in a span that a plan named; the ranges serve, and nobody
//! stands still; and the lost ones, when they come back, change nothing of it.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_engine::store::{Input, RangeSummary, Token, Write};
use flotilla_placement::recovery::{self, Plan, Wish};
use flotilla_proto::error::Action;
use flotilla_proto::{Error, RangeId, v1};

use crate::cluster::{LATER, put, request, rows};
use crate::merge_storms::Storm;
use crate::merges::assert_well;
use crate::quorum_loss::survey;
use crate::ranges::order;
use crate::which_storms;

/// Passes after which a recovery, or the calm behind it, takes too long.
const PASSES: usize = 600;

type Span = (Vec<u8>, Vec<u8>);

/// How often the rarer ways were gone.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    kept: usize,
    /// Of these, those that another living voter's log was compared with.
    compared: usize,
    frozen: usize,
    gaps: usize,
    recreated: usize,
    plans: usize,
    lost_keys: usize,
}

struct Loss {
    storm: Storm,
    living: Vec<u64>,
    dead: BTreeSet<u64>,
    /// What nodes remember of ranges.
    routes: Vec<v1::RangeDescriptor>,
    /// Spans of which plans said that something may be lost.
    named: Vec<Span>,
    /// Spans that no range holds any more, by the plans.
    gaps: Vec<Span>,
    /// Rows that a living voter had applied when a plan decided about its range.
    owed: BTreeSet<Vec<u8>>,
    /// The last word was that some spans are held by nobody, and that nobody knows more.
    nobody_remembers: bool,
    recreate: bool,
    token: u64,
    seen: Seen,
}

fn holds((start, end): &Span, key: &[u8]) -> bool {
    key >= &start[..] && (end.is_empty() || key < &end[..])
}

fn span(of: &v1::RangeDescriptor) -> Span {
    (of.start.to_vec(), of.end.to_vec())
}

fn overlap(one: &v1::RangeDescriptor, other: &v1::RangeDescriptor) -> bool {
    let before = |end: &[u8], start: &[u8]| !end.is_empty() && end <= start;
    one.keyspace_id == other.keyspace_id && !before(&one.end, &other.start) && !before(&other.end, &one.start)
}

/// Goes on until some range stands still for a merge, or for long enough.
fn catch_a_merge(storm: &mut Storm) {
    for _ in 0..200 {
        storm.stir();
        for _ in 0..8 {
            storm.step();
            let mut ranges = storm.cluster.nodes.values().flat_map(|node| node.store.ranges());
            if ranges.any(|of| of.frozen.is_some()) {
                return;
            }
        }
        storm.tick();
    }
}

impl Loss {
    /// A storm, and then a majority of the nodes is gone: none of them was heard of by the others since.
    fn new(seed: u64) -> Self {
        let nodes = [4, 5, 6][(seed % 3) as usize];
        let mut storm = Storm::new(seed, nodes);
        if nodes == 6 {
            storm.cluster.turn(1, vec![order(&[4, 5], &[])]);
            storm.cluster.tick_until(|cluster| cluster.summary(1).descriptor.replicas.len() == 5);
            storm.all_is_synced();
        }
        let steps = 500 + storm.dice.roll(1_500) as usize;
        storm.blow(steps);
        storm.cluster.cut_off.clear();
        storm.cluster.deaf.clear();
        if storm.dice.roll(3) > 0 {
            catch_a_merge(&mut storm);
        }
        let mut all: Vec<u64> = (1..=nodes).collect();
        let mut dead = BTreeSet::new();
        let count = nodes / 2 + storm.dice.roll(2);
        while (dead.len() as u64) < count {
            dead.insert(all.remove(storm.dice.roll(all.len() as u64) as usize));
        }
        storm.cluster.cut_off = dead.clone();
        if storm.dice.roll(2) == 0 {
            all.iter().for_each(|id| storm.crash(*id));
        }
        let recreate = storm.dice.roll(2) == 0;
        let (named, gaps) = (Vec::new(), Vec::new());
        let (owed, token, seen) = (BTreeSet::new(), 1 << 32, Seen::default());
        let routes = Vec::new();
        let mut loss = Self {
            storm,
            living: all,
            dead,
            routes,
            named,
            gaps,
            owed,
            nobody_remembers: false,
            recreate,
            token,
            seen,
        };
        if loss.storm.dice.roll(2) == 0 {
            let everywhere: Vec<u64> = (1..=nodes).collect();
            let leaders = loss.leaders(&everywhere).into_values();
            loss.routes = leaders.map(|(_, of)| (*of.descriptor).clone()).collect();
        }
        loss
    }

    /// Time passes, in order or not.
    fn pass(&mut self) {
        if self.storm.dice.roll(2) == 0 {
            self.storm.cluster.tick();
            self.storm.all_is_synced();
        } else {
            self.storm.tick();
            for _ in 0..40 {
                self.storm.step();
            }
        }
        self.check_leases();
        assert!(self.storm.cluster.fatal.is_empty(), "{:?}", self.storm.cluster.fatal);
    }

    /// Of the living no two may serve the same keys by a lease.
    fn check_leases(&self) {
        let cluster = &self.storm.cluster;
        let mut serving: Vec<(u64, &v1::RangeDescriptor)> = Vec::new();
        for id in &self.living {
            let views = cluster.node(*id).views.values().filter(|view| view.lease_covers(cluster.clock(*id)));
            serving.extend(views.map(|view| (*id, &*view.descriptor)));
        }
        for (at, one) in serving.iter().enumerate() {
            let other = serving[at + 1..].iter().find(|other| overlap(one.1, other.1));
            assert!(other.is_none(), "both serve the same keys: {one:?} and {other:?}");
        }
    }

    fn surveys(&self) -> Vec<v1::SurveyResponse> {
        let keyspaces = vec![v1::Keyspace { keyspace_id: 1, ..Default::default() }];
        let known = self.storm.cluster.nodes.keys().map(|id| v1::SurveyedNode { node_id: *id, ..Default::default() });
        let nodes: Vec<_> = known.collect();
        let asked = |id: &u64| v1::SurveyResponse {
            keyspaces: keyspaces.clone(),
            nodes: nodes.clone(),
            routes: self.routes.clone(),
            ..survey(&self.storm.cluster, *id)
        };
        self.living.iter().map(asked).collect()
    }

    /// All that a person does, until nothing is left to be recovered.
    fn recover(&mut self) {
        let mut last = String::new();
        for round in 0..PASSES {
            self.pass();
            let surveys = self.surveys();
            let told = recovery::committed(&surveys);
            let settled = told.is_empty() && recovery::unsettled(&surveys).is_empty();
            for (id, entries) in told {
                self.storm.cluster.turn(id, entries.into_iter().map(Input::Committed).collect());
            }
            // A person waits for so long, and then goes on with what there is.
            if !settled && round < 60 {
                last = format!("ranges {:?} are not settled", recovery::unsettled(&surveys));
                continue;
            }
            let (plan_id, dead) = (format!("plan {round}"), self.dead.clone());
            let wish = Wish { plan_id, dead, recreate_empty: self.recreate, ..Wish::default() };
            match recovery::plan(&wish, &surveys) {
                Ok(plan) if plan.kept.is_empty() && plan.recreated.is_empty() => return self.note(&plan, &surveys),
                Ok(plan) => last = self.apply(&plan, &surveys),
                Err(refusals) if refusals[0].contains("nothing is to be recovered") => {
                    self.nobody_remembers = refusals[0].contains("nobody remembers which did");
                    return;
                }
                Err(refusals) => last = refusals.join("; "),
            }
        }
        panic!("there is something to be recovered still: {last}");
    }

    /// What a plan says of losses, and what the living voters have of its ranges.
    fn note(&mut self, plan: &Plan, surveys: &[v1::SurveyResponse]) {
        self.seen.plans += 1;
        let gaps = plan.gaps.iter().map(|(_, start, end)| (start.to_vec(), end.to_vec()));
        self.gaps.extend(gaps.clone());
        self.named.extend(gaps);
        for kept in &plan.kept {
            let (before, after) = (kept.order.before.as_ref(), kept.order.after.as_ref().expect("it says"));
            self.named.extend(before.map(span));
            let replicas = surveys.iter().flat_map(|of| of.replicas.iter().map(|replica| (of.node_id, replica)));
            let of_range =
                replicas.filter(|(_, of)| of.descriptor.as_ref().map(|of| of.range_id) == Some(after.range_id));
            let of_range: Vec<_> = of_range.collect();
            let newest = of_range.iter().filter_map(|(_, of)| of.descriptor.as_ref());
            let newest =
                newest.max_by_key(|of| of.epoch.map(|epoch| (epoch.conf_ver, epoch.version))).expect("one is kept");
            let votes = |(node, of): &&(u64, &v1::SurveyedReplica)| {
                newest.replicas.iter().any(|named| {
                    (named.node_id, named.replica_id) == (*node, of.replica_id)
                        && named.role() != v1::ReplicaRole::Learner
                })
            };
            let voters: Vec<u64> = of_range.iter().filter(votes).map(|(node, _)| *node).collect();
            self.seen.compared += usize::from(voters.len() > 1);
            for node in voters {
                self.owed.extend(rows(&self.storm.cluster.node(node).disk, after).into_iter().map(|(key, _)| key));
            }
        }
    }

    fn apply(&mut self, plan: &Plan, surveys: &[v1::SurveyResponse]) -> String {
        let mut last = String::new();
        self.note(plan, surveys);
        self.seen.gaps += plan.gaps.len();
        for kept in &plan.kept {
            self.token += 1;
            let order = Box::new(kept.order.clone());
            self.storm.cluster.turn(kept.node, vec![Input::Recover { token: Token(self.token), order }]);
            if self.storm.dice.roll(10) == 0 {
                self.storm.crash(kept.node);
            }
        }
        for (id, descriptor) in &plan.recreated {
            self.seen.recreated += 1;
            self.storm.cluster.turn(*id, vec![Input::Births(vec![descriptor.clone()])]);
        }
        self.pass();
        for (_, answer) in std::mem::take(&mut self.storm.cluster.recoveries) {
            match answer {
                Ok(_) => self.seen.kept += 1,
                Err(Error::ServerBusy { reason, .. }) if reason.contains("is frozen") => self.seen.frozen += 1,
                Err(error) => last = error.to_string(),
            }
        }
        last
    }

    fn leaders(&self, nodes: &[u64]) -> BTreeMap<RangeId, (u64, RangeSummary)> {
        let mut leaders: BTreeMap<RangeId, (u64, RangeSummary)> = BTreeMap::new();
        for id in nodes {
            for of in self.storm.cluster.node(*id).store.ranges().filter(|of| of.leads) {
                if leaders.get(&of.range).is_none_or(|(_, known)| known.term < of.term) {
                    leaders.insert(of.range, (*id, of));
                }
            }
        }
        leaders
    }

    /// Placement's word to replicas that are none of their range any more, or whose keys another range has at a newer version.
    fn remove_strays(&mut self, nodes: &[u64]) {
        let leaders = self.leaders(&self.living);
        for id in nodes {
            let here: Vec<RangeSummary> = self.storm.cluster.node(*id).store.ranges().collect();
            for of in here {
                let version = |of: &RangeSummary| of.descriptor.epoch.unwrap_or_default().version;
                let gone = match leaders.get(&of.range) {
                    Some((_, leader)) => {
                        let named = leader.descriptor.replicas.iter().any(|named| named.replica_id == of.replica_id);
                        !named && of.replica_id < leader.descriptor.next_replica_id
                    }
                    None => leaders.values().any(|(_, leader)| {
                        holds(&span(&leader.descriptor), &of.descriptor.start) && version(leader) > version(&of)
                    }),
                };
                if gone {
                    let removal = Input::Remove { range: of.range, replica_id: of.replica_id };
                    self.storm.cluster.turn(*id, vec![removal]);
                }
            }
        }
    }

    /// What keeps the living from being at rest.
    fn unrest(&self) -> Option<String> {
        let leaders = self.leaders(&self.living);
        for id in &self.living {
            for of in self.storm.cluster.node(*id).store.ranges() {
                let Some((_, leader)) = leaders.get(&of.range) else { return Some(format!("nobody leads {of:?}")) };
                let same = (of.applied, of.applied_checksum, &of.descriptor)
                    == (leader.applied, leader.applied_checksum, &leader.descriptor);
                let member = leader.descriptor.replicas.iter().any(|named| named.replica_id == of.replica_id);
                if !same || !member || of.frozen.is_some() || leader.commit != leader.applied {
                    return Some(format!("node {id}: {of:?}, its leader: {leader:?}"));
                }
            }
        }
        None
    }

    fn calm(&mut self, strays_on: &[u64]) {
        for round in 0..PASSES {
            if round % 30 == 29 {
                self.remove_strays(strays_on);
            }
            self.pass();
            // What was about to be changed then may be without a majority only now.
            if round % 100 == 99 {
                self.recover();
            }
            if round > 30 && self.unrest().is_none() {
                return;
            }
        }
        panic!("the living do not come to rest: {:?}", self.unrest());
    }

    /// Every range takes a write.
    fn write_everywhere(&mut self) {
        for (id, of) in self.leaders(&self.living).into_values() {
            self.token += 1;
            let key = format!("{}+{}", String::from_utf8_lossy(&of.descriptor.start), self.token);
            let (token, epoch) = (Token(self.token), of.descriptor.epoch.expect("it has one"));
            let request = request(vec![put(&key, &key)]);
            self.storm.keys.insert(token.0, key);
            self.storm
                .cluster
                .turn(id, vec![Input::Write(Write { token, range: of.range, epoch, request, deadline: LATER })]);
            for _ in 0..50 {
                self.storm.cluster.tick();
                if self.storm.cluster.writes.iter().any(|(of, _)| *of == token.0) {
                    break;
                }
            }
            let answer = self.storm.cluster.writes.iter().find(|(of, _)| *of == token.0);
            assert!(matches!(answer, Some((_, Ok(_)))), "{} takes no write: {answer:?}", of.range);
        }
    }

    /// What the ranges hold, replica by replica the same; their spans tile the keyspace but for the gaps.
    fn held(&mut self) -> BTreeSet<Vec<u8>> {
        let mut leaders: Vec<RangeSummary> = self.leaders(&self.living).into_values().map(|(_, of)| of).collect();
        leaders.sort_by(|a, b| a.descriptor.start.cmp(&b.descriptor.start));
        let mut held = BTreeSet::new();
        let mut at: Option<Vec<u8>> = Some(Vec::new());
        for of in leaders.iter().filter(|of| of.descriptor.keyspace_id == 1) {
            let from = at.take().expect("no range begins behind the end of the keyspace");
            if from != of.descriptor.start {
                self.check_gap(&from, &of.descriptor.start);
            }
            at = (!of.descriptor.end.is_empty()).then(|| of.descriptor.end.to_vec());
            let mut first = None;
            for replica in of.descriptor.replicas.iter().filter(|replica| self.living.contains(&replica.node_id)) {
                let rows = rows(&self.storm.cluster.node(replica.node_id).disk, &of.descriptor);
                assert!(first.as_ref().is_none_or(|first| *first == rows), "replicas of {} differ", of.range);
                held.extend(rows.iter().map(|(key, _)| key.clone()));
                first = Some(rows);
            }
        }
        if let Some(from) = at {
            self.check_gap(&from, &[]);
        }
        held
    }

    fn check_gap(&mut self, from: &[u8], to: &[u8]) {
        let whole = |(start, end): &Span| start[..] <= *from && (end.is_empty() || (!to.is_empty() && to <= &end[..]));
        if self.nobody_remembers && !self.gaps.iter().any(whole) {
            self.gaps.push((from.to_vec(), to.to_vec()));
            self.named.push((from.to_vec(), to.to_vec()));
        }
        assert!(self.gaps.iter().any(whole), "{from:?} to {to:?} is held by nobody, and no plan said so");
    }

    /// What was acknowledged is there, or lies where a plan said that it may be lost; what was refused is not.
    fn check(&mut self, held: &BTreeSet<Vec<u8>>) {
        assert_well(&self.storm.cluster);
        let lost: Vec<_> = self.owed.difference(held).collect();
        assert!(lost.is_empty(), "living voters had applied these: {lost:?}");
        let has = |key: &str| held.iter().any(|row| row.windows(key.len()).any(|part| part == key.as_bytes()));
        for (token, answer) in &self.storm.cluster.writes {
            let Some(key) = self.storm.keys.get(token) else { continue };
            let named = self.named.iter().any(|span| holds(span, key.as_bytes())) && *token < 1 << 32;
            match answer {
                Ok(_) if has(key) => {}
                Ok(_) => {
                    assert!(named, "{key} was acknowledged, is lost, and no plan said so: {:?}", self.named);
                    self.seen.lost_keys += 1;
                }
                // A survivor may have it in its log, where the others had replaced it.
                Err(error) if error.action() != Action::Ambiguous && !named => {
                    assert!(!has(key), "{key} was refused ({error}), and is there");
                }
                Err(_) => {}
            }
        }
    }

    /// The lost ones come back, hear each other, and are heard by the living, which say nothing to them.
    fn come_back(&mut self) {
        let leaders = self.leaders(&self.living).into_values();
        let alone = leaders.filter(|(_, of)| of.descriptor.replicas.len() == 1);
        let held = |loss: &Self, id: u64, of: &RangeSummary| rows(&loss.storm.cluster.node(id).disk, &of.descriptor);
        let alone: Vec<_> = alone.map(|(id, of)| (id, held(self, id, &of), of)).collect();
        let dead = &self.dead;
        let links = self.living.iter().flat_map(|from| dead.iter().map(move |to| (*from, *to)));
        self.storm.cluster.cut_links = links.collect();
        self.storm.cluster.cut_off.clear();
        for id in self.dead.clone() {
            self.storm.crash(id);
        }
        (0..60).for_each(|_| self.pass());
        for (id, rows, of) in alone {
            let now = self.storm.cluster.summary_of(id, of.range);
            let same = now.as_ref().is_some_and(|now| now.leads && now.term == of.term);
            assert!(same, "{of:?} was alone, and is {now:?}");
            assert_eq!(held(self, id, &of), rows, "{} has changed", of.range);
        }
    }
}

fn loss(seed: u64) -> Seen {
    let mut loss = Loss::new(seed);
    let living = loss.living.clone();
    loss.recover();
    loss.calm(&living);
    loss.write_everywhere();
    loss.calm(&living);
    let held = loss.held();
    loss.check(&held);
    loss.come_back();
    loss.seen
}

#[test]
fn a_recovery_in_a_storm_loses_nothing_that_it_does_not_name() {
    let (from, count) = which_storms(60);
    let mut sum = Seen::default();
    for seed in from..from + count {
        let Ok(done) = std::panic::catch_unwind(|| loss(seed)) else { panic!("seed {seed}") };
        sum.kept += done.kept;
        sum.compared += done.compared;
        sum.frozen += done.frozen;
        sum.gaps += done.gaps;
        sum.recreated += done.recreated;
        sum.plans += done.plans;
        sum.lost_keys += done.lost_keys;
    }
    println!("{count} losses: {sum:?}");
    assert!(count < 60 || (sum.kept > 0 && sum.compared > 0 && sum.frozen > 0), "{sum:?}");
}
