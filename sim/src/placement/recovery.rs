//! The person who recovers what a lost majority leaves behind, as `flotilla recover plan` and `flotilla recover apply` do
//! it, with the product's own plan and orders; by the hour, while nodes crash and links fail.
//!
//! ```text
//! ask every living node ─▶ let survivors apply what others know ─▶ plan ─▶ condemn ─▶ orders, births ─▶ placement is told ─┐
//!        ▲                           nothing is to be recovered ─▶ look again now and then                                 │
//!        └───────────────────────────────────────────────◀─────────────────────────────────────────────────────────────────┘
//! ```
//! A node that does not answer, or loses an answer, is asked again; a plan that is refused, or interrupted, is given once
//! more, or made anew.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_engine::store::{Input, Recovered, Token};
use flotilla_placement::recovery::{self as product, Plan, Wish};
use flotilla_placement::{Request, Response};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, RangeId, Result, v1};

use super::ask::Asker;
use super::{CLUSTER, Placed, Real, Slot};
use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::marks::Mark;
use crate::node::id_of;
use crate::rng::Rng;
use crate::schedule::Event;
use crate::territory;

/// When the simulated time begins, in milliseconds since 1970.
pub(super) const UNIX_MS_AT_START: u64 = 1_700_000_000_000;
/// So long a person waits for replicas to settle, for orders to be carried out, and for placement to come back.
const PATIENCE: Nanos = ms(10_000);
/// From the last fault on a recovery takes so long at the most.
const LIMIT: Nanos = ms(120_000);
/// After so much of it nothing goes wrong any more with what is sent. Where two of three voters are left, and hear each
/// other later than an election time-out, because a link that keeps its order waits for what comes late, no leader lasts:
/// not even that of the system range, without whom nobody can tell placement (seed 42997).
const ROUGH: Nanos = ms(60_000);
/// Between two looks when nothing is to be recovered.
const PAUSE: Nanos = ms(2_500);

/// Where the person is with it.
#[derive(Debug, Default)]
enum Stage {
    /// No majority was lost.
    #[default]
    Idle,
    Asks,
    Condemns(Box<Plan>),
    Orders(Box<Plan>),
    /// Placement is to be told.
    Records,
    /// Nothing is to be recovered.
    Looks,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Recovery {
    pub rng: Rng,
    stage: Stage,
    /// Since when it is in that stage.
    since: Nanos,
    surveys: BTreeMap<u64, v1::SurveyResponse>,
    plans: u64,
    dead: BTreeSet<u64>,
    /// What became of the orders of a plan, by range.
    answers: BTreeMap<u64, Result<Recovered>>,
    /// Ranges that went on, each by a plan.
    pub went_on: BTreeSet<(RangeId, String)>,
    /// Placement has heard of all that are dead.
    told: bool,
    /// The last look has found nothing to be recovered, then.
    well_at: Option<Nanos>,
    healing_since: Option<Nanos>,
    /// Spans stay without a range: nobody remembers which held them.
    pub gaps: bool,
}

/// What a person asks of one node.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Look,
    Survey,
    Committed(Vec<v1::CommittedEntry>),
    Condemn,
    Order(Box<v1::RecoverReplica>),
    Birth(Box<v1::RangeDescriptor>),
}

impl Recovery {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed, 18),
            stage: Stage::Idle,
            since: 0,
            surveys: BTreeMap::new(),
            plans: 0,
            dead: BTreeSet::new(),
            answers: BTreeMap::new(),
            went_on: BTreeSet::new(),
            told: false,
            well_at: None,
            healing_since: None,
            gaps: false,
        }
    }

    pub(super) fn begin(&mut self) {
        self.stage = Stage::Asks;
        self.surveys.clear();
    }

    fn name_dead(&mut self, dead: impl IntoIterator<Item = u64>) {
        let before = self.dead.len();
        self.dead.extend(dead);
        self.told &= self.dead.len() == before;
    }

    /// Whether something was done that placement has yet to hear of.
    fn is_to_tell(&self) -> bool {
        !self.told && !self.went_on.is_empty()
    }
}

impl Cluster {
    /// Whether nothing is to be recovered any more, as was found out since no new fault begins.
    pub(crate) fn recovery_is_over(&mut self) -> bool {
        let now = self.now;
        let Some(recovery) = self.real.as_mut().map(|real| &mut real.recovery) else { return true };
        if matches!(recovery.stage, Stage::Idle) {
            return true;
        }
        let since = *recovery.healing_since.get_or_insert(now);
        let over = recovery.well_at.is_some_and(|at| at > since);
        if !over && now > since + LIMIT {
            let what = format!("I13: what the loss of a majority left is not recovered: {recovery:?}");
            self.check(Err(what));
        } else if !over && now > since + ROUGH {
            self.network.become_calm();
        }
        over
    }

    /// Whether ids of nodes that the lost ones knew may be given out again. In the product those ids leap.
    pub(crate) fn may_forget_nodes(&self) -> bool {
        let went_on = |of: &Recovery| of.went_on.iter().any(|(range, _)| *range == SYSTEM_RANGE);
        self.real.as_ref().is_some_and(|real| !real.recovery.told && went_on(&real.recovery))
    }

    /// Whether spans are left that no range holds, and nobody remembers which did: there is nothing more to be done.
    pub(crate) fn left_gaps(&self) -> bool {
        self.real.as_ref().is_some_and(|real| real.recovery.gaps)
    }

    /// The person's next step.
    pub(super) fn recover(&mut self) {
        let now = self.now;
        let Some(real) = &mut self.real else { return };
        let pause = match real.recovery.stage {
            Stage::Looks => PAUSE,
            _ => real.recovery.rng.between(ms(100), ms(900)),
        };
        self.schedule.at(now + pause, Event::Placed(Placed::Recovering));
        let waited = now - real.recovery.since;
        match std::mem::take(&mut real.recovery.stage) {
            Stage::Idle => {}
            Stage::Asks => self.ask_or_plan(waited),
            Stage::Looks => {
                real.recovery.surveys.clear();
                self.next_stage(Stage::Asks);
                self.ask_or_plan(0);
            }
            Stage::Condemns(plan) => self.condemn_or_order(plan),
            Stage::Orders(plan) => self.order_on(plan, waited),
            Stage::Records => self.record(waited),
        }
    }

    fn next_stage(&mut self, stage: Stage) {
        let now = self.now;
        let Some(real) = &mut self.real else { return };
        real.recovery.since = now;
        real.recovery.stage = stage;
    }

    fn stay(&mut self, stage: Stage) {
        if let Some(real) = &mut self.real {
            real.recovery.stage = stage;
        }
    }

    fn ask_node(&mut self, node: u64, ask: Ask) {
        let Some(real) = &mut self.real else { return };
        let at = self.now + real.recovery.rng.between(ms(1), ms(20));
        self.schedule.at(at, Event::Placed(Placed::Recover(node as usize - 1, ask)));
    }

    /// Once all living nodes have answered there is a plan; until then they are asked.
    fn ask_or_plan(&mut self, waited: Nanos) {
        let Some(real) = &mut self.real else { return };
        let members = real.members();
        let surveys = std::mem::take(&mut real.recovery.surveys);
        let complete = !surveys.is_empty() && members.iter().all(|node| surveys.contains_key(node));
        self.stay(Stage::Asks);
        if complete {
            let surveys: Vec<_> = surveys.into_values().collect();
            let told = product::committed(&surveys);
            let settled = told.is_empty() && product::unsettled(&surveys).is_empty();
            if settled || waited > PATIENCE {
                return self.make_plan(&surveys);
            }
            for (node, entries) in told {
                self.ask_node(node, Ask::Committed(entries));
            }
        }
        for node in members {
            self.ask_node(node, Ask::Look);
        }
    }

    fn make_plan(&mut self, surveys: &[v1::SurveyResponse]) {
        let Some(real) = &mut self.real else { return };
        let answered: BTreeSet<u64> = surveys.iter().map(|of| of.node_id).collect();
        let known = surveys.iter().flat_map(|of| &of.nodes).map(|of| of.node_id);
        let replicas = surveys.iter().flat_map(|of| &of.replicas).filter_map(|of| of.descriptor.as_ref());
        let ranges = replicas.chain(surveys.iter().flat_map(|of| &of.routes));
        let named: BTreeSet<u64> = ranges.flat_map(|of| &of.replicas).map(|of| of.node_id).chain(known).collect();
        let missing: BTreeSet<u64> = named.difference(&answered).copied().collect();
        real.recovery.plans += 1;
        // Those that were given up before are named again; and so are those of which no survivor has heard, but the person has: such a
        // one would come back as a member like any, with a history that ended here.
        let given_up = surveys.iter().flat_map(|of| &of.condemned).copied().chain(real.loss.lost());
        let dead: BTreeSet<u64> = given_up.filter(|node| !answered.contains(node)).chain(missing).collect();
        if dead.is_empty() {
            // All are back.
            return self.nothing_more(false);
        }
        let wish = Wish {
            plan_id: format!("plan {}", real.recovery.plans),
            unix_ms: UNIX_MS_AT_START + self.now / 1_000_000,
            decided_by: "a person".into(),
            dead: dead.clone(),
            recreate_empty: true,
        };
        real.recovery.name_dead(dead);
        match product::plan(&wish, surveys) {
            Ok(plan) if plan.kept.is_empty() && plan.recreated.is_empty() => self.nothing_more(true),
            Ok(plan) => {
                self.marks.hit(Mark::RecoveryPlanned);
                self.invariants.territory.doubt();
                self.check_plan(&plan, surveys);
                self.trace.say(self.now, || format!("a plan: {plan:?}"));
                self.next_stage(Stage::Condemns(Box::new(plan)));
            }
            // A hole in a keyspace that nobody has been told of yet would be found only behind the end of this.
            Err(refusals) if refusals[0].contains("plan again once placement runs") => self.next_stage(Stage::Asks),
            Err(refusals) if refusals[0].contains("nothing is to be recovered") => {
                self.nothing_more(refusals[0].contains("nobody remembers"));
            }
            Err(refusals) => {
                self.trace.say(self.now, || format!("no plan: {refusals:?}"));
                self.next_stage(Stage::Asks);
            }
        }
    }

    /// A keyspace that was being created goes on being created: placement fills what the plan calls a gap, with nothing.
    fn gaps_are_lost(&mut self, plan: &Plan) {
        for (keyspace_id, start, end) in plan.gaps.clone() {
            let span = v1::RangeDescriptor { keyspace_id, start, end, ..Default::default() };
            let members = self.real.as_ref().map(Real::members).unwrap_or_default();
            let held = |node: &u64| {
                let mut held = self.invariants.territory.on_store(*node as usize - 1);
                held.any(|of| territory::overlap(of, &span))
            };
            if members.iter().any(held) {
                // It was filled since the survey.
                continue;
            }
            self.invariants.forget_versions(&span);
            self.forget_values(&span, &BTreeMap::new());
        }
    }

    /// Of survivors with an equal say the one that goes on must have all that any of them has, as far as it is committed.
    fn check_plan(&mut self, plan: &Plan, surveys: &[v1::SurveyResponse]) {
        for kept in &plan.kept {
            let range = kept.order.range_id;
            let of_range = surveys.iter().flat_map(|of| of.replicas.iter().map(|replica| (of.node_id, replica)));
            let of_range: Vec<_> =
                of_range.filter(|(_, of)| of.descriptor.as_ref().is_some_and(|of| of.range_id == range)).collect();
            let age = |of: &&v1::RangeDescriptor| of.epoch.map(|epoch| (epoch.conf_ver, epoch.version));
            let newest = of_range.iter().filter_map(|(_, of)| of.descriptor.as_ref()).max_by_key(age);
            let votes = |node: u64, replica: u64| {
                newest.is_some_and(|of| {
                    of.replicas.iter().any(|of| {
                        (of.node_id, of.replica_id) == (node, replica) && of.role() != v1::ReplicaRole::Learner
                    })
                })
            };
            if !votes(kept.node, kept.order.replica_id) {
                self.marks.hit(Mark::RecoveredWithoutVoter);
                continue;
            }
            let voters: Vec<u64> =
                of_range.iter().filter(|(node, of)| votes(*node, of.replica_id)).map(|(node, _)| *node).collect();
            if voters.len() > 1 {
                self.marks.hit(Mark::RecoveryCompared);
            }
            let verdict = self.invariants.check_kept(kept.node, &kept.order, &voters);
            self.check(verdict);
        }
    }

    /// No range goes on before every living node has given the dead up; and none does if one of them answers again.
    fn condemn_or_order(&mut self, plan: Box<Plan>) {
        let Some(real) = &self.real else { return };
        let back = plan.wish.dead.iter().any(|node| real.is_node_member(*node));
        let missing = |node: &u64| !real.is_node_member(*node) || !self.nodes[*node as usize - 1].is_up();
        if back || plan.living.keys().any(missing) {
            // As if it had not been read to the end: the next one is another.
            return self.next_stage(Stage::Asks);
        }
        let given_up =
            |node: &u64| real.loss.condemned.get(*node as usize - 1).is_some_and(|of| of.is_superset(&plan.wish.dead));
        let open: Vec<u64> = real.members().into_iter().filter(|node| !given_up(node)).collect();
        if open.is_empty() {
            self.gaps_are_lost(&plan);
            self.give_orders(&plan, true);
            return self.next_stage(Stage::Orders(plan));
        }
        for node in open {
            self.ask_node(node, Ask::Condemn);
        }
        self.stay(Stage::Condemns(plan));
    }

    /// What has not been done yet.
    fn give_orders(&mut self, plan: &Plan, first: bool) {
        let Some(real) = &mut self.real else { return };
        let answers = &mut real.recovery.answers;
        if first {
            answers.clear();
        }
        let open = plan.kept.iter().filter(|kept| !matches!(answers.get(&kept.order.range_id), Some(Ok(_))));
        let open: Vec<_> = open.map(|kept| (kept.node, Ask::Order(Box::new(kept.order.clone())))).collect();
        let births = plan.recreated.iter().map(|(node, of)| (*node, Ask::Birth(Box::new(of.clone()))));
        for (node, ask) in open.into_iter().chain(births) {
            self.ask_node(node, ask);
        }
    }

    fn order_on(&mut self, plan: Box<Plan>, waited: Nanos) {
        let Some(real) = &mut self.real else { return };
        let answers = &real.recovery.answers;
        let answer = |of: &product::Kept| answers.get(&of.order.range_id);
        let busy = plan.kept.iter().any(|of| matches!(answer(of), None | Some(Err(Error::ServerBusy { .. }))));
        if busy && waited < PATIENCE {
            self.give_orders(&plan, false);
            return self.stay(Stage::Orders(plan));
        }
        // What was given is given once more, now and then: what is done stays done.
        if real.recovery.rng.chance(200) {
            self.give_orders(&plan, true);
        }
        self.tell_or_ask();
    }

    /// As `recover apply` does it, placement is told behind each plan, whatever is left to be done: until then it waits for
    /// those who are lost, and nodes remember ranges that it would say are gone, which are planned for again (seed 47210).
    fn tell_or_ask(&mut self) {
        let tells = self.real.as_ref().is_some_and(|real| real.recovery.is_to_tell());
        self.next_stage(if tells { Stage::Records } else { Stage::Asks });
    }

    fn nothing_more(&mut self, gaps: bool) {
        let Some(real) = &mut self.real else { return };
        real.recovery.gaps = gaps;
        self.trace.say(self.now, || format!("nothing is to be recovered; spans that no range holds: {gaps}"));
        real.recovery.surveys.clear();
        if real.recovery.is_to_tell() {
            return self.next_stage(Stage::Records);
        }
        real.recovery.well_at = Some(self.now);
        self.next_stage(Stage::Looks);
        // With a hole in a keyspace nothing is settled.
        let Some(real) = self.real.as_ref().filter(|_| !gaps) else { return };
        for lost in self.invariants.territory.settled(|keyspace| real.ledger.is_dropped(keyspace)) {
            self.invariants.forget(lost);
        }
    }

    /// Placement is told who is gone, until it has heard. If it does not come back what it waits for may have to be recovered.
    fn record(&mut self, waited: Nanos) {
        self.stay(Stage::Records);
        let to = self.leader_of(SYSTEM_RANGE).unwrap_or_default();
        let Some(real) = &mut self.real else { return };
        if real.recovery.told || waited > PATIENCE {
            real.recovery.surveys.clear();
            return self.next_stage(Stage::Asks);
        }
        let lost = |node: &&u64| matches!(real.slots[**node as usize - 1], Slot::Lost(_) | Slot::Empty);
        let request = v1::RecordRecoveryRequest {
            plan_id: format!("plan {}", real.recovery.plans),
            dead_nodes: real.recovery.dead.iter().filter(lost).copied().collect(),
            what: format!("{} ranges went on with one replica each", real.recovery.went_on.len()),
        };
        self.ask_placement(Asker::People, to, Request::RecordRecovery(request), ms(3_000));
    }

    pub(super) fn recovery_recorded(&mut self, result: &Result<Response>) {
        if let (Some(real), Ok(_)) = (&mut self.real, result) {
            real.recovery.told = true;
            self.marks.hit(Mark::RecoveryRecorded);
        }
    }

    /// Something that a person asks comes to a node.
    pub(super) fn recovery_asked(&mut self, index: usize, ask: Ask) {
        let node = &self.nodes[index];
        let away = !node.is_up() || node.clients_cut > 0 || self.now < node.paused_until.max(node.stalled_until);
        let Some(real) = self.real.as_mut().filter(|real| !away && real.is_member(index)) else { return };
        match ask {
            Ask::Look => {
                self.give(index, Input::Survey);
                self.ask_node(index as u64 + 1, Ask::Survey);
            }
            Ask::Survey => self.survey(index),
            Ask::Committed(entries) => {
                entries.into_iter().for_each(|entry| self.give(index, Input::Committed(entry)));
            }
            Ask::Condemn => {
                let Stage::Condemns(plan) = &real.recovery.stage else { return };
                let dead = plan.wish.dead.clone();
                if !dead.iter().any(|node| real.is_node_member(*node)) {
                    real.condemn(index, &dead);
                }
            }
            Ask::Order(order) => {
                let token = Token(order.range_id);
                self.give(index, Input::Recover { token, order });
            }
            Ask::Birth(descriptor) => self.begin_again(index, &descriptor),
        }
    }

    fn survey(&mut self, index: usize) {
        let Some(process) = &self.nodes[index].process else { return };
        let Some(real) = &self.real else { return };
        let own = id_of(index);
        let known = real.loss.known.get(index).into_iter().flatten().copied();
        let live = |node: u64| real.is_node_member(node) && self.nodes[node as usize - 1].is_up();
        let nodes = known.map(|node_id| v1::SurveyedNode { node_id, live: live(node_id), ..Default::default() });
        let answer = v1::SurveyResponse {
            cluster_id: CLUSTER,
            node_id: own.0,
            store_id: real.store_of(index),
            boot_id: self.nodes[index].life,
            replicas: process.store.ranges().map(|of| of.surveyed(own)).collect(),
            routes: process.routes().ranges.into_iter().filter_map(|of| of.descriptor).collect(),
            nodes: nodes.collect(),
            keyspaces: process.agent.learned.keyspaces.clone(),
            condemned: real.loss.condemned.get(index).into_iter().flatten().copied().collect(),
            ..Default::default()
        };
        if let Some(real) = &mut self.real {
            real.recovery.surveys.insert(own.0, answer);
        }
    }

    /// An order was carried out, or refused.
    pub(crate) fn recovery_answered(&mut self, token: Token, answer: Result<Recovered>) {
        self.trace.say(self.now, || format!("the recovery of range {}: {answer:?}", token.0));
        if answer == Ok(Recovered::Before) {
            self.marks.hit(Mark::RecoveryRepeated);
        } else if answer.is_err() {
            self.marks.hit(Mark::RecoveryRefused);
        }
        if let Some(real) = &mut self.real {
            real.recovery.answers.insert(token.0, answer);
        }
    }

    /// A range of which nothing is left begins again, empty.
    fn begin_again(&mut self, index: usize, descriptor: &v1::RangeDescriptor) {
        let range = RangeId(descriptor.range_id);
        let Some(real) = &mut self.real else { return };
        let members: Vec<usize> = real.members().iter().map(|node| *node as usize - 1).collect();
        let territory = &self.invariants.territory;
        let held = members.iter().any(|node| territory.on_store(*node).any(|of| of.range_id == range.0));
        let plan = format!("plan {}", real.recovery.plans);
        if held {
            return;
        }
        // What was told before may have been lost with the node's process.
        if real.recovery.went_on.insert((range, plan)) {
            self.marks.hit(Mark::RangeBeganAgain);
            self.invariants.forget(range);
            self.invariants.forget_versions(descriptor);
            self.forget_values(descriptor, &BTreeMap::new());
        }
        self.give(index, Input::Births(vec![descriptor.clone()]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_is_told_behind_the_first_plan_and_again_once_more_are_dead() {
        let mut recovery = Recovery::new(1);
        recovery.name_dead([2, 3]);
        assert!(!recovery.is_to_tell(), "nothing was done yet");
        recovery.went_on.insert((RangeId(5), "plan 1".into()));
        assert!(recovery.is_to_tell());
        recovery.told = true;
        recovery.name_dead([3, 2]);
        assert!(!recovery.is_to_tell(), "it has heard of them");
        recovery.name_dead([4]);
        assert!(recovery.is_to_tell());
    }
}
