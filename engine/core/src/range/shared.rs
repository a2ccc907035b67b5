//! What the ranges of a store share, and one turn of the store as they see it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flotilla_proto::{NodeId, v1};

use crate::config::Config;
use crate::health::Health;
use crate::recover::RangeBoot;
use crate::store::{Effects, Liveness, LogItem, Wish};
use crate::time::BootTime;

/// What the ranges of a store share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub config: Config,
    pub node: NodeId,
    /// Bytes of proposals under way in all ranges.
    pub proposal_bytes: usize,
    /// The last log batch that is durable.
    pub durable_sequence: u64,
    /// Nodes whose disks are at their margin, this one among them.
    pub full_nodes: BTreeSet<NodeId>,
    /// The process is to end: campaign no more.
    pub draining: bool,
    /// The settings of the keyspaces, by id.
    pub keyspaces: BTreeMap<u64, v1::Keyspace>,
    pub range_ids: RangeIds,
    /// How fast this node is, and the others.
    pub health: Health,
    /// Which other nodes are alive.
    pub liveness: Liveness,
    /// Counts the replicas that this process has had: what belongs to a former one is not taken for a later one's.
    pub incarnations: u64,
}

impl Shared {
    /// Whether one of these nodes is alive, and said lately that it is not slow.
    pub(crate) fn could_lead(&self, now: BootTime, nodes: impl IntoIterator<Item = NodeId>) -> bool {
        nodes.into_iter().any(|node| self.liveness.is_live(node) && self.health.is_well_there(now, node))
    }
}

/// Ids for new ranges that this node holds.
#[derive(Debug, Default)]
pub(crate) struct RangeIds {
    /// [first, behind the last) of each block.
    blocks: VecDeque<(u64, u64)>,
    /// What could not be served lately.
    missed: u64,
    /// Ids below were in a block before: one that comes twice counts once.
    seen_below: u64,
}

/// Fewer than so many ids left are few.
const RANGE_IDS_FEW: u64 = 256;

impl RangeIds {
    /// Adds a block.
    pub(crate) fn add(&mut self, first: u64, count: u64) {
        if first >= self.seen_below {
            self.seen_below = first.saturating_add(count);
            self.blocks.push_back((first, self.seen_below));
        }
    }

    /// Takes so many; `None` if there are not as many.
    pub(crate) fn take(&mut self, count: u64) -> Option<Vec<u64>> {
        if self.left() < count {
            self.missed = self.missed.max(count);
            return None;
        }
        self.missed = 0;
        let mut ids = Vec::new();
        while (ids.len() as u64) < count {
            let (next, end) = self.blocks.front_mut()?;
            if next == end {
                self.blocks.pop_front();
                continue;
            }
            ids.push(*next);
            *next += 1;
        }
        Some(ids)
    }

    /// Whether there are as many as were last missed, or any at all; if not, more are asked for.
    pub(crate) fn suffice(&mut self) -> bool {
        let suffice = self.left() >= self.missed.max(1);
        self.missed = if suffice { self.missed } else { self.missed.max(1) };
        suffice
    }

    fn left(&self) -> u64 {
        self.blocks.iter().map(|(next, end)| end - next).sum()
    }

    /// Whether more are to be asked for.
    pub(crate) fn run_short(&self) -> bool {
        self.left() < RANGE_IDS_FEW.max(self.missed)
    }
}

/// A replica that begins with a split.
#[derive(Debug)]
pub(crate) struct Born {
    pub boot: RangeBoot,
    /// Whether it is to lead: its parent's replica here does.
    pub campaigns: bool,
    /// About how large it is.
    pub bytes: u64,
    /// About how much it will be asked for.
    pub load: Option<v1::RangeLoad>,
}

/// One turn of the store, as its ranges see it.
pub(crate) struct Turn<'a> {
    pub now: BootTime,
    pub shared: &'a mut Shared,
    pub effects: &'a mut Effects,
    /// What this turn's log batch has gathered.
    pub items: &'a mut Vec<LogItem>,
    /// The sequence number that this turn's log batch gets.
    pub sequence: u64,
    /// Replicas that have begun by splits.
    pub born: &'a mut Vec<Born>,
    /// What ranges want of each other.
    pub wishes: &'a mut Vec<Wish>,
}
