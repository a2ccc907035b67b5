//! Situations that single faults, drawn one by one, would hardly ever bring about: faults that belong together, and
//! crashes just where something rare is decided. Part of a run's plan like any others ([`super::plan`]).

use flotilla_engine::snapshot::Step as IngestStep;
use flotilla_engine::storage::Family;
use flotilla_proto::ids::SYSTEM_RANGE;

use super::{CrashPoint, Cut, Fault, OnMergeAsked, Step, Target, after_split, length, node, range, target};
use crate::clock::{Nanos, ms};
use crate::knobs::Knobs;
use crate::rng::Rng;

/// Some are cut off while others go on, until a majority is lost: what survives is unequal.
pub(super) fn before_a_loss(knobs: &Knobs) -> Vec<Step> {
    let Some(loss) = knobs.real.as_ref().and_then(|real| real.loss.as_ref()) else { return Vec::new() };
    let rng = &mut Rng::new(knobs.seed, 20);
    let lost_at = knobs.duration / 1_000 * loss.at_per_mille;
    let cut_off = |_| {
        let at = lost_at.saturating_sub(rng.between(ms(100), ms(1_200)));
        let cut = Cut::Isolate(Target::Node(rng.index(loss.wanted)));
        Step { at, fault: Fault::Partition { cut, length: rng.between(ms(1_500), ms(4_000)) } }
    };
    (0..2).map(cut_off).collect()
}

/// Crashes between the steps of a large snapshot's installation, where nearly every snapshot is a large one.
pub(super) fn around_ingestions(knobs: &Knobs) -> Vec<Step> {
    let rng = &mut Rng::new(knobs.seed, 21);
    let mut steps = Vec::new();
    let mut at = ms(3_000) + rng.below(ms(3_000));
    let staged = knobs.grows() && knobs.fault_every > 0 && knobs.config.snapshot_batch_bytes_max < 1 << 10;
    while staged && at < knobs.duration.saturating_sub(ms(1_000)) {
        let (point, power_cut) = (CrashPoint::AfterIngestStep(rng.pick(&IngestStep::ALL)), rng.chance(600));
        let target = Target::FollowerOf(range(knobs, rng));
        steps.push(Step { at, fault: Fault::Crash { target, point, down: length(rng), power_cut } });
        at += rng.between(ms(1_000), ms(5_000));
    }
    steps
}

/// Merges by hand, and crashes just where they are decided.
pub(super) fn around_merges(knobs: &Knobs) -> Vec<Step> {
    let rng = &mut Rng::new(knobs.seed, 15);
    let mut steps = Vec::new();
    let mut at = ms(3_000);
    while at < knobs.duration.saturating_sub(ms(1_000)) {
        let points = [
            CrashPoint::AfterFreeze,
            CrashPoint::AfterStandstill,
            CrashPoint::AfterStandstill,
            CrashPoint::AfterMerge,
            CrashPoint::AfterMerge,
            CrashPoint::AfterThaw,
        ];
        let fault = if rng.chance(350) {
            // Longer than a range waits that stands still.
            let length = knobs.election_timeout_max() * 6 + rng.below(ms(2_000));
            let what = if rng.chance(600) { OnMergeAsked::Outwait } else { OnMergeAsked::LeaveBehind };
            Fault::OnMergeAsked { target: Target::LeaderOf(range(knobs, rng)), what, length }
        } else if rng.chance(500) {
            let down = rng.pick(&[ms(1), ms(100), ms(700), ms(3_000), ms(5_000)]) + rng.below(ms(200));
            Fault::Crash { target: target(knobs, rng), point: rng.pick(&points), down, power_cut: rng.chance(600) }
        } else {
            let (range, of_target) = (range(knobs, rng), rng.chance(500));
            Fault::Merge { range, of_target, then: after_split(knobs, rng), length: length(rng) }
        };
        steps.push(Step { at, fault });
        at += rng.between(ms(300), ms(2_500));
    }
    steps
}

/// Faults of several steps, and of a disk's contents: now and then, in most runs with faults.
pub(super) fn rarer(knobs: &Knobs) -> Vec<Step> {
    let rng = &mut Rng::new(knobs.seed, 19);
    let mut steps = Vec::new();
    if knobs.fault_every == 0 || rng.chance(250) {
        return steps;
    }
    let every = rng.pick(&[ms(4_000), ms(8_000), ms(16_000)]);
    let mut at = ms(2_500) + rng.below(every);
    while at < knobs.duration.saturating_sub(ms(1_000)) {
        let fault = match rng.below(11) {
            0 | 1 => {
                steps.extend(swizzle(knobs, rng, at));
                at += rng.between(every / 2, every * 2);
                continue;
            }
            2..5 => {
                let longer_than_an_election = knobs.election_timeout_max() + rng.below(ms(1_000));
                Fault::Promises { range: range(knobs, rng), length: longer_than_an_election }
            }
            5 | 6 => {
                let length = rng.pick(&[ms(500), ms(2_500), ms(6_000), ms(8_000)]);
                // Placement writes behind what is not applied yet, when it has waited long enough.
                let system = knobs.real.is_some() && rng.chance(500);
                let target = if system { Target::LeaderOf(SYSTEM_RANGE) } else { target(knobs, rng) };
                Fault::ApplyStall { target, length }
            }
            7 => Fault::WallClock { node: node(knobs, rng), by_ms: wall_leap(rng) },
            8 => Fault::ReadFails { target: target(knobs, rng), after: rng.below(30) as u32, down: length(rng) },
            _ => {
                let family = if rng.chance(300) { Family::Log } else { Family::State };
                Fault::Rot { target: target(knobs, rng), family, per_mille: rng.below(1_000), down: length(rng) }
            }
        };
        steps.push(Step { at, fault });
        at += rng.between(every / 2, every * 2);
    }
    steps
}

/// Seconds, hours or years.
fn wall_leap(rng: &mut Rng) -> i64 {
    let by = rng.pick(&[3_000, 7_200_000, 90_000_000_000]);
    if rng.chance(500) { by } else { -by }
}

/// Nodes are cut off one after the other, and come back in another order, as FoundationDB's tests have it.
fn swizzle(knobs: &Knobs, rng: &mut Rng, from: Nanos) -> Vec<Step> {
    let count = knobs.real.as_ref().map_or(knobs.nodes, |real| real.wanted);
    let mut order: Vec<usize> = (0..count).collect();
    (1..count).for_each(|at| order.swap(at, rng.index(at + 1)));
    order.truncate(rng.between(2, count as u64 + 1) as usize);
    let pace = rng.pick(&[ms(80), ms(300), ms(900)]);
    let all = from + pace * order.len() as u64;
    let cut_off = |(nth, node): (usize, usize)| {
        let at = from + pace * nth as u64;
        let length = all - at + rng.below(pace * count as u64);
        Step { at, fault: Fault::Partition { cut: Cut::Swizzled(node), length } }
    };
    order.into_iter().enumerate().map(cut_off).collect()
}
