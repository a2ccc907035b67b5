//! What a node does not start with, and that it says why.

use std::net::TcpListener;

use flotilla_engine::config::ReadMode;
use flotilla_node::{Node, NodeConfig, StartError};
use flotilla_proto::NodeId;
use flotilla_store::{Identity, StoreDirectory};
use tokio::runtime::Handle;

use crate::harness::{laid_out, listener, settings};

fn config(directory: &std::path::Path) -> NodeConfig {
    let listener = listener();
    let address = listener.local_addr().expect("it is bound").to_string();
    let mut config = NodeConfig::new(directory.join("data"), NodeId(1), Handle::current(), listener);
    config.birth = Some(laid_out("flotilla", NodeId(1), &[(NodeId(1), address)], 2, 1));
    config.engine = settings(ReadMode::Lease);
    config.memory_bytes = 32 << 20;
    config.ballast_bytes = Some(1 << 20);
    config
}

async fn start(config: NodeConfig) -> Result<Node, StartError> {
    tokio::task::spawn_blocking(|| Node::start(config)).await.expect("it does not panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_made_once_and_resumes_from_then_on() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let node = start(config(directory.path())).await.expect("it starts");
    assert!(node.was_bootstrapped());
    let id = node.cluster_id();
    node.stop().await.expect("nothing had failed");
    drop(node);
    // At another address, and without a birth: the directory knows.
    let mut resumed = config(directory.path());
    resumed.birth = None;
    let node = start(resumed).await.expect("it resumes");
    assert!(!node.was_bootstrapped());
    assert_eq!(node.cluster_id(), id);
    assert_eq!(node.own_routes().len(), 2);

    let error = start(config(directory.path())).await.expect_err("it is in use");
    assert!(error.to_string().contains("in use by another process"), "{error}");
    node.stop().await.expect("nothing had failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_that_was_cut_off_is_repeated_or_said_to_be_unfinished() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut cut_off = config(directory.path());
    let birth = cut_off.birth.clone().expect("it is to be made");
    let identity = Identity::new(birth.identity.cluster_id, NodeId(1));
    drop(StoreDirectory::create(&cut_off.data_dir, identity, 0).expect("it is made"));
    cut_off.birth = None;
    let error = start(cut_off).await.expect_err("there is nothing in it");
    assert!(error.to_string().contains("was never finished") && error.to_string().contains("Empty"), "{error}");
    let mut again = config(directory.path());
    again.birth = Some(birth.clone());
    let node = start(again).await.expect("what it is made with is said again");
    assert_eq!(node.cluster_id(), birth.identity.cluster_id);
    node.stop().await.expect("nothing had failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_peoples_directories_and_wrong_settings_are_refused_in_words() {
    type Change = fn(&mut NodeConfig);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let changes_before: [(Change, &str); 5] = [
        (|config| config.birth = None, "holds no store, and none was to be made"),
        (|config| config.node_id = NodeId(2), "the new store is that of node 1 in cluster \"flotilla\""),
        (|config| config.cluster_name = "other".into(), "the new store is that of node 1 in cluster \"flotilla\""),
        (|config| config.engine.election_ticks = 1, "election"),
        (|config| config.peer_listener = TcpListener::bind("0.0.0.0:0").expect("a free port"), "--tls-cert"),
    ];
    for (change, words) in changes_before {
        let mut wrong = config(directory.path());
        change(&mut wrong);
        let error = start(wrong).await.expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
        assert!(!directory.path().join("data").exists(), "nothing was made");
    }
    let node = start(config(directory.path())).await.expect("it starts");
    node.stop().await.expect("nothing had failed");
    drop(node);
    let changes_after: [(Change, &str); 2] = [
        (|config| config.node_id = NodeId(2), "belongs to node 1"),
        (|config| config.cluster_name = "other".into(), "belongs to cluster \"flotilla\""),
    ];
    for (change, words) in changes_after {
        let mut wrong = config(directory.path());
        change(&mut wrong);
        let error = start(wrong).await.expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    }
}
