//! `range move`: a replica from one node to another, and the wait until it has arrived.
//!
//! The move is an order of the placement service, carried out step by step by the range's leader. The service says how
//! it ended: done, or given up and why. Where its answer is lost (the service has moved to another node, say), the
//! client gives the order again: one that is under way is waited for, and one that is done is seen by the replicas.

use std::time::Duration;

use flotilla_proto::{Error, NodeId, RangeId, v1};
use flotilla_router::Client;
use serde_json::json;
use v1::ReplicaRole;

use super::describe::replicas;
use super::failure;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::{Global, parse_duration};
use crate::cli::output::{self, duration};

/// Between two looks at the range.
const POLL: Duration = Duration::from_millis(200);

#[derive(clap::Args, Debug)]
pub struct MoveArgs {
    /// The range's id
    range: u64,
    /// The node that has the replica
    #[arg(long, value_name = "NODE")]
    from: u64,
    /// The node that is to have it
    #[arg(long, value_name = "NODE")]
    to: u64,
    /// Return when the move is decided, not when it is done
    #[arg(long)]
    no_wait: bool,
    /// How long to wait until it is done
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration, conflicts_with = "no_wait")]
    wait: Duration,
}

pub async fn run(args: &MoveArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let done = if args.no_wait {
        let (range, from, to) = (RangeId(args.range), NodeId(args.from), NodeId(args.to));
        client.move_replica(range, from, to, None).await.map_err(failure)?
    } else {
        wait(&client, args).await?;
        true
    };
    if global.json() {
        return output::json(&json!({
            "range_id": args.range, "from_node_id": args.from, "to_node_id": args.to, "done": done,
        }));
    }
    let what = if done { "has moved" } else { "will move" };
    output::line(format_args!("range {}: the replica on node {} {what} to node {}", args.range, args.from, args.to))
}

/// Orders the move, and waits for its end.
async fn wait(client: &Client, args: &MoveArgs) -> Result {
    let mut seen =
        Seen { bar: output::progress(0, "move"), last: "its replicas could not be read".into(), stage: None };
    seen.look(client, args).await;
    let at_first = seen.stage;
    let answer = seen.watch(client, args).await;
    let ended = match answer {
        // The first answer may have been lost, and what is done cannot be ordered a second time.
        Err(error) => {
            seen.look(client, args).await;
            let done = seen.stage == Some(Stage::Done) && at_first.is_some_and(|stage| stage != Stage::Done);
            if done { Ok(true) } else { Err(error) }
        }
        answer => answer,
    };
    seen.bar.finish_and_clear();
    match ended {
        Ok(true) => Ok(()),
        Ok(false) => {
            let what = format!("the move is not done after {}: {}", duration(args.wait), seen.last);
            let hint = format!("it goes on; see `flotilla range show {0}` and `flotilla range events {0}`", args.range);
            Err(Failure::failed(what).hint(hint))
        }
        Err(error) => Err(failure(error)),
    }
}

/// What was seen of a move under way.
struct Seen {
    bar: indicatif::ProgressBar,
    last: String,
    stage: Option<Stage>,
}

impl Seen {
    /// Orders the move, and shows how far it is until the answer comes.
    async fn watch(&mut self, client: &Client, args: &MoveArgs) -> std::result::Result<bool, Error> {
        let (range, from, to) = (RangeId(args.range), NodeId(args.from), NodeId(args.to));
        let mut answer = std::pin::pin!(client.move_replica(range, from, to, Some(args.wait)));
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                () = tokio::time::sleep(POLL) => self.look(client, args).await,
            }
        }
    }

    async fn look(&mut self, client: &Client, args: &MoveArgs) {
        self.bar.tick();
        // A leader that is being changed answers later.
        let Ok(answer) = client.get_range(RangeId(args.range), None).await else { return };
        let descriptor = answer.status.and_then(|status| status.descriptor).unwrap_or_default();
        let waits = answer.replica.map(|replica| replica.order_waits).unwrap_or_default();
        let waits = if waits.is_empty() { String::new() } else { format!("; it waits: {waits}") };
        let stage = stage(&descriptor, args.from, args.to);
        self.stage = Some(stage);
        self.last = format!("{}; replicas on nodes {}{waits}", stage.text(), replicas(&descriptor));
        self.bar.set_message(self.last.clone());
    }
}

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The new replica is not there.
    Decided,
    /// It gets the data.
    Learning,
    /// It has a vote, or is about to.
    Joint,
    /// The old one is gone.
    Done,
}

impl Stage {
    fn text(self) -> &'static str {
        match self {
            Self::Decided => "the new replica is not there yet",
            Self::Learning => "the new replica gets the data",
            Self::Joint => "the old replica is being removed",
            Self::Done => "done",
        }
    }
}

fn stage(descriptor: &v1::RangeDescriptor, from: u64, to: u64) -> Stage {
    let role = |node: u64| descriptor.replicas.iter().find(|replica| replica.node_id == node).map(|found| found.role());
    match (role(from), role(to)) {
        (None, Some(ReplicaRole::Voter)) => Stage::Done,
        (_, Some(ReplicaRole::Voter | ReplicaRole::VoterIncoming)) => Stage::Joint,
        (_, Some(ReplicaRole::Learner)) => Stage::Learning,
        (_, Some(ReplicaRole::VoterOutgoing) | None) => Stage::Decided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_done_when_the_new_replica_votes_and_the_old_one_is_gone() {
        use ReplicaRole::{Learner, Voter, VoterIncoming, VoterOutgoing};
        let at = |replicas: &[(u64, ReplicaRole)]| {
            let replica = |(node_id, role): &(u64, ReplicaRole)| v1::ReplicaDescriptor {
                node_id: *node_id,
                replica_id: *node_id,
                role: (*role).into(),
            };
            let replicas = replicas.iter().map(replica).collect();
            stage(&v1::RangeDescriptor { replicas, ..Default::default() }, 1, 4)
        };
        assert_eq!(at(&[(1, Voter), (2, Voter)]), Stage::Decided);
        assert_eq!(at(&[(1, Voter), (2, Voter), (4, Learner)]), Stage::Learning);
        assert_eq!(at(&[(1, VoterOutgoing), (2, Voter), (4, VoterIncoming)]), Stage::Joint);
        assert_eq!(at(&[(1, Learner), (2, Voter), (4, Voter)]), Stage::Joint);
        assert_eq!(at(&[(2, Voter), (4, Voter)]), Stage::Done);
    }
}
