//! `range check`: lets every replica compute its checksums at one index, gathers them, and compares.

use std::time::{Duration, Instant};

use flotilla_engine::checksum;
use flotilla_engine::store::CheckStarted;
use flotilla_node::Node;
use flotilla_proto::{Error, NodeId, RangeId, Result, v1};
use flotilla_router::{Client, ClientConfig};
use tokio::task::JoinSet;

/// A check that a replica's snapshot overtook is begun anew; a range whose replicas need one after the other is not
/// compared now.
const TRIES: u32 = 5;

/// The checksums of the replicas of a range, and what each of them is of.
struct Gathered {
    check: CheckStarted,
    descriptor: v1::RangeDescriptor,
    answers: Vec<(u64, Result<v1::RangeChecksumResponse>)>,
}

/// Checks a range that this node leads.
pub(super) async fn run(node: &Node, range: RangeId, timeout: Duration) -> Result<v1::CheckRangeResponse> {
    let deadline = Instant::now() + timeout;
    let mut gathered = gather(node, range, timeout).await?;
    for _ in 1..TRIES {
        let left = deadline.saturating_duration_since(Instant::now());
        if !gathered.is_overtaken() || left.is_zero() {
            break;
        }
        gathered = gather(node, range, left).await?;
    }
    Ok(gathered.compare())
}

impl Gathered {
    /// A replica had its state from a snapshot that holds the check's index already.
    fn is_overtaken(&self) -> bool {
        self.answers.iter().any(|(_, answer)| answer.as_ref().is_ok_and(|answer| answer.index > self.check.index))
    }

    fn compare(mut self) -> v1::CheckRangeResponse {
        self.answers.sort_by_key(|(id, _)| *id);
        let index = self.check.index;
        let mut replicas = Vec::new();
        let mut compared = Vec::new();
        for (node_id, answer) in self.answers {
            let mut replica = v1::CheckedReplica { node_id, ..Default::default() };
            match answer {
                Ok(answer) if answer.index == index => {
                    (replica.records, replica.checksum) = checksum::total(&answer.spans);
                    compared.push((node_id, answer.spans));
                }
                Ok(answer) => replica.problem = format!("a snapshot took it to index {}, past {index}", answer.index),
                Err(error) => replica.problem = error.to_string(),
            }
            replicas.push(replica);
        }
        let difference = checksum::first_difference(&self.descriptor, &compared);
        v1::CheckRangeResponse { index, replicas, difference, descriptor: Some(self.descriptor) }
    }
}

/// Begins a check, and waits for what every replica has.
async fn gather(node: &Node, range: RangeId, timeout: Duration) -> Result<Gathered> {
    let check = node.check(range, timeout).await?;
    // Whose checksums are asked for, and of which keys, is what the range was at that index: it may have changed since.
    let own = node.checksums(range, check, timeout).await?;
    let descriptor = own.descriptor.clone().ok_or(Error::RangeNotFound { range })?;
    let mut answers = gather_others(node, &descriptor, check, timeout).await;
    answers.push((node.node_id().0, Ok(own)));
    Ok(Gathered { check, descriptor, answers })
}

/// What the replicas on other nodes have.
async fn gather_others(
    node: &Node,
    descriptor: &v1::RangeDescriptor,
    check: CheckStarted,
    timeout: Duration,
) -> Vec<(u64, Result<v1::RangeChecksumResponse>)> {
    let (range, nodes) = (RangeId(descriptor.range_id), node.nodes());
    let mut gathering = JoinSet::new();
    for id in descriptor.replicas.iter().map(|replica| replica.node_id).filter(|id| *id != node.node_id().0) {
        let address = nodes.iter().find(|of| of.node_id == id).map(|of| of.client_addr.clone()).unwrap_or_default();
        gathering.spawn(async move { (id, elsewhere(NodeId(id), address, range, check, timeout).await) });
    }
    gathering.join_all().await
}

async fn elsewhere(
    node: NodeId,
    address: String,
    range: RangeId,
    check: CheckStarted,
    timeout: Duration,
) -> Result<v1::RangeChecksumResponse> {
    if address.is_empty() {
        return Err(Error::Unavailable { reason: format!("the address of node {} is not known", node.0) });
    }
    let client = Client::connect([address], ClientConfig::default()).await?.with_timeout(timeout);
    client.range_checksum(node, range, check.check_id, check.index).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(indexes: &[u64]) -> Gathered {
        let span = v1::SpanChecksum { records: 3, checksum: 7, ..Default::default() };
        let answer = |index: u64| match index {
            0 => Err(Error::Unavailable { reason: "away".into() }),
            5 => Ok(v1::RangeChecksumResponse { index, spans: vec![span.clone()], descriptor: None }),
            _ => Ok(v1::RangeChecksumResponse { index, ..Default::default() }),
        };
        let answers = (1..).zip(indexes.iter().map(|index| answer(*index))).collect();
        Gathered { check: CheckStarted { check_id: 1, index: 5 }, descriptor: v1::RangeDescriptor::default(), answers }
    }

    #[test]
    fn a_replica_past_the_check_is_worth_another_one_and_never_a_difference() {
        for (indexes, overtaken, problem) in
            [([5, 5, 5], false, ""), ([5, 0, 5], false, "away"), ([5, 9, 5], true, "to index 9, past 5")]
        {
            let gathered = gathered(&indexes);
            assert_eq!(gathered.is_overtaken(), overtaken, "{indexes:?}");
            let answer = gathered.compare();
            assert!(answer.difference.is_none() && answer.replicas[1].problem.contains(problem), "{answer:?}");
            assert_eq!(answer.replicas[1].problem.is_empty(), problem.is_empty(), "{answer:?}");
        }
    }
}
