//! Whether a node that came back has what the others have.

use std::collections::BTreeMap;
use std::time::Instant;

use super::nodes::{Leaders, Nodes};

/// A node on its way to be level with the leaders. The goal is the end of each log when it was first
/// asked for: under load the logs go on growing.
#[derive(Debug)]
pub struct Levelling {
    /// When the node was back.
    pub began: Instant,
    node: u64,
    /// By range: the index to reach; `None`: reached.
    goals: BTreeMap<u64, Option<u64>>,
}

impl Levelling {
    /// A node that is back now.
    pub fn new(node: u64) -> Self {
        Self { began: Instant::now(), node, goals: BTreeMap::new() }
    }

    /// Asks the leaders; true when the node has reached all goals.
    pub async fn look(&mut self, nodes: &Nodes, leaders: &Leaders) -> bool {
        let mut level = !leaders.is_empty();
        for (range, leader) in leaders {
            if self.goals.get(range) == Some(&None) {
                continue;
            }
            let goal = match leader {
                // What leads has everything.
                Some(leader) if *leader == self.node => None,
                Some(leader) => self.behind(nodes, *leader, *range).await,
                None => Some(u64::MAX),
            };
            level &= goal.is_none();
            if goal != Some(u64::MAX) {
                self.goals.insert(*range, goal);
            }
        }
        level
    }

    /// The goal, if the leader does not know it reached; `u64::MAX` if the leader does not answer.
    async fn behind(&self, nodes: &Nodes, leader: u64, range: u64) -> Option<u64> {
        let Some(replica) = nodes.replica(leader, range).await else { return Some(u64::MAX) };
        let goal = self.goals.get(&range).copied().flatten().unwrap_or(replica.last_index);
        // A leader that lists no such follower has no replica there to wait for, unless it has just
        // stepped down and lists none at all.
        if replica.followers.is_empty() {
            return if replica.role == "leader" { None } else { Some(u64::MAX) };
        }
        let follower = replica.followers.iter().find(|follower| follower.node_id == self.node)?;
        (follower.matched_index < goal || !follower.recently_active).then_some(goal)
    }
}
