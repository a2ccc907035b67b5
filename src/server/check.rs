//! `range check`: lets every replica compute its checksums at one index, gathers them, and compares.

use std::time::Duration;

use flotilla_engine::checksum;
use flotilla_node::Node;
use flotilla_proto::{Error, NodeId, RangeId, Result, v1};
use flotilla_router::{Client, ClientConfig};
use tokio::task::JoinSet;

/// Checks a range that this node leads.
pub(super) async fn run(node: &Node, range: RangeId, timeout: Duration) -> Result<v1::CheckRangeResponse> {
    let started = node.check(range, timeout).await?;
    // Whose checksums are asked for, and of which keys, is what the range was at that index: it may have changed since.
    let own = node.checksums(range, started.check_id, timeout).await?;
    let descriptor = own.descriptor.clone().ok_or(Error::RangeNotFound { range })?;
    let mut answers = gather(node, &descriptor, started.check_id, timeout).await;
    answers.push((node.node_id().0, Ok(own)));
    answers.sort_by_key(|(id, _)| *id);
    let mut replicas = Vec::new();
    let mut compared = Vec::new();
    for (node_id, answer) in answers {
        let mut replica = v1::CheckedReplica { node_id, ..Default::default() };
        match answer {
            Ok(answer) if answer.index == started.index => {
                (replica.records, replica.checksum) = checksum::total(&answer.spans);
                compared.push((node_id, answer.spans));
            }
            Ok(answer) => replica.problem = format!("it checked index {}, not {}", answer.index, started.index),
            Err(error) => replica.problem = error.to_string(),
        }
        replicas.push(replica);
    }
    let difference = checksum::first_difference(&descriptor, &compared);
    Ok(v1::CheckRangeResponse { index: started.index, replicas, difference, descriptor: Some(descriptor) })
}

/// What the replicas on other nodes have.
async fn gather(
    node: &Node,
    descriptor: &v1::RangeDescriptor,
    check_id: u64,
    timeout: Duration,
) -> Vec<(u64, Result<v1::RangeChecksumResponse>)> {
    let (range, nodes) = (RangeId(descriptor.range_id), node.nodes());
    let mut gathering = JoinSet::new();
    for id in descriptor.replicas.iter().map(|replica| replica.node_id).filter(|id| *id != node.node_id().0) {
        let address = nodes.iter().find(|of| of.node_id == id).map(|of| of.client_addr.clone()).unwrap_or_default();
        gathering.spawn(async move { (id, elsewhere(NodeId(id), address, range, check_id, timeout).await) });
    }
    gathering.join_all().await
}

async fn elsewhere(
    node: NodeId,
    address: String,
    range: RangeId,
    check_id: u64,
    timeout: Duration,
) -> Result<v1::RangeChecksumResponse> {
    if address.is_empty() {
        return Err(Error::Unavailable { reason: format!("the address of node {} is not known", node.0) });
    }
    let client = Client::connect([address], ClientConfig::default()).await?.with_timeout(timeout);
    client.range_checksum(node, range, check_id).await
}
