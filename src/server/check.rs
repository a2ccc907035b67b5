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
    let descriptor = node.descriptor(range).ok_or(Error::RangeNotFound { range })?;
    let nodes = node.nodes();
    let mut gathering = JoinSet::new();
    for replica in &descriptor.replicas {
        let (own, id, check_id) = (node.clone(), replica.node_id, started.check_id);
        let address = nodes.iter().find(|of| of.node_id == id).map(|of| of.client_addr.clone()).unwrap_or_default();
        gathering.spawn(async move {
            let spans = if id == own.node_id().0 {
                own.checksums(range, check_id, timeout).await
            } else {
                elsewhere(NodeId(id), address, range, check_id, timeout).await
            };
            (id, spans)
        });
    }
    let mut answers = gathering.join_all().await;
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
    Ok(v1::CheckRangeResponse { index: started.index, replicas, difference })
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
