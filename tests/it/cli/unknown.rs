//! A write whose outcome nobody knows exits with 3, and says how to find out.

use crate::support::cli::at;
use crate::support::cluster::Cluster;
use crate::support::eventually;

#[test]
fn a_write_that_may_have_happened_exits_with_3() {
    let cluster = Cluster::three();
    let address = |node: u64| cluster.node(node).client.clone();
    let leader = || {
        let show = at(&address(1), &["range", "show", "2", "--output", "json"]).exits(0).json();
        show["leader_node_id"].as_u64().expect("a number")
    };
    at(&address(1), &["kv", "put", "0unknown", "before"]).exits(0);
    let led_by = leader();
    let others: Vec<u64> = (1..=3).filter(|node| *node != led_by).collect();
    // They take what is sent and answer nothing: the leader proposes and hears of no commit.
    for node in &others {
        cluster.signal(*node, libc::SIGSTOP);
    }
    let words = ["kv", "put", "0unknown", "after", "--timeout", "500ms"];
    let lost = at(&address(led_by), &words);
    for node in &others {
        cluster.signal(*node, libc::SIGCONT);
    }
    lost.fails(3, &["error: the outcome is unknown", "hint: read the key"]);
    eventually("all to be well again", || at(&address(1), &["status", "--check"]).code == 0);
    // It was the leader's to propose: it happens now, or its successor drops it.
    let found = at(&address(1), &["kv", "get", "0unknown"]).exits(0).stdout;
    assert!(found == b"before" || found == b"after", "{found:?}");
}
