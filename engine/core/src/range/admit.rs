//! Which writes a replica takes: those of its own keys and epoch, while it leads and has room for them.
//!
//! A write that comes while the range changes hands waits for the new leader's name (`transfer.rs`); all other refusals
//! are given at once. Whatever is refused here is surely not applied.

use std::collections::BTreeSet;

use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, NodeId, v1};

use super::{Range, Shared, Turn, proposals, transfer};
use crate::store::Write;
use crate::{command, read};

impl Range {
    /// Takes a client's write, or answers it with a refusal.
    pub(crate) fn write(&mut self, turn: &mut Turn<'_>, write: Write) {
        if let Err(error) = self.admit_write(turn, &write) {
            turn.effects.writes.push((write.token, Err(error)));
            return;
        }
        let bytes = proposals::request_bytes(&write.request);
        turn.shared.proposal_bytes += bytes;
        if let Some(load) = &mut self.load {
            load.wrote(bytes, write.request.ops.iter().filter_map(command::op_key));
        }
        self.is_asked();
        self.proposals.queue(write);
    }

    fn admit_write(&self, turn: &Turn<'_>, write: &Write) -> Result<(), Error> {
        read::check_epoch(&self.descriptor, &self.siblings, Some(&write.epoch))?;
        if self.changes_hands() {
            self.may_wait_for_leader(turn, write.deadline)?;
        } else if !self.leads() {
            return Err(self.not_leader());
        } else if turn.shared.draining {
            return Err(transfer::busy());
        }
        self.check_not_frozen()?;
        check_ops(&write.request)?;
        for op in &write.request.ops {
            if !command::op_key(op).is_some_and(|key| read::contains(&self.descriptor, key)) {
                return Err(Error::KeyNotInRange { range: self.id, descriptors: self.known_descriptors() });
            }
        }
        self.check_room(turn.shared, write)?;
        let bytes = proposals::request_bytes(&write.request);
        let config = &turn.shared.config;
        let busy = |reason: &str| Error::ServerBusy { reason: reason.into(), retry_after_ms: 20 };
        // A single request always fits into an idle range, whatever the limit.
        if self.proposals.bytes() > 0 && self.proposals.bytes() + bytes > config.range_proposal_bytes_max {
            return Err(busy("the range has as many bytes of writes under way as it may"));
        }
        // Placement must be able to write while the others' writes fill the node: it is what relieves it.
        let of_others = self.id != SYSTEM_RANGE && turn.shared.proposal_bytes > 0;
        if of_others && turn.shared.proposal_bytes + bytes > config.node_proposal_bytes_max {
            return Err(busy("the node has as many bytes of writes under way as it may"));
        }
        Ok(())
    }

    /// Below the disk margin, here or on so many replicas that no quorum has room, only what frees
    /// space is taken.
    fn check_room(&self, shared: &Shared, write: &Write) -> Result<(), Error> {
        if shared.full_nodes.is_empty() || write.request.ops.iter().all(command::op_frees_space) {
            return Ok(());
        }
        let voters = self.descriptor.replicas.iter().filter(|replica| self.voters.contains(&replica.replica_id));
        let nodes = voters.map(|replica| NodeId(replica.node_id));
        let full: Vec<NodeId> = nodes.filter(|node| shared.full_nodes.contains(node)).collect();
        let quorum = self.voters.len() / 2 + 1;
        if full.contains(&shared.node) || self.voters.len() - full.len() < quorum {
            return Err(Error::DiskFull { nodes: full });
        }
        Ok(())
    }
}

/// The rule that apply rests on; the limits are checked where the request came in.
fn check_ops(request: &v1::WriteRequest) -> Result<(), Error> {
    if request.atomic {
        let mut keys = BTreeSet::new();
        for key in request.ops.iter().filter_map(command::op_key) {
            if !keys.insert(key) {
                return Err(Error::invalid(
                    "an atomic batch names a key twice",
                    "name each key once, or send the batch without `atomic`",
                ));
            }
        }
    }
    Ok(())
}
