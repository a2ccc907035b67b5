//! A scenario: a calm cluster in which only what the test says goes wrong.
//!
//! Waiting is for conditions, in simulated time. Every invariant is checked all the while, and
//! [`Scenario::finish`] heals everything and judges the whole run.

use std::time::Duration;

use bytes::Bytes;
use flotilla_engine::store::ReadView;
use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::{Error, RangeId, v1};
use flotilla_router::core::CallOutcome;
use v1::request::Body;
use v1::response::Body as Answer;

use crate::client::Mode;
use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::faults::{Cut, Fault, Target};
use crate::knobs::Knobs;
use crate::marks::Mark;
use crate::run::Options;
use crate::schedule::{Event, ReplyTo};

/// The one range of most scenarios.
pub(super) const RANGE: RangeId = RangeId(2);

/// Longer than any election takes.
const PATIENCE: Nanos = ms(30_000);

/// See the module.
pub(super) struct Scenario {
    pub cluster: Cluster,
    client: usize,
    asked: u64,
}

impl Scenario {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl FnOnce(&mut Knobs)) -> Self {
        let mut knobs = Knobs::calm(7);
        change(&mut knobs);
        let mut cluster = Cluster::new(knobs, Options::default());
        let client = cluster.add_client(Mode::Script);
        Self { cluster, client, asked: 0 }
    }

    pub(super) fn run_for(&mut self, length: Nanos) {
        let until = self.cluster.now + length;
        self.cluster.run_until(until);
        assert_eq!(self.cluster.failure, None);
    }

    pub(super) fn wait_until(&mut self, what: &str, condition: impl Fn(&Cluster) -> bool) {
        let give_up = self.cluster.now + PATIENCE;
        while !condition(&self.cluster) {
            assert!(self.cluster.now < give_up, "never: {what}");
            self.run_for(ms(5));
        }
    }

    pub(super) fn view(&self, node: usize) -> Option<&ReadView> {
        self.cluster.nodes[node].process.as_ref()?.views.get(&RANGE).map(|view| &**view)
    }

    /// Waits for a leader that serves, of a node other than `not`.
    pub(super) fn leader_other_than(&mut self, not: Option<usize>) -> usize {
        self.wait_until("a leader that serves", |cluster| serving(cluster).is_some_and(|node| Some(node) != not));
        serving(&self.cluster).expect("it was waited for")
    }

    pub(super) fn leader(&mut self) -> usize {
        self.leader_other_than(None)
    }

    /// Some node that is none of these.
    pub(super) fn another(&self, not: &[usize]) -> usize {
        (0..self.cluster.nodes.len()).find(|node| !not.contains(node)).expect("there are enough nodes")
    }

    pub(super) fn fault(&mut self, fault: &Fault) {
        let undo = self.cluster.inflict(fault);
        if let Some((undo, length)) = undo {
            let step = self.cluster.plan.len() + self.cluster.undo.len();
            self.cluster.undo.insert(step, undo);
            let at = self.cluster.now + length;
            self.cluster.schedule.at(at, Event::FaultEnds(step));
        }
    }

    pub(super) fn isolate(&mut self, node: usize, length: Nanos) {
        self.fault(&Fault::Partition { cut: Cut::Isolate(Target::Node(node)), length });
    }

    /// Asks through the router, and does not wait.
    pub(super) fn ask(&mut self, body: Body) {
        self.cluster.clients[self.client].script.push_back(body);
        self.cluster.nudge(self.client);
    }

    /// Waits for the answers to all that was asked through the router, and takes them.
    pub(super) fn answers(&mut self) -> Vec<Result<Answer, Error>> {
        let client = self.client;
        self.wait_until("the client's answers", |cluster| cluster.clients[client].is_idle());
        std::mem::take(&mut self.cluster.clients[client].answers)
    }

    pub(super) fn put(&mut self, key: &str, value: &str) {
        self.ask(put(key, value));
        let answers = self.answers();
        assert!(matches!(answers[..], [Ok(Answer::Write(_))]), "{answers:?}");
    }

    pub(super) fn get(&mut self, key: &str) -> Option<Bytes> {
        self.ask(get(key, None));
        match self.answers().pop() {
            Some(Ok(Answer::Get(answer))) => answer.record.map(|record| record.value),
            other => panic!("a get was answered by {other:?}"),
        }
    }

    /// Sends a request to one node, past the router; `None`: no answer within `patience`.
    pub(super) fn ask_node(&mut self, node: usize, body: Body, patience: Nanos) -> Option<Answer> {
        self.asked += 1;
        let reply_to = ReplyTo { client: usize::MAX, call: 0, id: self.asked };
        let now = self.cluster.now;
        let recorded = self.cluster.recorder.begin(99, DEFAULT_KEYSPACE, now, &body);
        let request = Box::new(v1::Request { id: self.asked, body: Some(body) });
        self.cluster.schedule.at(now, Event::Request { node, reply_to, request });
        while self.cluster.now < now + patience {
            self.run_for(ms(1));
            if let Some(outcome) = self.cluster.direct.remove(&self.asked) {
                let CallOutcome::Response(v1::Response { body: Some(answer), .. }) = outcome else { return None };
                let told = match answer.clone() {
                    Answer::Error(error) => Err(error.into()),
                    answer => Ok(answer),
                };
                let finished = self.cluster.recorder.finish(self.cluster.now, &recorded, &told);
                assert!(finished.is_ok(), "{finished:?}");
                return Some(answer);
            }
        }
        None
    }

    /// Has one node take a write, past the router; `None`: no answer within `patience`.
    pub(super) fn put_at(&mut self, node: usize, key: &str, value: &str, patience: Nanos) -> Option<Answer> {
        let Body::Write(mut batch) = put(key, value) else { return None };
        batch.header = Some(self.header(ms(20_000)));
        self.ask_node(node, Body::Write(batch), patience)
    }

    fn header(&self, timeout: Nanos) -> v1::RequestHeader {
        let epoch = self.cluster.layout.ranges[0].epoch;
        let timeout_ms = Duration::from_nanos(timeout).as_millis() as u64;
        v1::RequestHeader { range_id: RANGE.0, epoch, timeout_ms, ..Default::default() }
    }

    /// What a node answers to a read of a key within `patience`, if it answers with a value at all.
    pub(super) fn read_at(&mut self, node: usize, key: &str, patience: Nanos) -> Option<Option<Bytes>> {
        let header = self.header(patience);
        match self.ask_node(node, get(key, Some(header)), patience) {
            Some(Answer::Get(answer)) => Some(answer.record.map(|record| record.value)),
            _ => None,
        }
    }

    pub(super) fn count(&self, mark: Mark) -> u64 {
        self.cluster.marks.count(mark)
    }

    /// Heals everything, has the cluster prove that it is well, and judges all that clients saw. Returns what there is then.
    pub(super) fn finish(mut self) -> Cluster {
        self.cluster.heal();
        self.cluster.run_until(Nanos::MAX);
        assert_eq!(self.cluster.failure, None);
        assert!(self.cluster.ending.is_done());
        self.cluster
    }
}

fn serving(cluster: &Cluster) -> Option<usize> {
    let node = cluster.leader_of(RANGE)?;
    let view = cluster.nodes[node].process.as_ref()?.views.get(&RANGE)?;
    view.serves.then_some(node)
}

pub(super) fn put(key: &str, value: &str) -> Body {
    let put = v1::Put { key: key.to_owned().into(), value: value.to_owned().into(), if_absent: false, ttl_ms: 0 };
    write(v1::write_op::Op::Put(put))
}

pub(super) fn delete(key: &str) -> Body {
    write(v1::write_op::Op::Delete(v1::Delete { key: key.to_owned().into() }))
}

fn write(op: v1::write_op::Op) -> Body {
    Body::Write(v1::BatchRequest { header: None, ops: vec![v1::WriteOp { op: Some(op) }], atomic: false })
}

fn get(key: &str, header: Option<v1::RequestHeader>) -> Body {
    Body::Get(v1::GetRequest { header, key: key.to_owned().into() })
}
