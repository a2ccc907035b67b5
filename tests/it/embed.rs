//! Nodes inside of this process.

use crate::support::runtime;

#[test]
fn one_node_keeps_its_data_over_a_restart() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let runtime = runtime();
    for round in 1..=2 {
        runtime.block_on(async {
            let node = flotilla::Node::builder().data(directory.path().join("data")).start().await.expect("it starts");
            let client = node.client().await.expect("it serves");
            if round == 1 {
                client.put("greeting", "hello").await.expect("it writes");
            }
            let record = client.get("greeting").await.expect("it reads").expect("it is there");
            assert_eq!(&record.value[..], b"hello");
            node.stop().await.expect("it stops");
        });
    }
}

#[test]
fn three_nodes_go_on_without_one_and_take_it_back() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    runtime().block_on(async {
        let mut cluster = flotilla::Cluster::start(directory.path(), 3).await.expect("it starts");
        let client = cluster.client().await.expect("it serves");
        for number in 0..100 {
            client.put(format!("{number}"), "before").await.expect("it writes");
        }
        cluster.stop_node(2).await.expect("it stops");
        for number in 0..100 {
            client.put(format!("{number}"), "after").await.expect("two nodes are a majority");
        }
        cluster.start_node(2).await.expect("it starts again");
        for number in 0..100 {
            let record = client.get(format!("{number}")).await.expect("it reads").expect("it is there");
            assert_eq!(&record.value[..], b"after");
        }
        cluster.stop().await.expect("it stops");
    });
}
