//! Three nodes under mutual TLS: they serve, and go on while a certificate is replaced.

use std::time::Duration;

use flotilla_router::{Client, ClientConfig};

use super::Certificates;
use crate::support::cluster::Cluster;
use crate::support::{eventually, runtime};

#[test]
fn three_nodes_serve_and_take_up_a_new_certificate_while_they_run() {
    let certificates = Certificates::new();
    certificates.make(&["client", "--name", "alice"]).exits(0);
    let mut cluster = Cluster::new(3);
    for id in 1..=3 {
        certificates.node(id);
        certificates.give(&mut cluster, id, &format!("node-{id}"));
    }
    // The third one comes before the second: a node is the one that its certificate names, in whatever order they join.
    for id in [1, 3, 2] {
        cluster.start(id);
        cluster.wait_initialised(id);
    }
    (1..=3).for_each(|id| cluster.wait_node(id));
    let alice = |id: u64, words: &[&str]| certificates.at("client-alice", &cluster.node(id).client, words);
    eventually("three replicas of each range, and nothing to tell", || {
        let status = alice(1, &["status", "--check"]);
        status.code == 0 && status.text().contains("3 nodes up") && status.text().contains("3 replicas each")
    });
    for id in 1..=3 {
        alice(id, &["kv", "put", &format!("key-{id}"), "value"]).exits(0);
    }
    for id in 1..=3 {
        for key in 1..=3 {
            assert_eq!(alice(id, &["kv", "get", &format!("key-{key}")]).exits(0).text().trim_end(), "value");
        }
    }
    // Which node is which went by the certificates.
    let listed = alice(2, &["node", "list", "--output", "json"]).exits(0).json().to_string();
    assert!((1..=3).all(|id| listed.contains(&cluster.node(id).peer)), "{listed}");
    reload(&certificates, &cluster);
}

/// A client's connection goes on, new ones see the new certificate: it is for another host, which tells the two apart.
fn reload(certificates: &Certificates, cluster: &Cluster) {
    let (runtime, node) = (runtime(), &cluster.node(1).client);
    let tls = certificates.load("client-alice");
    let config = ClientConfig { timeout: Duration::from_secs(20), tls: Some(tls), ..ClientConfig::default() };
    let client = runtime.block_on(Client::connect([node.clone()], config)).expect("node 1 runs");
    runtime.block_on(client.get("key-1")).expect("it serves");
    certificates.make(&["node", "--id", "1", "--host", "localhost", "--overwrite"]).exits(0);
    cluster.signal(1, libc::SIGHUP);
    eventually("new connections to see the new certificate", || {
        let ran = certificates.at("client-alice", node, &["kv", "get", "key-1", "--timeout", "2s"]);
        ran.code == 1 && ran.stderr.contains("is for localhost, and not for 127.0.0.1")
    });
    runtime.block_on(client.get("key-1")).expect("the connection goes on");
    let port = node.rsplit_once(':').expect("host and port").1;
    certificates.at("client-alice", &format!("localhost:{port}"), &["range", "list"]).exits(0);
    // Without any signal it is found out by looking.
    certificates.make(&["node", "--id", "1", "--host", "127.0.0.1,localhost", "--overwrite"]).exits(0);
    eventually("the files to be looked at", || {
        certificates.at("client-alice", node, &["kv", "get", "key-1", "--timeout", "2s"]).code == 0
    });
    std::fs::write(certificates.path("node-1.crt"), "nonsense").expect("written");
    cluster.signal(1, libc::SIGHUP);
    eventually("a bad one to be told of", || {
        cluster.log(1).contains("the certificates were not reloaded, the old ones stay")
    });
    certificates.at("client-alice", node, &["kv", "get", "key-1"]).exits(0);
}
