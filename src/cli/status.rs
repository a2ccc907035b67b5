//! `status`: one line when all is well, otherwise one for each thing that needs a person.
//!
//! The nodes are asked one by one: a node that only others call alive does not count. Who leads is
//! taken from the leaders themselves, so that what a node has not heard yet is no problem. The
//! judgement ([`problems`]) is a pure function of what they said.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_proto::{Error, NodeId, v1};
use flotilla_router::Client;
use serde_json::json;

use super::failure::{Failure, Result};
use super::global::Global;
use super::output::{self, plural, size};
use super::range;

/// How long the placement service may take over its answer: what else there is to say must not wait long for it.
const PLACEMENT_PATIENCE: Duration = Duration::from_secs(3);

#[derive(clap::Args, Debug)]
pub struct StatusArgs {
    /// Exit with 1 unless all is well
    #[arg(long)]
    check: bool,
}

/// What the cluster said about itself.
#[derive(Debug, Default)]
struct Picture {
    nodes: Vec<v1::NodeInfo>,
    ranges: Vec<v1::RangeStatus>,
    keyspaces: Vec<v1::Keyspace>,
    /// What each node that answers said.
    statuses: BTreeMap<u64, v1::NodeStatusResponse>,
    /// Why the others did not.
    silent: BTreeMap<u64, String>,
    /// What the placement service knows.
    placement: Placement,
}

/// The placement service's word.
#[derive(Debug, Default)]
struct Placement {
    /// Things that need a person, and that nobody else can tell.
    problems: Vec<String>,
    /// Things that are as somebody asked for, or that pass.
    notes: Vec<String>,
    /// Why it could not be asked.
    missing: Option<String>,
}

impl Placement {
    /// What nodes and ranges say for themselves is left out: it is told by [`problems`].
    fn of(lines: Vec<String>) -> Self {
        let told = |line: &String| {
            line.contains(" is silent for ")
                || line.contains(" majority")
                || line.contains("has no disk space to spare")
        };
        let passes = |line: &String| {
            ["is in maintenance for", "is being decommissioned", "the placement service has not heard of all nodes"]
                .iter()
                .any(|words| line.contains(words))
        };
        let (notes, problems) = lines.into_iter().filter(|line| !told(line)).partition(passes);
        Self { problems, notes, missing: None }
    }
}

/// What goes on and what does not, while placement is not reached.
fn without_placement(why: &str) -> String {
    format!(
        "the placement service does not answer ({why}): until the system range is led again nothing is repaired, balanced, \
         drained or merged, no node can join, no keyspace be created, changed or dropped; reads, writes and splits of all \
         other ranges go on"
    )
}

pub async fn run(args: StatusArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let picture = look(&client, global.timeout).await?;
    let problems = problems(&picture);
    if global.json() {
        output::json(&json!({
            "ok": problems.is_empty(),
            "nodes": picture.nodes.len(),
            "nodes_up": picture.statuses.len(),
            "ranges": picture.ranges.len(),
            "problems": problems,
            "notes": picture.placement.notes,
        }))?;
    } else {
        let mut lines = if problems.is_empty() { vec![all_well(&picture)] } else { problems.clone() };
        lines.extend(picture.placement.notes.iter().cloned());
        output::line(lines.join("\n"))?;
    }
    if args.check && !problems.is_empty() {
        let things = problems.len() as u64;
        let verb = if things == 1 { "needs" } else { "need" };
        return Err(
            Failure::failed(format!("{} {verb} a person", plural(things, "thing"))).hint("each line says what to do")
        );
    }
    Ok(())
}

async fn look(client: &Client, timeout: Duration) -> Result<Picture> {
    let routes = client.list_ranges().await?;
    let mut picture =
        Picture { nodes: routes.nodes, ranges: routes.ranges, keyspaces: routes.keyspaces, ..Picture::default() };
    picture.nodes.sort_by_key(|node| node.node_id);
    for node in &picture.nodes {
        if node.client_addr.is_empty() {
            picture.silent.insert(node.node_id, "its client address is not known".into());
            continue;
        }
        match client.node_status(NodeId(node.node_id)).await {
            Ok(status) => picture.statuses.insert(node.node_id, status).map(|_| ()),
            Err(error) => picture.silent.insert(node.node_id, reason(node, error)).map(|_| ()),
        };
    }
    let up = picture.statuses.keys().copied().collect();
    range::find_leaders(client, &mut picture.ranges, &up).await;
    let patience = timeout.min(PLACEMENT_PATIENCE);
    picture.placement = match client.with_timeout(patience).placement_status().await {
        Ok(status) => Placement::of(status.problems),
        Err(error) => Placement { missing: Some(error.to_string()), ..Placement::default() },
    };
    Ok(picture)
}

/// Why a node did not answer, without its address.
fn reason(node: &v1::NodeInfo, error: Error) -> String {
    match error {
        Error::Unavailable { reason } => reason.trim_start_matches(&format!("{}: ", node.client_addr)).into(),
        error => error.to_string(),
    }
}

fn all_well(picture: &Picture) -> String {
    let replicas: BTreeSet<u64> =
        picture.ranges.iter().filter_map(|range| Some(voters(range.descriptor.as_ref()?))).collect();
    let (least, most) = (replicas.first().copied().unwrap_or(0), replicas.last().copied().unwrap_or(0));
    let replicas =
        if least == most { plural(most, "replica") } else { format!("{least} to {}", plural(most, "replica")) };
    format!(
        "ok: {} up, {} led, {replicas} each",
        plural(picture.nodes.len() as u64, "node"),
        plural(picture.ranges.len() as u64, "range"),
    )
}

/// One line for each thing that needs a person.
fn problems(picture: &Picture) -> Vec<String> {
    let mut lines: Vec<String> = picture.placement.missing.as_deref().map(without_placement).into_iter().collect();
    for node in &picture.nodes {
        if let Some(why) = picture.silent.get(&node.node_id) {
            lines.push(node_down(node, why));
        }
    }
    lines.extend(without_leader(picture));
    lines.extend(too_few_replicas(picture));
    lines.extend(not_replicated_yet(picture));
    for (node, status) in &picture.statuses {
        if status.disk_free_bytes <= status.disk_margin_bytes {
            lines.push(format!(
                "node {node}: {} of disk are free, at {} writes are refused: make room, or delete keys",
                size(status.disk_free_bytes),
                size(status.disk_margin_bytes),
            ));
        }
        // What only the node itself can know, such as a refused handshake. What was already said
        // above in other words is left out.
        let news = status.problems.iter().filter(|problem| !is_known(problem, picture));
        lines.extend(news.map(|problem| format!("node {node}: {problem}")));
    }
    lines.extend(picture.placement.problems.iter().cloned());
    lines
}

/// Whether a node's own line tells what [`problems`] finds out better, over all nodes.
fn is_known(problem: &str, picture: &Picture) -> bool {
    problem.starts_with("disk space is at its margin")
        || problem.contains("ranges have no leader that this node knows of")
        || picture.silent.keys().any(|node| problem.starts_with(&format!("no connection to node {node} ")))
}

fn node_down(node: &v1::NodeInfo, why: &str) -> String {
    let address = if node.client_addr.is_empty() { &node.peer_addr } else { &node.client_addr };
    let rumour = if node.live { "; other nodes still reach it" } else { "" };
    let cure = match why.contains("belongs to cluster") {
        true => "check the addresses: another cluster's node listens there",
        false => "start it again with the `flotilla start` line it had",
    };
    format!("node {} is down ({address}): {why}{rumour}: {cure}", node.node_id)
}

fn without_leader(picture: &Picture) -> Option<String> {
    let up = |node: u64| picture.statuses.contains_key(&node);
    let lost: Vec<u64> = picture
        .ranges
        .iter()
        .filter(|range| !up(range.leader_node_id))
        .filter_map(|range| Some(range.descriptor.as_ref()?.range_id))
        .collect();
    (!lost.is_empty()).then(|| {
        format!(
            "{} without a leader ({}): an election takes a second or two, if a quorum of the replicas' nodes is up",
            plural(lost.len() as u64, "range"),
            some_ids(&lost),
        )
    })
}

/// Ranges by the set of their replicas' nodes that are down, and whether a quorum is left.
fn too_few_replicas(picture: &Picture) -> Vec<String> {
    let mut by_missing: BTreeMap<(BTreeSet<u64>, bool), Vec<u64>> = BTreeMap::new();
    for descriptor in picture.ranges.iter().filter_map(|range| range.descriptor.as_ref()) {
        let nodes = descriptor.replicas.iter().map(|replica| replica.node_id);
        let missing: BTreeSet<u64> = nodes.filter(|node| !picture.statuses.contains_key(node)).collect();
        let quorum = missing.len() * 2 < descriptor.replicas.len();
        if !missing.is_empty() {
            by_missing.entry((missing, quorum)).or_default().push(descriptor.range_id);
        }
    }
    let line = |((missing, quorum), ranges): ((BTreeSet<u64>, bool), Vec<u64>)| {
        let nodes: Vec<String> = missing.iter().map(u64::to_string).collect();
        let verb = if ranges.len() == 1 { "lacks" } else { "lack" };
        let cure = format!(
            "without a quorum, writes there wait: start what is down; nodes that are gone for good: `flotilla recover plan --dead {}`",
            nodes.join(",")
        );
        let (replicas, nodes) = match &nodes[..] {
            [node] => ("replica", format!("node {node}")),
            _ => ("replicas", format!("nodes {}", nodes.join(" and "))),
        };
        let outlook = if quorum { "another failure may stop them" } else { &cure };
        let count = plural(ranges.len() as u64, "range");
        format!("{count} {verb} the {replicas} on {nodes} ({}): {outlook}", some_ids(&ranges))
    };
    by_missing.into_iter().map(line).collect()
}

/// Replicas that have a vote, or are about to get it and to keep it.
fn voters(descriptor: &v1::RangeDescriptor) -> u64 {
    let lasting = |role| matches!(role, v1::ReplicaRole::Voter | v1::ReplicaRole::VoterIncoming);
    descriptor.replicas.iter().filter(|replica| lasting(replica.role())).count() as u64
}

/// Ranges with fewer replicas than their keyspace asks for, and than there are nodes for.
fn not_replicated_yet(picture: &Picture) -> Option<String> {
    let nodes = picture.statuses.len() as u64;
    let wanted = |descriptor: &v1::RangeDescriptor| {
        let keyspace = picture.keyspaces.iter().find(|keyspace| keyspace.keyspace_id == descriptor.keyspace_id);
        keyspace.map_or(0, |keyspace| u64::from(keyspace.replicas)).min(nodes)
    };
    let descriptors = picture.ranges.iter().filter_map(|range| range.descriptor.as_ref());
    let few: Vec<u64> = descriptors.filter(|range| voters(range) < wanted(range)).map(|range| range.range_id).collect();
    (!few.is_empty()).then(|| {
        format!(
            "{} with fewer replicas than the keyspace asks for ({}): they get them by themselves; if that takes long, \
             look for full or draining nodes in `flotilla node list`",
            plural(few.len() as u64, "range"),
            some_ids(&few),
        )
    })
}

fn some_ids(ids: &[u64]) -> String {
    let some: Vec<String> = ids.iter().take(8).map(u64::to_string).collect();
    format!("{}{}", some.join(", "), if ids.len() > 8 { ", ..." } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let node =
            |node_id| v1::NodeInfo { node_id, client_addr: format!("n{node_id}:1"), live: true, ..Default::default() };
        let replica = |node_id| v1::ReplicaDescriptor { node_id, replica_id: node_id, role: 0 };
        let range = |range_id| v1::RangeStatus {
            descriptor: Some(v1::RangeDescriptor {
                range_id,
                replicas: (1..=3).map(replica).collect(),
                ..Default::default()
            }),
            leader_node_id: range_id % 3 + 1,
            term: 6,
            ..Default::default()
        };
        let status = v1::NodeStatusResponse { disk_free_bytes: 9, disk_margin_bytes: 1, ..Default::default() };
        Picture {
            nodes: (1..=3).map(node).collect(),
            ranges: (2..18).map(range).collect(),
            keyspaces: vec![v1::Keyspace { replicas: 3, ..Default::default() }],
            statuses: (1..=3).map(|node| (node, status.clone())).collect(),
            silent: BTreeMap::new(),
            placement: Placement::default(),
        }
    }

    #[test]
    fn what_placement_knows_is_told_once_and_what_passes_is_no_problem() {
        let lines = [
            "keyspace \"x\": its constraints (require zone=a) leave 1 nodes for 3 replicas: add nodes",
            "node 2 is silent for 9 s",
            "node 3 is in maintenance for 60 s more",
            "node 1 is being decommissioned: 3 of 9 replicas are left",
            "node 3 is slow: its disk; it leads nothing while others can",
            "2 ranges without a majority of live replicas (4, 5)",
        ];
        let mut picture = picture();
        picture.placement = Placement::of(lines.map(str::to_owned).to_vec());
        assert_eq!(problems(&picture), [lines[0], lines[4]]);
        assert_eq!(picture.placement.notes, [lines[2], lines[3]]);
        picture.placement = Placement { missing: Some("nobody leads".into()), ..Placement::default() };
        let told = problems(&picture);
        assert!(told[0].starts_with("the placement service does not answer (nobody leads): "), "{}", told[0]);
        assert!(told[0].ends_with("reads, writes and splits of all other ranges go on"), "{}", told[0]);
    }

    #[test]
    fn one_line_when_all_is_well() {
        let picture = picture();
        assert_eq!(problems(&picture), Vec::<String>::new());
        assert_eq!(all_well(&picture), "ok: 3 nodes up, 16 ranges led, 3 replicas each");
    }

    #[test]
    fn replicas_that_are_still_to_come() {
        let mut picture = picture();
        let range = picture.ranges[4].descriptor.as_mut().expect("there");
        range.replicas[1].role = v1::ReplicaRole::Learner.into();
        let lines = problems(&picture);
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].starts_with("1 range with fewer replicas than the keyspace asks for (6)"), "{}", lines[0]);
        // There is no node for more.
        picture.keyspaces[0].replicas = 2;
        assert_eq!(problems(&picture), Vec::<String>::new());
        assert_eq!(all_well(&picture), "ok: 3 nodes up, 16 ranges led, 2 to 3 replicas each");
    }

    #[test]
    fn a_node_that_is_down_and_what_follows_from_it() {
        let mut picture = picture();
        picture.statuses.remove(&2);
        picture.silent.insert(2, "no answer".into());
        let lines = problems(&picture);
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines[0].starts_with("node 2 is down (n2:1): no answer; other nodes still reach it"));
        assert!(lines[1].starts_with("5 ranges without a leader (4, 7, 10, 13, 16)"), "{}", lines[1]);
        assert!(lines[2].starts_with("16 ranges lack the replica on node 2 (2, 3, 4, 5, 6, 7, 8, 9, ...)"));
    }

    #[test]
    fn a_range_without_a_leader_and_a_full_disk_and_what_a_node_says() {
        let mut picture = picture();
        picture.ranges[0].leader_node_id = 0;
        let status = picture.statuses.get_mut(&3).expect("node 3");
        status.disk_free_bytes = 1;
        status.problems =
            vec!["disk space is at its margin: x".into(), "a node was turned away: another cluster".into()];
        let lines = problems(&picture);
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines[0].starts_with("1 range without a leader (2)"));
        assert!(lines[1].starts_with("node 3: 1 B of disk are free"));
        assert_eq!(lines[2], "node 3: a node was turned away: another cluster");
    }
}
