//! Settings of the placement service: times and bounds, all with the product's defaults.

use std::time::Duration;

/// What the service may do, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// A node that reported within this time is live: it may be given replicas and leaders.
    pub node_live_for: Duration,
    /// A node silent for longer is dead: its replicas are rebuilt elsewhere.
    pub node_dead_after: Duration,
    /// Orders under way at once that one node may be the source of, and that it may be the target of, where
    /// their ranges are large. A small range weighs a sixteenth of a large one.
    pub moves_per_node: u32,
    /// Transfers of leadership under way at once from and to one node.
    pub leader_moves_per_node: u32,
    /// An order that has not been fulfilled in this time is given up.
    pub order_time_limit: Duration,
    /// How long a report's answer waits for the write that it caused; it leaves without it then.
    pub answer_wait: Duration,
    /// How long `CreateKeyspace` waits for all ranges of the keyspace to be led.
    pub create_wait: Duration,
    /// Ids in a block that a node is given for the children of its splits.
    pub range_ids_per_block: u32,
    /// By how much the ids of nodes leap when the system range was recovered; those of all else leap further. A cluster has
    /// not lost more joins than that with the nodes that knew of them.
    pub node_ids_leap: u64,
    /// `split_bytes` of a keyspace that names none.
    pub split_bytes: u64,
    /// Most encoded bytes of routes in one answer; the rest goes into the next ones.
    pub answer_routes_bytes: usize,
    /// Ranges that one round of decisions looks at, so that a round stays short however many ranges need something.
    pub ranges_per_round: usize,
    /// Entries of the history that are kept, and for how long; it may be a page more.
    pub history_entries_max: usize,
    /// See [`Self::history_entries_max`].
    pub history_age_max: Duration,
    /// How long a node must measure several times what the others do before it counts as slow, and how long it must be
    /// well again before it does not.
    pub slow_after: Duration,
    /// See `slow_after`.
    pub slow_back_after: Duration,
    /// For so long after that, leaders return to it one at a time.
    pub slow_return: Duration,
    /// Over what time the load of nodes is averaged before it moves anything.
    pub load_average: Duration,
    /// A range that was moved for its load stays where it is for so long.
    pub load_pause: Duration,
    /// A range whose leader has changed, or whose replica a person has moved, is left as it is by all balance for so
    /// long: what a person has just done is not undone at once, and other ranges serve the balance as well.
    pub balance_rest: Duration,
    /// Requests a second that one node may be asked for above the others' share without anything being moved.
    pub load_floor: u64,
    /// How long borders stay at least after a split or merge, where the keyspace does not say.
    pub borders_kept: Duration,
    /// How long two neighbours must have had next to nothing to do before they are merged.
    pub merge_cold_for: Duration,
    /// Merges under way at once; bringing replicas together for them counts.
    pub merges_at_once: usize,
    /// A merge that has not happened in this time is given up.
    pub merge_time_limit: Duration,
    /// The versions of the protocol between nodes that this cluster speaks.
    pub protocol: (u32, u32),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_live_for: Duration::from_secs(3),
            node_dead_after: Duration::from_secs(300),
            moves_per_node: 2,
            leader_moves_per_node: 8,
            order_time_limit: Duration::from_secs(600),
            answer_wait: Duration::from_secs(1),
            create_wait: Duration::from_secs(20),
            range_ids_per_block: 1_000,
            node_ids_leap: 1_000,
            split_bytes: 256 << 20,
            answer_routes_bytes: 1 << 20,
            ranges_per_round: 2_000,
            history_entries_max: 10_000,
            history_age_max: Duration::from_secs(30 * 24 * 3_600),
            slow_after: Duration::from_secs(3),
            slow_back_after: Duration::from_secs(10),
            slow_return: Duration::from_secs(60),
            load_average: Duration::from_secs(20),
            load_pause: Duration::from_secs(60),
            balance_rest: Duration::from_secs(10),
            load_floor: 100,
            borders_kept: Duration::from_secs(3_600),
            merge_cold_for: Duration::from_secs(300),
            merges_at_once: 8,
            merge_time_limit: Duration::from_secs(60),
            protocol: (1, 1),
        }
    }
}
