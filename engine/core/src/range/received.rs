//! Messages from other nodes, on their way to Raft.
//!
//! raft-rs trusts its peers, and ends the process when one tells it what cannot be; so what comes in is
//! checked first, here against the replica's state, in [`crate::wire`] by itself. What is refused is as good as
//! lost on the way, which Raft is made for.
//!
//! Here too: the stamps that leases are drawn from, and the silence that a restarted store owes.

use flotilla_proto::{NodeId, v1};
use raft::eraftpb::{Message, MessageType};

use super::{Range, Turn};
use crate::store::{Envelope, Event, SnapshotData};
use crate::wire;

/// More senders than this are not remembered at once.
const STRANGERS_MAX: usize = 64;

impl Range {
    /// A message from another node.
    pub(crate) fn message(&mut self, turn: &mut Turn<'_>, envelope: Envelope) {
        let from = envelope.from;
        if self.doomed.is_some() {
            let reason = "the replica is going".into();
            turn.effects.events.push(Event::MessageRefused { from, range: self.id, reason });
        } else if let Err(reason) = self.step(turn, envelope) {
            turn.effects.events.push(Event::MessageRefused { from, range: self.id, reason });
        }
    }

    fn step(&mut self, turn: &mut Turn<'_>, envelope: Envelope) -> Result<(), String> {
        let (stamp, ack_stamp) = (envelope.message.stamp, envelope.message.ack_stamp);
        let sender = envelope.message.from_replica;
        let sleep_boot_id = envelope.message.sleep_boot_id;
        let sleep =
            (sleep_boot_id != 0).then_some((sleep_boot_id, (envelope.message.index, envelope.message.log_term)));
        self.check_sender(turn, sender, envelope.from, last_of_candidate(&envelope.message))?;
        if envelope.message.to_replica != self.replica {
            return Err(format!("it is for replica {}, this is {}", envelope.message.to_replica, self.replica));
        }
        if envelope.message.frozen != 0 {
            self.note_frozen(turn, sender, envelope.message.frozen);
            return Ok(());
        }
        let message = wire::from_wire(envelope.message).map_err(|error| error.to_string())?;
        let kind = message.get_msg_type();
        if let Some(data) = &envelope.snapshot {
            self.apply_splits_first(&data.header)?;
        }
        self.check_message(turn, &message, envelope.snapshot.as_ref())?;
        self.bring_snapshot(envelope.snapshot);
        let (from, term) = (message.from, message.term);
        if asks_for_vote(kind) && from == self.raft.raft.leader_id && term > self.term() {
            // Who led, and said that it sleeps, leads no more.
            self.forget_word();
        }
        let stepped = self.raft.step(message).map_err(|error| error.to_string());
        self.draw_election_timeout(&turn.shared.config);
        stepped?;
        if kind == MessageType::MsgTimeoutNow {
            self.note_told_to_lead(turn, from, term);
        }
        let heard = matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat);
        if heard && term == self.term() && self.raft.raft.leader_id == from {
            self.heard_leader(term, stamp, sleep.filter(|_| kind == MessageType::MsgHeartbeat));
        }
        if self.leads() && term == self.term() {
            self.heard_follower(turn.now, from, ack_stamp);
        }
        Ok(())
    }

    /// Whether the sender can be who it says. One that this replica's log does not know yet may be a member that
    /// was added since; one that was removed is told so.
    fn check_sender(&mut self, turn: &mut Turn<'_>, sender: u64, node: NodeId, last: u64) -> Result<(), String> {
        let known = self.descriptor.replicas.iter().find(|of| of.replica_id == sender);
        if known.is_some_and(|of| of.node_id == node.0) && sender != self.replica {
            return Ok(());
        }
        let elsewhere = known.is_some() || sender == 0 || self.strangers.get(&sender).is_some_and(|of| *of != node);
        if elsewhere {
            return Err(format!("replica {sender} is not on {node}"));
        }
        if sender < self.descriptor.next_replica_id && !self.unborn {
            let notice = self.removed_notice(turn, node, sender, last);
            turn.effects.messages.push(notice);
            return Err(format!("replica {sender} was removed"));
        }
        if self.strangers.len() >= STRANGERS_MAX {
            self.strangers.clear();
        }
        self.strangers.insert(sender, node);
        Ok(())
    }

    /// What must not reach Raft.
    fn check_message(&self, turn: &mut Turn<'_>, message: &Message, data: Option<&SnapshotData>) -> Result<(), String> {
        let kind = message.get_msg_type();
        if data.is_some() && kind != MessageType::MsgSnapshot {
            return Err("a snapshot came with a message of another type".into());
        }
        match kind {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote if turn.now < self.silent_until => {
                Err("no vote yet: this store restarted less than a lease ago".into())
            }
            _ if self.would_break_its_promise(message) => {
                Err("the leader of this term was heard less than an election time-out ago".into())
            }
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse
                if !self.unpersisted.is_empty() || self.installs_snapshot() =>
            {
                Err("it answers a request that has not left yet".into())
            }
            MessageType::MsgTimeoutNow if turn.shared.draining => Err("this node is stopping".into()),
            MessageType::MsgTimeoutNow if self.refuses_to_lead(turn, message.from) => Err("this node is slow".into()),
            MessageType::MsgTimeoutNow if self.installs_snapshot() => Err("a snapshot is being installed".into()),
            MessageType::MsgAppend if self.apply_backlog() > turn.shared.config.apply_bytes_max => {
                Err("apply is behind; the leader sends it again".into())
            }
            MessageType::MsgAppendResponse => self.check_append_response(message),
            MessageType::MsgHeartbeat
                if message.term >= self.term() && message.commit > self.raft.raft.raft_log.last_index() =>
            {
                turn.effects.fatal = Some(self.synced_data_is_gone(message.commit));
                Err("synced data is gone".into())
            }
            MessageType::MsgSnapshot => self.check_snapshot(message, data),
            _ => Ok(()),
        }
    }

    /// A follower that has just heard its leader has promised it to elect nobody else for now. raft-rs keeps that by not
    /// hearing candidates, but an answer of a higher term makes it forget its leader, and with it the promise: one to a
    /// pre-vote that it asked for before it heard the leader again, or to what it sent when it led itself. Nothing of a
    /// higher term needs to reach it but a leader of that term; raft-rs sees to candidates itself.
    fn would_break_its_promise(&self, message: &Message) -> bool {
        use MessageType::{MsgAppend, MsgHeartbeat, MsgRequestPreVote, MsgRequestVote, MsgSnapshot, MsgTimeoutNow};
        let raft = &self.raft.raft;
        let promised = raft.leader_id != 0 && !self.leads() && raft.election_elapsed < raft.election_timeout();
        let kind = message.get_msg_type();
        let elected = matches!(kind, MsgAppend | MsgHeartbeat | MsgSnapshot | MsgTimeoutNow);
        promised && message.term > self.term() && !elected && !matches!(kind, MsgRequestVote | MsgRequestPreVote)
    }

    /// A follower only ever acknowledges what this leader sent in this term.
    fn check_append_response(&self, message: &Message) -> Result<(), String> {
        let last = self.raft.raft.raft_log.last_index();
        if self.leads() && message.term == self.term() && message.index.max(message.reject_hint) > last {
            return Err(format!("it names entries that this leader does not have: its log ends at {last}"));
        }
        Ok(())
    }

    /// The leader only tells what this replica has acknowledged.
    fn synced_data_is_gone(&self, known: u64) -> String {
        format!(
            "range {}: the leader knows this replica to have log entry {known}, but its log ends at {}: synced data is gone; keep the data directory for inspection, and replace this node by one with a new node id",
            self.id,
            self.raft.raft.raft_log.last_index()
        )
    }

    fn apply_backlog(&self) -> usize {
        self.apply_bytes.iter().map(|(_, bytes)| bytes).sum()
    }
}

fn asks_for_vote(kind: MessageType) -> bool {
    matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote)
}

/// Where a candidate's log ends, if its message tells.
fn last_of_candidate(message: &v1::PeerMessage) -> u64 {
    let asks = [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote];
    if asks.iter().any(|kind| message.message_type == *kind as u32) { message.index } else { u64::MAX }
}
