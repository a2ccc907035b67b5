//! What 100,000 Raft groups cost a node that does nothing with them: memory of each, time to build
//! them, time to tick them all once.
//!
//! Memory is counted by an allocator of the bench's own (bytes asked for), and beside it as the growth
//! of the resident set. Three voters, MemStorage, which is part of what is counted.
//!
//! `cargo bench -p flotilla-benches --bench layout_raft_nodes -- [--reps N] [--nodes N]`

use std::error::Error;
use std::time::Instant;

use flotilla_benches::alloc::Counting;
use flotilla_benches::args::{Args, Extra};
use flotilla_benches::stats::Table;
use flotilla_benches::usage;
use raft::eraftpb::{Message, MessageType};
use raft::storage::MemStorage;
use raft::{Config, RawNode};

#[global_allocator]
static ALLOCATED: Counting = Counting::new();

const EXTRAS: &[Extra] = &[Extra { flag: "nodes", default: 100_000, help: "Raft groups" }];
/// Fewer than the shortest election time-out: nobody campaigns.
const TICKS: u32 = 5;
const ELECTION_TICK: usize = 10;
const INFLIGHT_DEFAULT: usize = 256;
const INFLIGHT: usize = 32;

type Group = RawNode<MemStorage>;

#[derive(Clone, Copy)]
enum State {
    Follower,
    /// Leader of its term, one entry proposed, replicated and applied.
    Leader,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse("memory, building time and tick of idle Raft groups", 0.0, EXTRAS);
    let count = args.extra("nodes") as usize;
    let columns = ["bytes each", "of which storage", "resident bytes each", "build, s", "tick of all, ms"];
    let mut table = Table::new(format!("{count} x RawNode, 3 voters"), &columns);
    let variants = [
        ("follower, 256 in flight", State::Follower, INFLIGHT_DEFAULT, false),
        ("follower, 32 in flight", State::Follower, INFLIGHT, false),
        ("leader, 256 in flight", State::Leader, INFLIGHT_DEFAULT, false),
        ("leader, 32 in flight", State::Leader, INFLIGHT, false),
        ("leader, 32 in flight, buffers freed", State::Leader, INFLIGHT, true),
    ];
    for _ in 0..args.reps {
        for (name, state, inflight, free) in variants {
            table.add(name, &run(count, state, inflight, free)?);
        }
    }
    table.print();
    Ok(())
}

fn run(count: usize, state: State, inflight: usize, free: bool) -> Result<[f64; 5], Box<dyn Error>> {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let each = |bytes: f64| bytes / count as f64;

    let before = ALLOCATED.live_bytes();
    let stores: Vec<MemStorage> = (0..count).map(|_| new_storage()).collect();
    let storage = each((ALLOCATED.live_bytes() - before) as f64);
    drop(stores);

    usage::give_memory_back();
    let resident_before = usage::resident_bytes()? as f64;
    let before = ALLOCATED.live_bytes();
    let start = Instant::now();
    let mut groups = Vec::with_capacity(count);
    for _ in 0..count {
        groups.push(new_group(state, inflight, free, &logger)?);
    }
    let built = start.elapsed().as_secs_f64();
    let bytes = each((ALLOCATED.live_bytes() - before) as f64);
    let resident = each(usage::resident_bytes()? as f64 - resident_before);

    let start = Instant::now();
    for _ in 0..TICKS {
        for group in &mut groups {
            group.tick();
        }
    }
    let tick_ms = start.elapsed().as_secs_f64() * 1000.0 / f64::from(TICKS);
    Ok([bytes, storage, resident, built, tick_ms])
}

fn new_storage() -> MemStorage {
    MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]))
}

fn new_group(state: State, inflight: usize, free: bool, logger: &slog::Logger) -> raft::Result<Group> {
    let config = Config {
        id: 1,
        election_tick: ELECTION_TICK,
        heartbeat_tick: ELECTION_TICK - 1,
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: inflight,
        check_quorum: true,
        pre_vote: true,
        batch_append: true,
        max_uncommitted_size: 16 << 20,
        max_committed_size_per_ready: 1 << 20,
        ..Config::default()
    };
    let mut group = RawNode::new(&config, new_storage(), logger)?;
    if let State::Leader = state {
        lead(&mut group)?;
    }
    if free {
        group.raft.maybe_free_inflight_buffers();
    }
    Ok(group)
}

fn lead(group: &mut Group) -> raft::Result<()> {
    group.raft.become_candidate();
    group.raft.become_leader();
    persist(group)?;
    acknowledge(group)?;
    group.propose(vec![], vec![0x5A; 256])?;
    persist(group)?;
    acknowledge(group)
}

/// Does what the outside must do with a Ready; messages go nowhere.
fn persist(group: &mut Group) -> raft::Result<()> {
    while group.has_ready() {
        let mut ready = group.ready();
        let storage = group.raft.raft_log.store.clone();
        storage.wl().append(&ready.take_entries())?;
        if let Some(state) = ready.hs() {
            storage.wl().set_hardstate(state.clone());
        }
        drop(group.advance(ready));
        group.advance_apply();
    }
    Ok(())
}

fn acknowledge(group: &mut Group) -> raft::Result<()> {
    for voter in [2, 3] {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppendResponse);
        message.from = voter;
        message.to = 1;
        message.term = group.raft.term;
        message.index = group.raft.raft_log.last_index();
        group.step(message)?;
    }
    persist(group)
}
