//! One request of a caller, on its way: cut into parts by range, each part sent to the range's
//! leader, repeated where [`decide`] says so, and the answers joined.
//!
//! ```text
//! Call::new -> next: Send* / RefreshRoutes / WaitUntil -> on_outcome / on_routes -> next ... Done
//! ```
//! Invariants:
//! - every operation of a write is in exactly one part, waiting or in flight, until it has its
//!   result: so it is never under way twice;
//! - nothing is sent at or after the deadline; a write whose answer is out then is Ambiguous, and
//!   one that is not out is surely not applied.

use std::time::Duration;

use flotilla_proto::error::Action;
use flotilla_proto::{Error, NodeId, RangeId, Result, v1};
use v1::request::Body;

use super::cache::{Route, RouteCache};
use super::decide::{Access, Attempt, Decision, Failure, Target, backoff, decide, timed_out};
use super::places::Places;
use super::work::{Routed, Work};
use super::{Time, check, mix};

/// How long after its deadline a call still waits for an answer that is out: the node gives up at
/// the same deadline, and its verdict is better than "unknown".
pub const ANSWER_GRACE: Duration = Duration::from_millis(50);

/// A read that has no answer for so long asks another replica; doubled with each failure.
const READ_ATTEMPT: Duration = Duration::from_secs(1);

/// What came of sending one request to one node.
#[derive(Clone, Debug, PartialEq)]
pub enum CallOutcome {
    /// The node answered, if only with an error. The answer's id is not looked at.
    Response(v1::Response),
    /// The request surely never reached the node.
    NotSent(String),
    /// The node's address is not known: the request was not sent.
    NoAddress,
    /// The request may have reached the node, but the answer is lost.
    Broken(String),
}

/// What a [`Call`] wants done next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Send the request to the node, and tell what came of it by [`Call::on_outcome`], under the
    /// request's id.
    Send {
        /// To whom.
        node: NodeId,
        /// What; its id is unique within the call.
        request: v1::Request,
    },
    /// Nothing to do before an outcome, routes or this time.
    WaitUntil(Time),
    /// Ask any node for the ranges at these places, merge them into the cache, and tell by [`Call::on_routes`].
    /// Ask for the next step meanwhile: other parts may go on.
    RefreshRoutes(Places),
    /// The call is over; the last step. The answer is of the request's kind.
    Done(Result<v1::response::Body>),
}

/// Some of the call's items, on their way together.
#[derive(Debug)]
struct Part {
    items: Vec<u32>,
    failures: u32,
    last: Failure,
    target: Target,
    at: Time,
    refresh: bool,
    /// The refresh that it wants is under way.
    asked: bool,
}

impl Part {
    fn new(items: Vec<u32>, at: Time) -> Self {
        Self { items, failures: 0, last: Failure::NoAnswer, target: Target::Leader, at, refresh: false, asked: false }
    }
}

#[derive(Debug)]
struct Flight {
    id: u64,
    node: NodeId,
    range: RangeId,
    /// The version of the range's epoch that it was sent by.
    version: u64,
    part: Part,
    /// When another replica is asked; reads only.
    until: Option<Time>,
}

/// One request, from its arrival to its answer. See the module's head.
#[derive(Debug)]
pub struct Call {
    header: v1::RequestHeader,
    work: Work,
    deadline: Time,
    waiting: Vec<Part>,
    flights: Vec<Flight>,
    last_id: u64,
    refreshing: bool,
    /// Routes were learned since the call began.
    refreshed: bool,
    /// The last attempt to learn them failed, and was followed by a pause.
    refresh_failed: bool,
    answered_by: Option<v1::ResponseHeader>,
    outcome: Option<Result<()>>,
}

impl Call {
    /// A call that ends at `deadline`. The header's range id and epoch are ignored: they are set
    /// anew for each range. A request that breaks a limit is `Done` at once.
    pub fn new(body: Body, now: Time, deadline: Time) -> Self {
        let checked = check::check(&body);
        let header = check::header_of(&body).cloned().unwrap_or_default();
        let work = Work::new(body);
        let items: Vec<u32> = work.items().collect();
        let over = work.is_done() || checked.is_err();
        let part = Part::new(items, now);
        Self {
            header,
            work,
            deadline,
            waiting: if over { vec![] } else { vec![part] },
            flights: vec![],
            last_id: 0,
            refreshing: false,
            refreshed: false,
            refresh_failed: false,
            answered_by: None,
            outcome: checked.err().map(Err),
        }
    }

    /// The name of the keyspace that it is for; empty: the default one.
    pub fn keyspace(&self) -> &str {
        &self.header.keyspace
    }

    /// The next thing to do. Call it again until it is not [`Step::Send`].
    pub fn next(&mut self, now: Time, cache: &RouteCache, rand: u64) -> Step {
        self.expire(now, rand);
        loop {
            if let Some(done) = self.done() {
                return Step::Done(done);
            }
            let due = self.waiting.iter().position(|part| part.at <= now && !part.refresh);
            let Some(due) = due else { break };
            let part = self.waiting.remove(due);
            if let Some(step) = self.start(part, now, cache, mix(rand.wrapping_add(self.last_id))) {
                return step;
            }
        }
        match self.begin_refresh(now, cache) {
            Some(places) => Step::RefreshRoutes(places),
            None => Step::WaitUntil(self.wake_at()),
        }
    }

    /// Where routes are to be learned now; `None`: nowhere, or it is under way elsewhere.
    fn begin_refresh(&mut self, now: Time, cache: &RouteCache) -> Option<Places> {
        let mut places = Places::default();
        for part in self.waiting.iter_mut().filter(|part| !self.refreshing && part.refresh && part.at <= now) {
            part.asked = true;
            self.work.places(&part.items, cache, &mut places);
        }
        let asked = !self.refreshing && self.waiting.iter().any(|part| part.asked);
        self.refreshing |= asked;
        asked.then_some(places)
    }

    /// Tells what came of the request `id`; one that the call no longer waits for is ignored.
    pub fn on_outcome(&mut self, now: Time, cache: &mut RouteCache, rand: u64, id: u64, outcome: CallOutcome) {
        let Some(at) = self.flights.iter().position(|flight| flight.id == id) else { return };
        let flight = self.flights.swap_remove(at);
        let failure = match outcome {
            CallOutcome::NotSent(reason) => Failure::NotSent(reason),
            CallOutcome::NoAddress => Failure::NoAddress,
            CallOutcome::Broken(reason) => Failure::Broken(reason),
            CallOutcome::Response(response) => match response.body {
                None => Failure::Broken("an answer without a body came".into()),
                Some(v1::response::Body::Error(error)) => Failure::Answer(error.into()),
                Some(body) => return self.on_answer(now, cache, rand, flight, body),
            },
        };
        self.on_failure(now, cache, rand, flight, failure);
    }

    /// Tells that [`Step::RefreshRoutes`] is carried out: `Ok` once the routes are in the cache.
    pub fn on_routes(&mut self, now: Time, rand: u64, result: Result<()>) {
        self.refreshing = false;
        self.refreshed |= result.is_ok();
        self.refresh_failed = result.is_err();
        for part in self.waiting.iter_mut().filter(|part| part.asked) {
            (part.refresh, part.asked) = (false, false);
            if let Err(error) = &result {
                // What the cache has may still do.
                part.failures += 1;
                part.last = Failure::Answer(error.clone());
                part.at = now.saturating_add(backoff(part.failures, rand));
            }
        }
    }

    /// Ends what is not under way with this error: the keyspace is gone. Answers that are out are
    /// still waited for.
    pub fn abandon(&mut self, error: &Error) {
        for part in std::mem::take(&mut self.waiting) {
            self.give_up(&part.items, error.clone());
        }
    }

    /// Sends a part; `None` where it was cut, or cannot go yet, or is over.
    fn start(&mut self, mut part: Part, now: Time, cache: &RouteCache, rand: u64) -> Option<Step> {
        let route = match self.work.route(&part.items, cache) {
            Routed::One(route) => route,
            Routed::Cut(cuts) => {
                let cut = |items| Part { items, last: part.last.clone(), ..part };
                self.waiting.extend(cuts.into_iter().map(cut));
                return None;
            }
            Routed::Unknown => {
                self.await_route(part, now, rand);
                return None;
            }
            // The cache may be behind a merge: refused only by what is known now.
            Routed::Refused(error) if self.refreshed => {
                self.give_up(&part.items, error);
                return None;
            }
            Routed::Refused(_) => {
                part.refresh = true;
                self.waiting.push(part);
                return None;
            }
        };
        let Some(node) = self.pick(cache, route, &part, rand) else {
            self.await_route(part, now, rand);
            return None;
        };
        self.last_id += 1;
        let id = self.last_id;
        let body = self.work.build(&part.items, route, self.header_for(route, now, cache.cluster()));
        let until = match self.work.access() {
            Access::Read if !self.work.may_take_long() => {
                Some(now.saturating_add(READ_ATTEMPT.saturating_mul(1 << part.failures.min(6))))
            }
            _ => None,
        };
        self.flights.push(Flight { id, node, range: route.range(), version: route.version(), part, until });
        Some(Step::Send { node, request: v1::Request { id, body: Some(body) } })
    }

    /// No route is known for the part: learn it, at once the first time.
    fn await_route(&mut self, mut part: Part, now: Time, rand: u64) {
        if part.failures > 0 && !self.refresh_failed {
            part.at = now.saturating_add(backoff(part.failures, rand));
        }
        if matches!(part.last, Failure::NoAnswer) {
            part.last = Failure::NotSent("no node knows which range holds the key".into());
        }
        part.failures += 1;
        part.refresh = true;
        if part.at >= self.deadline {
            return self.give_up(&part.items, timed_out(part.failures, &part.last));
        }
        self.waiting.push(part);
    }

    fn header_for(&self, route: &Route, now: Time, cluster_id: u64) -> v1::RequestHeader {
        let left_ms = u64::try_from(self.deadline.saturating_sub(now).as_millis()).unwrap_or(u64::MAX);
        v1::RequestHeader {
            range_id: route.descriptor.range_id,
            epoch: route.descriptor.epoch,
            // 0 would mean the node's default.
            timeout_ms: left_ms.max(1),
            trace_id: self.header.trace_id,
            consistency: self.header.consistency,
            // The range's id says it.
            keyspace: String::new(),
            cluster_id,
        }
    }

    fn is_stale_read(&self) -> bool {
        self.work.access() == Access::Read && self.header.consistency == i32::from(v1::ReadConsistency::Stale)
    }

    /// The node to ask; `None` if the range has no replicas that can answer.
    fn pick(&self, cache: &RouteCache, route: &Route, part: &Part, rand: u64) -> Option<NodeId> {
        let stale = self.is_stale_read();
        let nodes = || {
            let replicas = route.descriptor.replicas.iter().filter(move |replica| stale || may_lead(replica));
            replicas.map(|replica| NodeId(replica.node_id))
        };
        let any = |not: Option<NodeId>| {
            let count = nodes().filter(|node| Some(*node) != not).count();
            let at = usize::try_from(rand % (count.max(1) as u64)).unwrap_or(0);
            nodes().filter(|node| Some(*node) != not).nth(at)
        };
        let local = || cache.local().filter(|local| nodes().any(|node| node == *local));
        // A leader is believed even where the descriptor does not name it: then that is behind.
        match part.target {
            Target::Node(node) => Some(node),
            Target::Other(node) if stale => any(Some(node)).or_else(|| any(None)),
            Target::Other(node) => {
                route.leader.filter(|leader| *leader != node).or_else(|| any(Some(node))).or_else(|| any(None))
            }
            Target::Leader if stale => local().or_else(|| any(None)),
            Target::Leader => route.leader.or_else(local).or_else(|| any(None)),
        }
    }

    fn on_answer(&mut self, now: Time, cache: &mut RouteCache, rand: u64, flight: Flight, body: v1::response::Body) {
        let header = header_of(&body).cloned().unwrap_or_default();
        let mut refused = match self.work.absorb(&flight.part.items, body) {
            Ok(refused) => refused,
            Err(failure) => return self.on_failure(now, cache, rand, flight, failure),
        };
        if !self.is_stale_read() {
            cache.set_leader(flight.range, flight.node, header.term);
        }
        let ranges = self.answered_by.as_ref().map_or(flight.range.0, |before| before.range_id);
        let range_id = if ranges == flight.range.0 { ranges } else { 0 };
        self.answered_by = Some(v1::ResponseHeader { range_id, trace_id: self.header.trace_id, ..header });
        if self.work.is_scan() {
            if !self.work.is_done() {
                self.waiting.push(Part::new(vec![], now));
            }
            return;
        }
        // Operations refused one by one: those that may be sent again go on together.
        refused.retain(|(item, error)| {
            let again = matches!(error.action(), Action::Retry | Action::RefreshRoute);
            if !again {
                self.give_up(&[*item], error.clone());
            }
            again
        });
        if let Some((_, error)) = refused.first().cloned() {
            let part = Part { items: refused.iter().map(|(item, _)| *item).collect(), ..flight.part };
            self.on_failure(now, cache, rand, Flight { part, ..flight }, Failure::Answer(error));
        }
    }

    fn on_failure(&mut self, now: Time, cache: &mut RouteCache, rand: u64, flight: Flight, failure: Failure) {
        let learned = learn(cache, &flight, &failure);
        self.conclude(now, rand, flight, failure, learned);
    }

    fn conclude(&mut self, now: Time, rand: u64, flight: Flight, failure: Failure, learned: bool) {
        let Flight { node, part, .. } = flight;
        let attempt = Attempt {
            access: self.work.access(),
            node,
            failures: part.failures,
            learned,
            now,
            deadline: self.deadline,
            rand,
        };
        match decide(&failure, &attempt) {
            Decision::GiveUp(error) => self.give_up(&part.items, error),
            Decision::Again { target, at, refresh } => {
                let failures = part.failures + 1;
                self.waiting.push(Part {
                    failures,
                    last: failure,
                    target,
                    at,
                    refresh,
                    asked: false,
                    items: part.items,
                });
            }
        }
    }

    fn give_up(&mut self, items: &[u32], error: Error) {
        if self.work.fails_whole() {
            self.outcome.get_or_insert(Err(error));
        } else {
            self.work.refuse(items, &error);
        }
    }

    /// Ends what the time that has passed ends.
    fn expire(&mut self, now: Time, rand: u64) {
        while let Some(at) = self.flights.iter().position(|flight| flight.until.is_some_and(|until| until <= now)) {
            let flight = self.flights.swap_remove(at);
            self.conclude(now, rand, flight, Failure::NoAnswer, false);
        }
        if now < self.deadline {
            return;
        }
        for part in std::mem::take(&mut self.waiting) {
            let error = match part.failures {
                0 => Error::Timeout { stage: "before it was sent".into() },
                failures => timed_out(failures, &part.last),
            };
            self.give_up(&part.items, error);
        }
        if now < self.deadline.saturating_add(ANSWER_GRACE) {
            return;
        }
        for flight in std::mem::take(&mut self.flights) {
            let error = match self.work.access() {
                Access::Read => Error::Timeout { stage: format!("while it waited for node {}", flight.node.0) },
                Access::Write => Error::Ambiguous {
                    reason: format!("node {} had not answered when the time was over", flight.node.0),
                },
            };
            self.give_up(&flight.part.items, error);
        }
    }

    fn wake_at(&self) -> Time {
        let parts =
            self.waiting.iter().map(|part| if part.refresh && self.refreshing { self.deadline } else { part.at });
        let flights = self.flights.iter().filter_map(|flight| flight.until);
        let end = match self.waiting.is_empty() {
            true => self.deadline.saturating_add(ANSWER_GRACE),
            false => self.deadline,
        };
        parts.chain(flights).fold(end, Time::min)
    }

    /// The result, once there is one.
    fn done(&mut self) -> Option<Result<v1::response::Body>> {
        if let Some(Err(error)) = &self.outcome {
            return Some(Err(error.clone()));
        }
        let under_way = !self.waiting.is_empty() || !self.flights.is_empty();
        if under_way && !(self.work.is_scan() && self.work.is_done()) {
            return None;
        }
        let header = self.answered_by.take();
        let header = header.unwrap_or(v1::ResponseHeader { trace_id: self.header.trace_id, ..Default::default() });
        Some(self.work.finish(header))
    }
}

/// Takes what a failure says about the routes into the cache; says whether more is known than
/// what the request was sent by.
fn learn(cache: &mut RouteCache, flight: &Flight, failure: &Failure) -> bool {
    match failure {
        Failure::Answer(Error::NotLeader { leader, descriptors, .. }) => {
            let learned = cache.merge_each(descriptors);
            cache.redirect(flight.range, flight.node, *leader);
            learned
        }
        Failure::Answer(Error::EpochMismatch { descriptors, .. } | Error::KeyNotInRange { descriptors, .. }) => {
            cache.merge_each(descriptors);
            // Another call may have been told before: what counts is whether more is known than was sent.
            let learned = cache.by_id(flight.range).is_none_or(|route| route.version() != flight.version);
            if !learned {
                cache.doubt_leader(flight.range, flight.node);
            }
            learned
        }
        Failure::NotSent(_)
        | Failure::Broken(_)
        | Failure::Answer(Error::Unavailable { .. } | Error::RangeNotFound { .. } | Error::ClusterMismatch { .. }) => {
            cache.doubt_leader(flight.range, flight.node);
            false
        }
        _ => false,
    }
}

/// Learners get the log and have no vote. In a joint configuration the voters of either set may lead.
fn may_lead(replica: &v1::ReplicaDescriptor) -> bool {
    replica.role != i32::from(v1::ReplicaRole::Learner)
}

fn header_of(body: &v1::response::Body) -> Option<&v1::ResponseHeader> {
    use v1::response::Body as Answer;
    match body {
        Answer::Get(answer) => answer.header.as_ref(),
        Answer::MultiGet(answer) => answer.header.as_ref(),
        Answer::Write(answer) => answer.header.as_ref(),
        Answer::Scan(answer) => answer.header.as_ref(),
        Answer::Error(_) => None,
    }
}

#[cfg(test)]
#[path = "call_test.rs"]
mod tests;
