//! Nodes that end at an exact step, by the power-cut shim (tests/powercut/README.md).

use super::cluster::Cluster;
use super::eventually;
use crate::powercut::{PowerCut, Steps};

/// Nodes that serve, and that die where a plan says.
pub fn planned_cluster(nodes: u64, args: &[&str]) -> (Cluster, Steps) {
    let mut cluster = Cluster::new(nodes);
    cluster.set_args(args);
    let steps = Steps::create(&cluster.directory().join("steps")).expect("the test's own directory");
    for id in 1..=nodes {
        cluster.set_environment(id, PowerCut::faults_only(None).steps(&steps).vars());
    }
    cluster.start_all();
    cluster.wait_replicated();
    (cluster, steps)
}

/// The node that did what was planned.
pub async fn claimed(cluster: &Cluster, steps: &Steps, what: &str) -> u64 {
    let mut pid = None;
    while pid.is_none() {
        eventually(what, || {
            pid = steps.claimed().expect("the test's own file");
            pid.is_some()
        });
    }
    let at = cluster.nodes().iter().find(|node| cluster.pid(node.id) == pid);
    at.expect("one of the nodes").id
}
