//! The fault plan: what goes wrong when, drawn from the seed as data before the run begins.
//!
//! A target may be "the leader of that range": which node that is shows only when the fault begins.

mod situations;

use flotilla_engine::snapshot::Step as IngestStep;
use flotilla_engine::storage::Family;
use flotilla_proto::RangeId;

use crate::clock::{Clock, Nanos, ms};
use crate::gray::GrayKnobs;
use crate::knobs::Knobs;
use crate::rng::Rng;

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Node(usize),
    LeaderOf(RangeId),
    /// Some node that has a replica and does not lead.
    FollowerOf(RangeId),
}

/// Where in a process's work a crash falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CrashPoint {
    Now,
    /// After the messages of a turn left, before its log batch is written.
    BeforeLogWrite,
    /// Between a log write and its sync.
    BeforeSync,
    /// After the sync, before the store hears of it.
    AfterSync,
    /// After entries were applied, before anybody hears of it.
    AfterApply,
    /// As soon as a split is applied.
    AfterSplit,
    /// As soon as a change of replicas is applied.
    AfterReplicas,
    /// As soon as a change is applied that leaves this node's replica out.
    AfterRemoval,
    /// When a snapshot was written in place of what the range had, and not synced.
    AfterSnapshotWrite,
    /// Between the steps that put a large snapshot in place.
    AfterIngestStep(IngestStep),
    /// When a removed replica's data was deleted, and that is not synced.
    AfterDestroy,
    /// When a replica has told that it stands still: it misses the merge itself.
    AfterStandstill,
    /// As soon as a freeze is applied.
    AfterFreeze,
    /// As soon as a range has taken its neighbour in.
    AfterMerge,
    /// As soon as a neighbour is not taken in, or goes on.
    AfterThaw,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The nodes marked true on one side, the others on the other.
    Split(Vec<bool>),
    /// What the target sends is lost; what it is sent arrives.
    Mute(Target),
    /// What the target is sent is lost; what it sends arrives.
    Deaf(Target),
    /// The target and all others.
    Isolate(Target),
    /// Two halves that share one node.
    Bridge(usize),
    /// One of several nodes that are cut off one after the other.
    Swizzled(usize),
}

/// What happens to a leader that has just been told to split, or one of the two of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterSplit {
    Nothing,
    HandOver(usize),
    Isolation,
    Crash,
    Deafness,
    /// On some follower nothing is applied.
    Laggard,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Partition {
        cut: Cut,
        length: Nanos,
    },
    ClientsCutFrom {
        target: Target,
        length: Nanos,
    },
    Loss {
        per_mille: u64,
        length: Nanos,
    },
    SlowLink {
        from: usize,
        to: usize,
        by: Nanos,
        length: Nanos,
    },
    Crash {
        target: Target,
        point: CrashPoint,
        down: Nanos,
        power_cut: bool,
    },
    CrashAll {
        down: Nanos,
    },
    /// The leader is cut off for a while; when it is back, its successor is.
    Relay {
        range: RangeId,
        length: Nanos,
    },
    /// A follower does not hear the leader for so long; then the leader is cut off from everybody, and the other
    /// followers restart at once: do they keep to what they have promised it?
    Promises {
        range: RangeId,
        length: Nanos,
    },
    /// The whole process stands still.
    Pause {
        target: Target,
        length: Nanos,
    },
    /// The store's loop stands still; reads go on.
    Stall {
        target: Target,
        length: Nanos,
    },
    SlowDisk {
        target: Target,
        sync: Nanos,
        length: Nanos,
    },
    /// The apply stage lags.
    SlowApply {
        target: Target,
        apply: Nanos,
        length: Nanos,
    },
    /// Nothing is applied, as when a database stalls its writers.
    ApplyStall {
        target: Target,
        length: Nanos,
    },
    /// One link loses messages, the way back does not.
    LossyLink {
        from: usize,
        to: usize,
        per_mille: u64,
        length: Nanos,
    },
    SyncFails {
        target: Target,
        down: Nanos,
    },
    WriteFails {
        target: Target,
        down: Nanos,
    },
    /// The read behind so many others fails.
    ReadFails {
        target: Target,
        after: u32,
        down: Nanos,
    },
    /// A record rots: whoever reads it is told so.
    Rot {
        target: Target,
        family: Family,
        per_mille: u64,
        down: Nanos,
    },
    NoSpace {
        target: Target,
        length: Nanos,
    },
    DiskMargin {
        target: Target,
        length: Nanos,
    },
    ClockRate {
        node: usize,
        rate: u64,
    },
    /// The wall clock leaps, forward or back.
    WallClock {
        node: usize,
        by_ms: i64,
    },
    Transfer {
        range: RangeId,
        to: usize,
    },
    /// A transfer whose way to the old leader is slow, so that it learns late of the new one.
    LateTransfer {
        range: RangeId,
        to: usize,
        by: Nanos,
    },
    /// A split by hand, and what comes upon its leader at once.
    Split {
        range: RangeId,
        then: AfterSplit,
        length: Nanos,
    },
    /// A merge by hand, and what comes upon the leader of one of the two at once.
    Merge {
        range: RangeId,
        of_target: bool,
        then: AfterSplit,
        length: Nanos,
    },
    /// Something happens as soon as a leader asks for its merge.
    OnMergeAsked {
        target: Target,
        what: OnMergeAsked,
        length: Nanos,
    },
    Drain {
        target: Target,
        down: Nanos,
    },
}

/// What happens when a leader asks another range to take its own in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnMergeAsked {
    /// Whom it asks is out of its reach for so long, and on the other nodes nothing is applied.
    Outwait,
    /// A node that stands still with it is cut off from all for so long: it learns of the merge by a snapshot, if ever.
    LeaveBehind,
}

/// One entry of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub at: Nanos,
    pub fault: Fault,
}

/// Draws a run's plan.
pub(crate) fn plan(knobs: &Knobs) -> Vec<Step> {
    let mut steps = at_random(knobs);
    steps.extend(situations::rarer(knobs));
    steps.extend(knobs.gray.iter().flat_map(GrayKnobs::steps));
    steps.extend(situations::before_a_loss(knobs));
    steps.extend(situations::around_ingestions(knobs));
    if knobs.merges() && knobs.fault_every > 0 {
        steps.extend(situations::around_merges(knobs));
    }
    steps
}

fn at_random(knobs: &Knobs) -> Vec<Step> {
    let mut rng = Rng::new(knobs.seed, 2);
    let mut growth = Rng::new(knobs.seed, 8);
    let mut steps = Vec::new();
    if knobs.fault_every == 0 {
        return steps;
    }
    let mut at = ms(2_500);
    let healthy = knobs.duration.saturating_sub(ms(1_000));
    while at < healthy {
        let splits = knobs.placement.split_per_mille > 0 && growth.chance(220);
        let fault = if splits {
            split(knobs, &mut growth)
        } else if knobs.transfer_storm && rng.chance(600) {
            transfer(knobs, &mut rng)
        } else {
            draw(knobs, &mut rng)
        };
        let again = matches!(fault, Fault::Crash { .. }) && rng.chance(250);
        steps.push(Step { at, fault });
        // Faults of a kind come in pairs now and then: a second crash while the first heals.
        at += if again { rng.below(ms(1_200)) } else { rng.between(knobs.fault_every / 3, knobs.fault_every * 2) };
    }
    steps
}

fn node(knobs: &Knobs, rng: &mut Rng) -> usize {
    rng.index(knobs.real.as_ref().map_or(knobs.nodes, |real| real.wanted))
}

fn range(knobs: &Knobs, rng: &mut Rng) -> RangeId {
    // Counted round through those that there are when the fault begins.
    let most = if knobs.grows() { 64 } else { u64::from(knobs.ranges) };
    RangeId(2 + rng.below(most))
}

fn target(knobs: &Knobs, rng: &mut Rng) -> Target {
    match rng.below(3) {
        0 => Target::Node(node(knobs, rng)),
        1 => Target::LeaderOf(range(knobs, rng)),
        _ => Target::FollowerOf(range(knobs, rng)),
    }
}

fn length(rng: &mut Rng) -> Nanos {
    rng.pick(&[ms(150), ms(500), ms(1_200), ms(2_500), ms(5_000)]) + rng.below(ms(300))
}

fn transfer(knobs: &Knobs, rng: &mut Rng) -> Fault {
    let (range, to) = (range(knobs, rng), node(knobs, rng));
    if rng.chance(700) {
        return Fault::LateTransfer { range, to, by: rng.between(ms(50), ms(900)) };
    }
    Fault::Transfer { range, to }
}

fn split(knobs: &Knobs, rng: &mut Rng) -> Fault {
    let then = after_split(knobs, rng);
    Fault::Split { range: range(knobs, rng), then, length: length(rng) }
}

fn after_split(knobs: &Knobs, rng: &mut Rng) -> AfterSplit {
    match rng.below(7) {
        0 => AfterSplit::Nothing,
        1 | 2 => AfterSplit::HandOver(node(knobs, rng)),
        3 => AfterSplit::Isolation,
        4 => AfterSplit::Crash,
        5 => AfterSplit::Laggard,
        _ => AfterSplit::Deafness,
    }
}

fn cut(knobs: &Knobs, rng: &mut Rng) -> Cut {
    match rng.below(6) {
        0 => Cut::Split((0..knobs.nodes).map(|_| rng.chance(500)).collect()),
        1 => Cut::Mute(target(knobs, rng)),
        2 => Cut::Deaf(target(knobs, rng)),
        3 => Cut::Bridge(node(knobs, rng)),
        4 => Cut::Isolate(Target::LeaderOf(range(knobs, rng))),
        _ => Cut::Isolate(target(knobs, rng)),
    }
}

fn crash(knobs: &Knobs, rng: &mut Rng) -> Fault {
    let points = [
        CrashPoint::Now,
        CrashPoint::Now,
        CrashPoint::BeforeLogWrite,
        CrashPoint::BeforeSync,
        CrashPoint::BeforeSync,
        CrashPoint::AfterSync,
        CrashPoint::AfterApply,
        CrashPoint::AfterSplit,
        CrashPoint::AfterSplit,
        CrashPoint::AfterReplicas,
        CrashPoint::AfterRemoval,
        CrashPoint::AfterSnapshotWrite,
        CrashPoint::AfterDestroy,
    ];
    let mut point = rng.pick(&points);
    if knobs.grows() && rng.chance(100) {
        point = CrashPoint::AfterIngestStep(rng.pick(&IngestStep::ALL));
    }
    let down = rng.pick(&[ms(1), ms(100), ms(700), ms(3_000), ms(6_000)]) + rng.below(ms(200));
    Fault::Crash { target: target(knobs, rng), point, down, power_cut: rng.chance(600) }
}

fn draw(knobs: &Knobs, rng: &mut Rng) -> Fault {
    let down = rng.between(ms(50), ms(3_000));
    match rng.below(100) {
        0..5 => Fault::Relay { range: range(knobs, rng), length: rng.between(ms(800), ms(4_000)) },
        5..22 => Fault::Partition { cut: cut(knobs, rng), length: length(rng) },
        22..47 => crash(knobs, rng),
        47..50 => Fault::CrashAll { down },
        50..57 => Fault::Pause { target: target(knobs, rng), length: length(rng) },
        57..63 => Fault::Stall { target: target(knobs, rng), length: length(rng) },
        63..68 => {
            let sync = rng.pick(&[ms(30), ms(200), ms(900), ms(2_500)]);
            Fault::SlowDisk { target: target(knobs, rng), sync, length: length(rng) }
        }
        68..70 => Fault::SyncFails { target: target(knobs, rng), down },
        70..71 => Fault::WriteFails { target: target(knobs, rng), down },
        71 => Fault::NoSpace { target: target(knobs, rng), length: length(rng) },
        72 => Fault::DiskMargin { target: target(knobs, rng), length: length(rng) },
        73..78 => {
            let (slow, fast) = Clock::rates(knobs.config.clock_drift);
            Fault::ClockRate { node: node(knobs, rng), rate: rng.pick(&[slow, fast, 1_000_000]) }
        }
        78..83 => Fault::Loss { per_mille: rng.pick(&[50, 200, 500]), length: length(rng) },
        83..88 => {
            let by = rng.pick(&[ms(20), ms(150), ms(700)]);
            Fault::SlowLink { from: node(knobs, rng), to: node(knobs, rng), by, length: length(rng) }
        }
        88..90 => Fault::ClientsCutFrom { target: target(knobs, rng), length: length(rng) },
        90..92 => Fault::Drain { target: target(knobs, rng), down },
        _ => transfer(knobs, rng),
    }
}
