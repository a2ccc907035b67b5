//! What is lost wholly: spans that no range holds, ranges of which nothing is left, and how those begin again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::v1::{self, ReplicaRole};

use super::{Plan, Replica, afters, age, beyond, epoch, overlap};

/// The keyspaces that were dropped, as far as anybody has heard.
pub(super) fn dropped(surveys: &[v1::SurveyResponse]) -> BTreeSet<u64> {
    let known = surveys.iter().flat_map(|survey| &survey.keyspaces);
    known.filter(|of| of.state() == v1::KeyspaceState::Dropped).map(|of| of.keyspace_id).collect()
}

/// Spans of keyspaces that no range holds.
pub(super) fn gaps(
    plan: &Plan,
    well: &[v1::RangeDescriptor],
    surveys: &[v1::SurveyResponse],
) -> Vec<(u64, Bytes, Bytes)> {
    let mut ranges: Vec<v1::RangeDescriptor> = well.iter().cloned().chain(afters(plan)).collect();
    ranges.sort_by(|a, b| (a.keyspace_id, &a.start).cmp(&(b.keyspace_id, &b.start)));
    let dropped = dropped(surveys);
    let mut keyspaces: BTreeSet<u64> =
        surveys.iter().flat_map(|survey| &survey.keyspaces).map(|of| of.keyspace_id).collect();
    keyspaces.extend(ranges.iter().map(|of| of.keyspace_id));
    keyspaces.extend(surveys.iter().flat_map(|survey| &survey.routes).map(|of| of.keyspace_id));
    let mut gaps = Vec::new();
    for keyspace in keyspaces.difference(&dropped) {
        // Where the next range is to begin; none: the keyspace's end is reached.
        let mut next = Some(Bytes::new());
        for range in ranges.iter().filter(|of| of.keyspace_id == *keyspace) {
            let Some(from) = next.take() else { break };
            if range.start > from {
                gaps.push((*keyspace, from.clone(), range.start.clone()));
            }
            next = if range.end.is_empty() { None } else { Some(range.end.clone().max(from)) };
        }
        if let Some(from) = next {
            gaps.push((*keyspace, from, Bytes::new()));
        }
    }
    gaps
}

/// Ranges that others remember, of which no replica is left, and whose span no range holds.
pub(super) fn lost_ranges(
    surveys: &[v1::SurveyResponse],
    ranges: &BTreeMap<u64, Vec<Replica<'_>>>,
    held: &[v1::RangeDescriptor],
) -> Vec<v1::RangeDescriptor> {
    let mut lost: BTreeMap<u64, v1::RangeDescriptor> = BTreeMap::new();
    let dropped = dropped(surveys);
    let remembered = surveys.iter().flat_map(|survey| &survey.routes);
    for of in remembered.filter(|of| !ranges.contains_key(&of.range_id) && !dropped.contains(&of.keyspace_id)) {
        let known = lost.entry(of.range_id).or_insert_with(|| of.clone());
        if age(of) > age(known) {
            *known = of.clone();
        }
    }
    let mut lost: Vec<v1::RangeDescriptor> = lost.into_values().collect();
    // The newest first: an older one that overlaps with it is a memory of before a split.
    lost.sort_by_key(|of| (u64::MAX - epoch(of).version, of.range_id));
    let mut chosen: Vec<v1::RangeDescriptor> = Vec::new();
    for of in lost {
        if !held.iter().chain(&chosen).any(|other| overlap(other, &of)) {
            chosen.push(of);
        }
    }
    chosen.sort_by_key(|of| of.range_id);
    chosen
}

/// Deals the ranges of which nothing is left round the living nodes. Not that of the system: what it held cannot be made
/// up.
pub(super) fn recreate(plan: &mut Plan) {
    let nodes: Vec<u64> = plan.living.keys().copied().collect();
    for (at, of) in plan.lost.iter().filter(|of| of.range_id != SYSTEM_RANGE.0).enumerate() {
        let node_id = nodes[at % nodes.len()];
        let replica_id = beyond(of.next_replica_id, plan.wish.unix_ms);
        let descriptor = v1::RangeDescriptor {
            epoch: Some(v1::Epoch { conf_ver: beyond(epoch(of).conf_ver, plan.wish.unix_ms), ..epoch(of) }),
            replicas: vec![v1::ReplicaDescriptor { replica_id, node_id, role: ReplicaRole::Voter.into() }],
            next_replica_id: replica_id + 1,
            ..of.clone()
        };
        plan.recreated.push((node_id, descriptor));
    }
}
