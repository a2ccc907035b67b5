//! Questions to placement, and their way: over the simulated network, to whichever node is taken for the system
//! range's leader; from there on by that node's hint. They are lost, late and doubled like all else.

use flotilla_placement::{Request, Response};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, Result};

use super::{Placed, Slot};
use crate::clock::{Nanos, ms, us};
use crate::cluster::Cluster;
use crate::marks::Mark;
use crate::network::Fate;
use crate::node::index_of;
use crate::schedule::{Event, Life};

/// How often a question follows a hint.
const HOPS_MAX: u32 = 4;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Agent(Life),
    /// The store of a node that wants to join.
    Joiner(u64),
    People,
}

/// A question under way.
#[derive(Debug)]
pub(super) struct Call {
    asker: Asker,
    request: Request,
    hops: u32,
}

/// A question on its way. It counts where it arrives, whether or not anybody still waits for the answer.
#[derive(Debug)]
pub(crate) struct Question {
    pub to: usize,
    call: u64,
    asker: Asker,
    request: Request,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Back {
    call: u64,
    asker: Asker,
}

impl Cluster {
    /// Asks; `Cluster::answer_for` is called once, with an answer or an error.
    pub(super) fn ask_placement(&mut self, asker: Asker, to: usize, request: Request, patience: Nanos) {
        let Some(real) = &mut self.real else { return };
        real.last_call += 1;
        let call = real.last_call;
        real.calls.insert(call, Call { asker, request, hops: 0 });
        self.schedule.at(self.now + patience, Event::Placed(Placed::GivenUp(call)));
        self.send_question(call, to);
    }

    fn send_question(&mut self, call: u64, to: usize) {
        let Some(of) = self.real.as_ref().and_then(|real| real.calls.get(&call)) else { return };
        let (asker, request) = (of.asker, of.request.clone());
        match self.way(asker, to, false) {
            Some((at, again)) => {
                for at in [Some(at), again].into_iter().flatten() {
                    let question = Question { to, call, asker, request: request.clone() };
                    self.schedule.at(at, Event::Placed(Placed::Asks(Box::new(question))));
                }
            }
            None => {
                // A connection that cannot be made is noticed, one that hangs is not.
                if self.rng.chance(500) {
                    let error = Err(Error::Unavailable { reason: "the connection broke".into() });
                    let at = self.now + self.rng.delay(ms(20));
                    self.schedule.at(at, Event::Placed(Placed::Answered(call, Box::new(error))));
                }
            }
        }
    }

    /// When something arrives that goes between an asker and a node, and whether it comes twice.
    fn way(&mut self, asker: Asker, node: usize, back: bool) -> Option<(Nanos, Option<Nanos>)> {
        let Asker::Agent(life) = asker else {
            let lost = self.nodes[node].clients_cut > 0 || self.network.loses_answer();
            return (!lost).then(|| (self.now + self.network.client_delay(), None));
        };
        if life.node == node {
            return Some((self.now + us(5), None));
        }
        let (from, to) = if back { (node, life.node) } else { (life.node, node) };
        match self.network.send(self.now, from, to, 0) {
            Fate::Arrives(at, again) => Some((at, again)),
            Fate::Lost | Fate::Cut => None,
        }
    }

    pub(super) fn question_arrives(&mut self, question: Question) {
        let node = &self.nodes[question.to];
        if self.now < node.paused_until {
            let at = node.paused_until + us(1);
            return self.schedule.at(at, Event::Placed(Placed::Asks(Box::new(question))));
        }
        let Question { to, call, asker, request } = question;
        let back = Back { call, asker };
        if !node.is_up() {
            let reason = "connection refused".into();
            return self.answer(to, back, Err(Error::Unavailable { reason }));
        }
        if self.reign(to).is_none() {
            self.marks.hit(Mark::AskedElsewhere);
            let refusal = self.elsewhere(to);
            return self.answer(to, back, Err(refusal));
        }
        self.host_is_asked(to, request, back);
    }

    /// The refusal of a node that does not lead the system range.
    fn elsewhere(&self, index: usize) -> Error {
        let own = self.nodes[index].process.as_ref().and_then(|process| process.views.get(&SYSTEM_RANGE));
        let leader = own.and_then(|view| view.leader).or_else(|| {
            let route = self.nodes[index].process.as_ref()?.agent.learned.ranges.get(SYSTEM_RANGE.0)?;
            (route.leader_node_id != 0).then_some(route.leader_node_id.into())
        });
        Error::NotLeader {
            range: SYSTEM_RANGE,
            leader: leader.filter(|node| index_of(*node) != index),
            descriptors: Vec::new(),
        }
    }

    /// A node answers.
    pub(super) fn answer(&mut self, from: usize, back: Back, result: Result<Response>) {
        if let Some((at, again)) = self.way(back.asker, from, true) {
            for at in [Some(at), again].into_iter().flatten() {
                self.schedule.at(at, Event::Placed(Placed::Answered(back.call, Box::new(result.clone()))));
            }
        }
    }

    pub(super) fn answer_arrives(&mut self, call: u64, result: Result<Response>) {
        let Some(real) = &mut self.real else { return };
        let Some(of) = real.calls.get_mut(&call) else { return };
        if let Asker::Agent(life) = of.asker
            && self.now < self.nodes[life.node].paused_until
        {
            let at = self.nodes[life.node].paused_until + us(1);
            return self.schedule.at(at, Event::Placed(Placed::Answered(call, Box::new(result))));
        }
        if let Err(Error::NotLeader { leader: Some(leader), .. }) = &result
            && of.hops < HOPS_MAX
        {
            of.hops += 1;
            return self.send_question(call, index_of(*leader));
        }
        let Some(of) = real.calls.remove(&call) else { return };
        self.answer_for(of.asker, &of.request, result);
    }

    pub(super) fn call_given_up(&mut self, call: u64) {
        let Some(of) = self.real.as_mut().and_then(|real| real.calls.remove(&call)) else { return };
        self.answer_for(of.asker, &of.request, Err(Error::Timeout { stage: "while placement was asked".into() }));
    }

    fn answer_for(&mut self, asker: Asker, request: &Request, result: Result<Response>) {
        match asker {
            Asker::Agent(life) => self.agent_is_answered(life, result),
            Asker::Joiner(store) => self.join_answered(store, result),
            Asker::People => self.people_are_answered(request, &result),
        }
    }

    /// Some node that might answer.
    pub(super) fn some_member(&mut self, except: Option<usize>) -> usize {
        let Some(real) = &mut self.real else { return 0 };
        let is_member = |index: &usize| matches!(real.slots[*index], Slot::Member(_)) && Some(*index) != except;
        let members: Vec<usize> = (0..real.slots.len()).filter(is_member).collect();
        if members.is_empty() { 0 } else { real.rng.pick(&members) }
    }
}
