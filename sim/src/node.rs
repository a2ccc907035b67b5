//! A simulated node: its disk and clock, which outlive its processes, and the process itself: the
//! production store core with the stages around it, and what is queued between them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use flotilla_engine::apply::{ApplyStage, ApplyTask};
use flotilla_engine::recover::Boot;
use flotilla_engine::store::{Input, LogBatch, ReadView, Store, Token};
use flotilla_engine::time::BootTime;
use flotilla_placement::Route;
use flotilla_proto::{NodeId, RangeId, v1};

use crate::clock::{Clock, Nanos};
use crate::disk::SimDisk;
use crate::faults::{CrashPoint, OnMergeAsked};
use crate::placement::{Agent, Host};
use crate::schedule::{Life, ReplyTo};
use crate::territory::{self, age};

/// What outlives a crash.
pub(crate) struct Node {
    pub index: usize,
    pub disk: SimDisk,
    pub clock: Clock,
    /// By how much its wall clock is wrong.
    pub wall_ahead_ms: i64,
    pub life: u64,
    pub process: Option<Process>,
    /// The whole process stands still until then.
    pub paused_until: Nanos,
    /// The store's loop stands still until then.
    pub stalled_until: Nanos,
    /// Nothing is applied until then.
    pub apply_stalled_until: Nanos,
    /// How long a sync takes, while the disk is slow.
    pub slow_sync: Option<Nanos>,
    /// How many there had been when they became slow.
    pub syncs_before: u64,
    /// How late the apply stage is, while it lags.
    pub slow_apply: Option<Nanos>,
    /// When the sync that is under way ends.
    pub disk_busy_until: Nanos,
    pub clients_cut: u32,
    /// Its disk is at its margin.
    pub has_no_room: bool,
    /// A crash that waits for its point, and how long the node is down then.
    pub armed: Option<(CrashPoint, Nanos, bool)>,
    /// What happens when it asks for a merge, and for how long.
    pub on_merge_asked: Option<(OnMergeAsked, Nanos)>,
    /// A restart that is on its way.
    pub restarting: bool,
    /// For how long the node stays down after its disk failed.
    pub down_after_failure: Nanos,
}

/// One process.
pub(crate) struct Process {
    pub store: Store,
    pub apply: ApplyStage,
    pub cluster_id: u64,
    pub inbox: Vec<Input>,
    pub turn_due: bool,
    pub turns: u64,
    pub views: BTreeMap<RangeId, Arc<ReadView>>,
    /// All ranges of the cluster, as placement has last told.
    pub table: BTreeMap<RangeId, v1::RangeStatus>,
    /// Batches that wait for the log writer, and those that it has written and not synced.
    pub log_queue: VecDeque<LogBatch>,
    pub log_written: Vec<LogBatch>,
    pub log_busy: bool,
    pub apply_queue: Vec<ApplyTask>,
    pub apply_due: bool,
    /// Applied index of each range as it was last written.
    pub applied_written: BTreeMap<RangeId, u64>,
    pub pending: BTreeMap<Token, Pending>,
    pub last_token: u64,
    /// It has come upon a record that rots, and is about to end.
    pub ends: bool,
    /// Of the real placement.
    pub agent: Agent,
    pub host: Host,
    /// Ids for new ranges were asked for, and are not asked for again before.
    pub ids_asked_until: Nanos,
}

/// A request that the node has not answered.
pub(crate) struct Pending {
    pub reply_to: ReplyTo,
    pub request: v1::Request,
    pub deadline: BootTime,
    /// How many turns there had been when it came.
    pub turn: u64,
    /// A read that was carried out and waits for its second check.
    pub answer: Option<v1::response::Body>,
}

impl Node {
    pub(crate) fn life(&self) -> Life {
        Life { node: self.index, number: self.life }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.process.is_some()
    }
}

/// Nodes are counted from 0, their ids from 1.
pub(crate) fn id_of(index: usize) -> NodeId {
    NodeId(index as u64 + 1)
}

/// See [`id_of`].
pub(crate) fn index_of(node: NodeId) -> usize {
    node.0 as usize - 1
}

impl Process {
    pub(crate) fn new(store: Store, boot: &Boot) -> Self {
        let views = store.initial_views().into_iter().map(|view| (view.range(), view)).collect();
        Self {
            apply: ApplyStage::new(boot),
            cluster_id: boot.identity.cluster_id,
            store,
            inbox: Vec::new(),
            turn_due: false,
            turns: 0,
            views,
            table: BTreeMap::new(),
            log_queue: VecDeque::new(),
            log_written: Vec::new(),
            log_busy: false,
            apply_queue: Vec::new(),
            apply_due: false,
            applied_written: BTreeMap::new(),
            pending: BTreeMap::new(),
            last_token: 0,
            ends: false,
            agent: Agent::default(),
            host: Host::default(),
            ids_asked_until: 0,
        }
    }

    /// Takes a request in under a token.
    pub(crate) fn pend(&mut self, pending: Pending) -> Token {
        self.last_token += 1;
        let token = Token(self.last_token);
        self.pending.insert(token, pending);
        token
    }

    /// The ranges as this node knows them: its own replicas', and what placement has told.
    pub(crate) fn routes(&self) -> v1::ListRangesResponse {
        let mut ranges = self.table.clone();
        for view in self.views.values() {
            let known = ranges.get(&view.range());
            let newer = |known: &v1::RangeStatus| {
                let age = known.descriptor.as_ref().map(age);
                age > Some(territory::age(&view.descriptor)) || known.term > view.term
            };
            if !known.is_some_and(newer) {
                let status = v1::RangeStatus {
                    descriptor: Some((*view.descriptor).clone()),
                    leader_node_id: view.leader.map_or(0, |node| node.0),
                    term: view.term,
                    ..Default::default()
                };
                ranges.insert(view.range(), status);
            }
        }
        // Of these one kind is empty.
        let mut all = self.agent.learned.ranges.clone();
        for route in ranges.values().filter_map(Route::told) {
            all.merge(route);
        }
        let ranges = if self.table.is_empty() {
            all.iter().map(Route::status).collect()
        } else {
            ranges.into_values().collect()
        };
        let keyspaces = self.agent.learned.keyspaces.clone();
        v1::ListRangesResponse { ranges, keyspaces, ..Default::default() }
    }
}
