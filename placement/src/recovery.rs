//! Ranges whose majority is lost for good: what can be kept of them, and what is lost. One pure function from what the
//! living nodes say to a plan.
//!
//! Place in the flow: `flotilla recover plan` asks every living node ([`v1::SurveyResponse`]), lets survivors apply what others
//! know to be committed ([`committed`]), and makes a [`Plan`]; `flotilla recover apply` has it carried out. Nothing of
//! it needs the system range, which may be lost itself. Why it is done like this: docs/decisions/0032-loss-of-quorum.md.
//!
//! Invariants of a plan:
//! - a range is in it only if of some set of its voters no majority lives, and nobody follows a leader;
//! - one replica of each such range goes on: of those that vote the one whose log is the newest (last term, last index);
//! - what goes on, and what lives, does not overlap: where a split was applied by one survivor and not by
//!   another, the newer version has the span, and the older range ends before it;
//! - versions of what goes on are above all that anybody has heard of its span, and where that is more than the survivor
//!   has applied above all that its log can come to: of what stands there a part may never take effect;
//! - ids, conf_ver and term of what goes on are beyond all that is known of the range, by more than the lost ones can
//!   have used up.

mod lost;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_mutants::Mutant;
pub use flotilla_proto::ids::LEAP;
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::v1::{self, ReplicaRole};
use lost::{dropped, gaps, lost_ranges, recreate};

/// A number beyond what is known of the past, and beyond what an earlier recovery leapt to that nobody alive has heard of:
/// that was made before, and has counted up more slowly than time goes, in milliseconds.
fn beyond(known: u64, unix_ms: u64) -> u64 {
    (known + LEAP).max(unix_ms)
}

/// What a person says, and who it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wish {
    /// Names the plan.
    pub plan_id: String,
    /// When it is made, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Who decides.
    pub decided_by: String,
    /// The nodes that are gone for good.
    pub dead: BTreeSet<u64>,
    /// Let ranges of which nothing is left begin again, empty.
    pub recreate_empty: bool,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The cluster.
    pub cluster_id: u64,
    /// What was wished for.
    pub wish: Wish,
    /// The nodes that answered, with their boot ids.
    pub living: BTreeMap<u64, u64>,
    /// Ranges that go on, that of the system first.
    pub kept: Vec<Kept>,
    /// Ranges of which no replica is left, as others remember them.
    pub lost: Vec<v1::RangeDescriptor>,
    /// Spans that no range will hold, as (keyspace, start, end).
    pub gaps: Vec<(u64, Bytes, Bytes)>,
    /// Ranges that begin again, empty, each on a node.
    pub recreated: Vec<(u64, v1::RangeDescriptor)>,
    /// Ranges that are left as they are, and why.
    pub left: Vec<String>,
    /// Ranges that have a majority.
    pub healthy: usize,
    /// What a person must know of the wish.
    pub warnings: Vec<String>,
}

/// A range that goes on with one replica.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The node of that replica.
    pub node: u64,
    /// What that node is told.
    pub order: v1::RecoverReplica,
    /// Voters that live, of how many.
    pub living_voters: (usize, usize),
    /// Entries behind the commit index: kept, and committed by this.
    pub uncommitted: u64,
    /// About how many bytes of data it holds.
    pub data_bytes: u64,
    /// What a person must know of it beyond the rule.
    pub warnings: Vec<String>,
}

type Replica<'a> = (u64, &'a v1::SurveyedReplica);

fn epoch(of: &v1::RangeDescriptor) -> v1::Epoch {
    of.epoch.unwrap_or_default()
}

fn age(of: &v1::RangeDescriptor) -> (u64, u64) {
    (epoch(of).version, epoch(of).conf_ver)
}

/// Per range, its replicas on the nodes that answered.
fn by_range(surveys: &[v1::SurveyResponse]) -> BTreeMap<u64, Vec<Replica<'_>>> {
    let mut ranges: BTreeMap<u64, Vec<Replica<'_>>> = BTreeMap::new();
    for survey in surveys {
        for replica in &survey.replicas {
            let range = replica.descriptor.as_ref().map_or(0, |of| of.range_id);
            ranges.entry(range).or_default().push((survey.node_id, replica));
        }
    }
    ranges
}

/// What each node is to be told that another one knows to be committed; empty once all have applied it.
pub fn committed(surveys: &[v1::SurveyResponse]) -> BTreeMap<u64, Vec<v1::CommittedEntry>> {
    let mut told: BTreeMap<u64, Vec<v1::CommittedEntry>> = BTreeMap::new();
    for (range_id, replicas) in by_range(surveys) {
        let known = replicas.iter().filter(|(_, of)| of.commit_term > 0).max_by_key(|(_, of)| of.commit_index);
        let Some((_, known)) = known else { continue };
        let entry = v1::CommittedEntry { range_id, index: known.commit_index, term: known.commit_term };
        let behind = |of: &v1::SurveyedReplica| of.commit_index < entry.index && of.last_index >= entry.index;
        for (node, _) in replicas.iter().filter(|(_, of)| of.leader_node_id == 0 && behind(of)) {
            told.entry(*node).or_default().push(entry);
        }
    }
    told
}

/// Ranges of which some replica still follows a leader, or has not applied all that it knows to be committed: such
/// things pass by themselves, or the range is well.
pub fn unsettled(surveys: &[v1::SurveyResponse]) -> Vec<u64> {
    let lost = |replicas: &[Replica<'_>]| newest(replicas).is_some_and(|of| !has_majority(of, replicas));
    let restless = |of: &v1::SurveyedReplica, all: &[Replica<'_>]| {
        may_be_led(of.leader_node_id, all, surveys) || of.applied_index < of.commit_index
    };
    let all = by_range(surveys);
    let unsettled = all.iter().filter(|(_, all)| lost(all) && all.iter().any(|(_, of)| restless(of, all)));
    unsettled.map(|(range, _)| *range).collect()
}

/// Whether a replica's word that this node leads it may still hold. A living node that names no replica of the range does not
/// lead it: whoever sleeps follows a node that lives, and does not hear that the range has left it.
fn may_be_led(by: u64, replicas: &[Replica<'_>], surveys: &[v1::SurveyResponse]) -> bool {
    let answers = surveys.iter().any(|survey| survey.node_id == by);
    by != 0 && (!answers || replicas.iter().any(|(node, _)| *node == by))
}

/// The newest descriptor of a range: of who its replicas are its conf_ver tells, which leaps with a recovery.
fn newest<'a>(replicas: &[Replica<'a>]) -> Option<&'a v1::RangeDescriptor> {
    let age = |of: &&v1::RangeDescriptor| (epoch(of).conf_ver, epoch(of).version);
    replicas.iter().filter_map(|(_, of)| of.descriptor.as_ref()).max_by_key(age)
}

/// The sets of voters whose majorities decide: one, or two in a joint configuration.
fn voter_sets(of: &v1::RangeDescriptor) -> Vec<Vec<&v1::ReplicaDescriptor>> {
    let with = |roles: &[ReplicaRole]| -> Vec<&v1::ReplicaDescriptor> {
        of.replicas.iter().filter(|replica| roles.contains(&replica.role())).collect()
    };
    let new = with(&[ReplicaRole::Voter, ReplicaRole::VoterIncoming]);
    let old = with(&[ReplicaRole::Voter, ReplicaRole::VoterOutgoing]);
    if new == old { vec![new] } else { vec![new, old] }
}

fn living_of(set: &[&v1::ReplicaDescriptor], replicas: &[Replica<'_>]) -> usize {
    let lives = |of: &&&v1::ReplicaDescriptor| replicas.contains_replica(of);
    set.iter().filter(lives).count()
}

trait Contains {
    fn contains_replica(&self, of: &v1::ReplicaDescriptor) -> bool;
}

impl Contains for [Replica<'_>] {
    fn contains_replica(&self, of: &v1::ReplicaDescriptor) -> bool {
        self.iter().any(|(node, replica)| (*node, replica.replica_id) == (of.node_id, of.replica_id))
    }
}

fn has_majority(of: &v1::RangeDescriptor, replicas: &[Replica<'_>]) -> bool {
    voter_sets(of).iter().all(|set| living_of(set, replicas) * 2 > set.len())
}

/// Makes a plan. The refusals say each what is in the way.
pub fn plan(wish: &Wish, surveys: &[v1::SurveyResponse]) -> Result<Plan, Vec<String>> {
    check(wish, surveys)?;
    let ranges = by_range(surveys);
    let mut plan = Plan {
        cluster_id: surveys.first().map_or(0, |survey| survey.cluster_id),
        wish: wish.clone(),
        living: surveys.iter().map(|survey| (survey.node_id, survey.boot_id)).collect(),
        warnings: unheard_of(wish, surveys).into_iter().chain(untold(surveys)).collect(),
        ..Plan::default()
    };
    let mut refusals = Vec::new();
    let mut well: Vec<v1::RangeDescriptor> = Vec::new();
    let dropped = dropped(surveys);
    for (range, replicas) in &ranges {
        let Some(descriptor) = newest(replicas) else { continue };
        if dropped.contains(&descriptor.keyspace_id) {
            // Whoever still holds a part of it has yet to be told, and then lets it go.
            continue;
        }
        if has_majority(descriptor, replicas) {
            plan.healthy += 1;
            well.push(descriptor.clone());
            continue;
        }
        if let Some((node, of)) = replicas.iter().find(|(_, of)| may_be_led(of.leader_node_id, replicas, surveys)) {
            refusals.push(format!(
                "range {range}: its replica on node {node} follows node {}: a quorum lives, or was lost a moment ago",
                of.leader_node_id
            ));
            continue;
        }
        let silent: Vec<u64> = not_heard(descriptor, &plan);
        if !silent.is_empty() {
            refusals.push(format!(
                "range {range}: nodes {silent:?} hold voters of it, do not answer, and are not named dead"
            ));
            continue;
        }
        plan.kept.push(keep(wish, descriptor, replicas, surveys));
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    tile(&mut plan, &well);
    raise(&mut plan, surveys);
    plan.gaps = gaps(&plan, &well, surveys);
    plan.lost = lost_ranges(surveys, &ranges, &[well, afters(&plan)].concat());
    if plan.kept.is_empty() && plan.lost.is_empty() {
        return Err(vec![nothing_to_do(&plan)]);
    }
    if wish.recreate_empty {
        recreate(&mut plan);
    }
    plan.kept.sort_by_key(|kept| (kept.order.range_id != SYSTEM_RANGE.0, kept.order.range_id));
    Ok(plan)
}

/// The refusal where every range has a quorum.
fn nothing_to_do(plan: &Plan) -> String {
    let (healthy, dead) = (plan.healthy, &plan.wish.dead);
    let gaps = match plan.gaps.len() {
        0 => String::new(),
        gaps => format!("; no range holds {gaps} spans of keyspaces, and nobody remembers which did"),
    };
    let warnings: String = plan.warnings.iter().map(|warning| format!("; {warning}")).collect();
    format!(
        "all {healthy} ranges have a quorum without nodes {dead:?}: nothing is to be recovered; placement rebuilds what those held{gaps}{warnings}"
    )
}

/// What is wrong with the wish as a whole.
fn check(wish: &Wish, surveys: &[v1::SurveyResponse]) -> Result<(), Vec<String>> {
    let mut refusals = Vec::new();
    let answered: BTreeSet<u64> = surveys.iter().map(|survey| survey.node_id).collect();
    let clusters: BTreeSet<u64> = surveys.iter().map(|survey| survey.cluster_id).collect();
    if clusters.len() != 1 {
        refusals.push(format!("nodes of {} clusters answered", clusters.len()));
    }
    if wish.dead.is_empty() {
        refusals.push("no node is named dead: name all that are gone for good".into());
    }
    for node in wish.dead.intersection(&answered) {
        refusals.push(format!("node {node} is named dead, and answers"));
    }
    let known: BTreeMap<u64, &v1::SurveyedNode> =
        surveys.iter().flat_map(|survey| &survey.nodes).map(|node| (node.node_id, node)).collect();
    for node in known.keys().filter(|node| !answered.contains(node) && !wish.dead.contains(node)) {
        refusals.push(format!("node {node} does not answer, and is not named dead: start it, or name it with --dead"));
    }
    for survey in surveys {
        for node in survey.nodes.iter().filter(|node| node.live && wish.dead.contains(&node.node_id)) {
            refusals.push(format!(
                "node {} is named dead, and node {} has a connection to it",
                node.node_id, survey.node_id
            ));
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(refusals) }
}

/// Nodes that are named dead and that nobody alive knows: one that joined just before the others were lost, or a slip. Not to name the first
/// would be worse: it could come back as a member like any, with a history that ended here.
fn unheard_of(wish: &Wish, surveys: &[v1::SurveyResponse]) -> Vec<String> {
    let known = |node: &u64| surveys.iter().flat_map(|survey| &survey.nodes).any(|known| known.node_id == *node);
    let named = |node: &u64| {
        let holds = |of: &v1::RangeDescriptor| of.replicas.iter().any(|replica| replica.node_id == *node);
        let mut replicas = surveys.iter().flat_map(|survey| &survey.replicas).filter_map(|of| of.descriptor.as_ref());
        let given_up = surveys.iter().any(|survey| survey.condemned.contains(node));
        given_up || known(node) || replicas.any(holds) || surveys.iter().flat_map(|survey| &survey.routes).any(holds)
    };
    let what = |node: &u64| format!("no node that answers has heard of node {node}, which is named dead");
    wish.dead.iter().filter(|node| !named(node)).map(what).collect()
}

/// After their start nodes know the keyspaces only when placement has told them: until then a keyspace that is lost wholly is not missed.
fn untold(surveys: &[v1::SurveyResponse]) -> Option<String> {
    let told = surveys.iter().any(|survey| !survey.keyspaces.is_empty());
    let what = "no node that answers has been told of the keyspaces since it started: one that is lost wholly is not named here; \
         plan again once placement runs";
    (!told).then(|| what.into())
}

/// Nodes with voters that neither answer nor are named dead.
fn not_heard(of: &v1::RangeDescriptor, plan: &Plan) -> Vec<u64> {
    let voters = of.replicas.iter().filter(|replica| replica.role() != ReplicaRole::Learner);
    let missing = |node: &u64| !plan.living.contains_key(node) && !plan.wish.dead.contains(node);
    voters.map(|replica| replica.node_id).filter(missing).collect()
}

/// The replica that goes on, and what it becomes.
fn keep(wish: &Wish, newest: &v1::RangeDescriptor, replicas: &[Replica<'_>], surveys: &[v1::SurveyResponse]) -> Kept {
    let role = |(node, of): &Replica<'_>| {
        let named =
            newest.replicas.iter().find(|replica| (replica.node_id, replica.replica_id) == (*node, of.replica_id));
        match named.map(|replica| replica.role()) {
            Some(ReplicaRole::Learner) => 1,
            Some(_) => 2,
            None => 0,
        }
    };
    let rank = |of: &Replica<'_>| {
        let log = (of.1.last_term, of.1.last_index, of.1.applied_index);
        let behind = Mutant::RecoverBehind.is_on().then_some(std::cmp::Reverse(log));
        (role(of), behind, log, u64::MAX - of.0)
    };
    let (node, chosen) = *replicas.iter().max_by_key(|of| rank(of)).expect("a range has the replicas it was found by");
    let before = chosen.descriptor.clone().unwrap_or_default();
    let remembered = surveys.iter().flat_map(|survey| &survey.routes).filter(|of| of.range_id == before.range_id);
    let all = || replicas.iter().filter_map(|(_, of)| of.descriptor.as_ref()).chain(remembered.clone());
    let conf_ver = beyond(all().map(|of| epoch(of).conf_ver).max().unwrap_or_default(), wish.unix_ms);
    let next_id = all().map(|of| of.next_replica_id).max().unwrap_or_default();
    let term = replicas.iter().map(|(_, of)| of.term).max().unwrap_or_default();
    let (replica_id, term) = leapt(chosen.replica_id, next_id, term, wish.unix_ms);
    let after = v1::RangeDescriptor {
        epoch: Some(v1::Epoch { conf_ver, ..epoch(&before) }),
        replicas: vec![v1::ReplicaDescriptor { replica_id, node_id: node, role: ReplicaRole::Voter.into() }],
        next_replica_id: before.next_replica_id.max(replica_id + 1),
        ..before.clone()
    };
    let record = v1::RangeRecovery {
        plan_id: wish.plan_id.clone(),
        unix_ms: wish.unix_ms,
        decided_by: wish.decided_by.clone(),
        before: Some(before.clone()),
        last_term: chosen.last_term,
        last_index: chosen.last_index,
        commit_index: chosen.commit_index,
        dead_nodes: wish.dead.iter().copied().collect(),
    };
    let mut warnings = Vec::new();
    match role(&(node, chosen)) {
        0 => warnings
            .push("no member of the range as it was last known is left: this replica had been removed from it".into()),
        1 => warnings.push("no voter is left: a learner goes on, which may lack what was acknowledged".into()),
        _ => {}
    }
    if let Some(newer) = remembered.clone().filter(|of| age(of) > age(&before)).max_by_key(|of| age(of)) {
        let (version, conf_ver) = age(newer);
        warnings.push(format!("others have heard of a newer epoch {version}.{conf_ver}: this replica is behind"));
    }
    if newest.replicas.iter().any(|of| matches!(of.role(), ReplicaRole::VoterIncoming | ReplicaRole::VoterOutgoing)) {
        warnings.push("a change of its replicas was half done".into());
    }
    let merge_target_lost = target_lost(chosen, surveys, &mut warnings);
    let sets = voter_sets(newest);
    let living_voters = sets.iter().map(|set| (living_of(set, replicas), set.len())).min().unwrap_or_default();
    let order = v1::RecoverReplica {
        range_id: before.range_id,
        replica_id: chosen.replica_id,
        before: Some(before),
        last_term: chosen.last_term,
        last_index: chosen.last_index,
        after: Some(after),
        term,
        record: Some(record),
        merge_target_lost,
    };
    let uncommitted = chosen.last_index.saturating_sub(chosen.commit_index);
    Kept { node, order, living_voters, uncommitted, data_bytes: chosen.data_bytes, warnings }
}

/// Whether a replica stands still for a merge into a range of which nothing is left.
fn target_lost(chosen: &v1::SurveyedReplica, surveys: &[v1::SurveyResponse], warnings: &mut Vec<String>) -> bool {
    let target = chosen.frozen_for_range_id;
    if target == 0 {
        return false;
    }
    let mut all = surveys.iter().flat_map(|survey| &survey.replicas).filter_map(|of| of.descriptor.as_ref());
    let lost = !all.any(|of| of.range_id == target);
    warnings.push(match lost {
        true => {
            format!("it stands still for a merge into range {target}, of which nothing is left: it goes on as it stood")
        }
        false => format!(
            "it stands still for a merge into range {target}: it goes on once that one says that there was none"
        ),
    });
    lost
}

/// The id of the replica that goes on, and its term: beyond all that the lost ones can have reached.
fn leapt(replica_id: u64, next_id: u64, term: u64, unix_ms: u64) -> (u64, u64) {
    if Mutant::RecoverSameReplica.is_on() {
        return (replica_id, term + 1);
    }
    (beyond(next_id, unix_ms), beyond(term, unix_ms))
}

fn after(kept: &Kept) -> v1::RangeDescriptor {
    kept.order.after.clone().unwrap_or_default()
}

fn afters(plan: &Plan) -> Vec<v1::RangeDescriptor> {
    plan.kept.iter().map(after).collect()
}

/// Whether two descriptors share keys.
fn overlap(one: &v1::RangeDescriptor, other: &v1::RangeDescriptor) -> bool {
    let before = |end: &[u8], start: &[u8]| !end.is_empty() && end <= start;
    one.keyspace_id == other.keyspace_id && !before(&one.end, &other.start) && !before(&other.end, &one.start)
}

/// Takes from each range that goes on what a newer one has: a split that its survivor has not applied. The version leaps
/// beyond every one that the survivor's log may come to: if what stands there behind the split took effect and what stands
/// before it did not, a later write would be kept and an earlier one lost.
fn tile(plan: &mut Plan, well: &[v1::RangeDescriptor]) {
    let all: Vec<v1::RangeDescriptor> = well.iter().cloned().chain(afters(plan)).collect();
    let (mut kept, mut left) = (Vec::new(), Vec::new());
    for mut range in std::mem::take(&mut plan.kept) {
        let mut own = after(&range);
        let newer = all
            .iter()
            .filter(|of| of.range_id != own.range_id && overlap(of, &own) && epoch(of).version > epoch(&own).version);
        let Some(first) = newer.clone().min_by(|a, b| a.start.cmp(&b.start)) else {
            kept.push(range);
            continue;
        };
        let id = own.range_id;
        if first.start <= own.start {
            left.push(format!(
                "range {id}: range {} is newer and holds its first keys; node {} keeps its replica of it",
                first.range_id, range.node
            ));
            continue;
        }
        let version = newer.map(|of| epoch(of).version).max().unwrap_or_default() + LEAP;
        range.warnings.push(format!(
            "a split into range {} is not in what is left of it: it ends there, and entries that it has not applied are dropped",
            first.range_id
        ));
        own.end = first.start.clone();
        own.epoch = Some(v1::Epoch { version, ..epoch(&own) });
        range.order.after = Some(own);
        kept.push(range);
    }
    (plan.kept, plan.left) = (kept, left);
}

/// Raises the version of what goes on behind a split or a merge that others have heard of: a route of the past would
/// never give way to it otherwise. By a leap, as in [`tile`].
fn raise(plan: &mut Plan, surveys: &[v1::SurveyResponse]) {
    let replicas = surveys.iter().flat_map(|survey| &survey.replicas).filter_map(|of| of.descriptor.as_ref());
    let known: Vec<&v1::RangeDescriptor> = replicas.chain(surveys.iter().flat_map(|survey| &survey.routes)).collect();
    for range in &mut plan.kept {
        let mut own = after(range);
        let version = known.iter().filter(|of| overlap(of, &own)).map(|of| epoch(of).version).max().unwrap_or_default();
        if version > epoch(&own).version {
            range.warnings.push(format!(
                "a split or a merge (version {version}) is not in what is left of it: entries that it has not applied are dropped"
            ));
            own.epoch = Some(v1::Epoch { version: version + LEAP, ..epoch(&own) });
            range.order.after = Some(own);
        }
    }
}
