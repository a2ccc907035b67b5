//! Who is let in at a port under TLS, and what each may call there.

use bytes::Bytes;
use flotilla_node::transport::frame::Frame;
use flotilla_proto::codec::BytesCodec;
use flotilla_proto::{Error, NodeId, v1};
use flotilla_tls::Connector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::{Certificates, loopback, one_node, sign_node, year};
use crate::support::cli::{at, run};
use crate::support::cluster::{Cluster, binary};
use crate::support::runtime;

async fn connect(certificates: &Certificates, name: &str, address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address");
    let connector = Connector::new(certificates.load(name));
    endpoint.connect_with_connector(connector).await.expect("the handshake goes well")
}

#[test]
fn who_comes_without_a_certificate_or_with_a_wrong_one_is_told() {
    let (certificates, cluster) = one_node();
    let node = &cluster.node(1).client;
    let get = ["kv", "get", "k", "--timeout", "3s"];
    certificates.at("client-alice", node, &["kv", "put", "k", "v"]).exits(0);

    let ca = certificates.path("ca.crt");
    run(binary().args(["--addr", node, "--tls-ca", &ca]).args(get), None).fails(1, &["give --tls-cert and --tls-key"]);
    at(node, &get).fails(1, &["this port speaks TLS"]);
    at(&cluster.node(1).http, &[&get[..], &["--tls-ca", &ca]].concat()).fails(1, &["does not speak TLS"]);

    let stranger = Certificates::new();
    stranger.make(&["client", "--name", "alice"]).exits(0);
    stranger.at("client-alice", node, &get).fails(1, &["signed by another CA than the one in --tls-ca"]);
    // It trusts the node, but the node does not trust it.
    std::fs::copy(&ca, stranger.path("theirs.crt")).expect("copied");
    let both = ["ca.crt", "theirs.crt"].map(|name| std::fs::read_to_string(stranger.path(name)).expect("there"));
    std::fs::write(stranger.path("ca.crt"), both.concat()).expect("written");
    stranger.at("client-alice", node, &get).fails(1, &["signed by another CA than the node's"]);

    let other = certificates.ca().sign_client("other", "alice", year()).expect("signed");
    certificates.keep("foreign", &other);
    certificates.at("foreign", node, &get).fails(1, &["cluster \"test\"", "cluster \"other\""]);
}

#[test]
fn a_client_calls_nothing_that_is_for_nodes_and_a_node_speaks_for_itself_alone() {
    let (certificates, cluster) = one_node();
    sign_node(&certificates, "node-2", "test", 2);
    sign_node(&certificates, "foreign", "other", 2);
    let node = cluster.node(1).client.clone();
    runtime().block_on(async {
        let report = async |name: &str| {
            let channel = connect(&certificates, name, &node).await;
            let mut placement = v1::placement_client::PlacementClient::new(channel);
            let node = Some(v1::NodeInfo { node_id: 3, ..Default::default() });
            let request = v1::ReportRequest { node, ..Default::default() };
            placement.report(request).await.map(drop).expect_err("refused")
        };
        let refused = report("client-alice").await;
        let told = flotilla_proto::error::from_status(&refused).expect("with its reason");
        assert!(matches!(told, Error::AccessDenied { .. }) && refused.code() == Code::PermissionDenied, "{refused:?}");
        assert!(refused.message().contains("Placement.Report is for nodes"), "{refused:?}");
        let refused = report("node-2").await;
        assert!(refused.message().contains("a report of node 3 comes with the certificate of node 2"), "{refused:?}");
    });
    // A connection to a node of another cluster does not come about; here the node's side is asked alone.
    let (status, _) = runtime().block_on(knock(&certificates, "client-alice", &cluster, 2));
    assert!(status.message().contains("Peer.Raft is for nodes"), "{status:?}");
}

#[test]
fn another_nodes_certificate_is_refused_at_the_peer_port() {
    let (certificates, cluster) = one_node();
    sign_node(&certificates, "node-2", "test", 2);
    let (status, cluster_id) = runtime().block_on(knock(&certificates, "node-2", &cluster, 3));
    assert!(status.message().contains("says that it is node 3, and its certificate is that of node 2"), "{status:?}");
    assert_ne!(cluster_id, 0);
    // With its own it comes further: it is no member yet.
    let (status, _) = runtime().block_on(knock(&certificates, "node-2", &cluster, 2));
    assert!(status.message().contains("is not a member"), "{status:?}");
}

/// Comes to node 1's peer port with a certificate, and says that it is node `says`: how that ends.
async fn knock(certificates: &Certificates, name: &str, cluster: &Cluster, says: u64) -> (Status, u64) {
    let mut admin =
        v1::admin_client::AdminClient::new(connect(certificates, "client-alice", &cluster.node(1).client).await);
    let cluster_id = admin.node_status(v1::NodeStatusRequest {}).await.expect("it serves").into_inner().cluster_id;
    let hello = v1::Hello {
        cluster_id,
        node_id: says,
        protocol_min: 1,
        protocol_max: 1,
        to_node_id: 1,
        store_id: 7,
        ..Default::default()
    };
    let frames: Vec<Bytes> = vec![Frame::Hello(Box::new(hello)).encode()];
    let mut client = tonic::client::Grpc::new(connect(certificates, name, &cluster.node(1).peer).await);
    client.ready().await.expect("it is ready");
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/flotilla.v1.Peer/Raft");
    let answered = client.streaming(Request::new(tokio_stream::iter(frames)), path, BytesCodec).await;
    let status = match answered {
        Ok(answers) => answers.into_inner().message().await.expect_err("it ends with a reason"),
        Err(status) => status,
    };
    (status, cluster_id)
}

#[test]
fn a_node_joins_as_the_one_that_its_certificate_names_or_not_at_all() {
    let (certificates, mut cluster) = one_node();
    let second = cluster.add();
    // Taken: node 1 has another store.
    certificates.give(&mut cluster, second, "node-1");
    let taken = crate::support::cli::run_until_refused(&mut cluster.command(second));
    taken.fails(1, &["node 1 is in the cluster already", "flotilla cert node --id 2"]);
    assert!(!cluster.node(second).data.join("IDENTITY").exists(), "nothing was made");
    // Of another cluster, by the same CA: it would not even start for this one.
    sign_node(&certificates, "foreign", "other", 2);
    certificates.give(&mut cluster, second, "foreign");
    crate::support::cli::run_until_refused(&mut cluster.command(second)).fails(2, &["tls-cert", "cluster \"other\""]);
    // Its own: then another one's is refused at the next start.
    sign_node(&certificates, "node-5", "test", 5);
    certificates.give(&mut cluster, second, "node-5");
    cluster.start(second);
    cluster.wait_initialised(second);
    cluster.wait_node(second);
    let listed = certificates.at("client-alice", &cluster.node(1).client, &["node", "show", "5"]).exits(0);
    assert!(listed.text().contains(&cluster.node(second).peer), "{}", listed.text());
    cluster.kill(second);
    certificates.node(2);
    certificates.give(&mut cluster, second, "node-2");
    let other = crate::support::cli::run_until_refused(&mut cluster.command(second));
    other.fails(1, &["this is node 5", "the certificate is that of node 2"]);
}

#[test]
fn without_client_auth_anybody_reads_and_writes_and_nobody_is_a_node() {
    let certificates = Certificates::new();
    certificates.node(1);
    let mut cluster = Cluster::new(1);
    certificates.give(&mut cluster, 1, "node-1");
    cluster.set_args(&["--client-auth", "none"]);
    cluster.start(1);
    cluster.wait_node(1);
    let node = &cluster.node(1).client;
    let ca = certificates.path("ca.crt");
    let anonymous = |words: &[&str]| run(binary().args(["--addr", node, "--tls-ca", &ca]).args(words), None);
    anonymous(&["kv", "put", "k", "v"]).exits(0);
    assert_eq!(anonymous(&["kv", "get", "k"]).exits(0).text().trim_end(), "v");
    // At the peer port a certificate is needed all the same.
    let peer = &cluster.node(1).peer;
    run(binary().args(["--addr", peer, "--tls-ca", &ca, "kv", "get", "k", "--timeout", "3s"]), None)
        .fails(1, &["give --tls-cert and --tls-key"]);
    // One that is over is refused before it is sent.
    let over = certificates.ca().sign_node("test", NodeId(1), &loopback(), flotilla_tls::issue::Validity::over());
    certificates.keep("over", &over.expect("signed"));
    certificates.at("over", node, &["kv", "get", "k"]).fails(2, &["--tls-cert", "has expired"]);
}

#[test]
fn a_caller_that_says_nothing_or_half_a_handshake_is_let_go_and_holds_nobody_up() {
    use std::io::{Read, Write};
    let (certificates, cluster) = one_node();
    let node = cluster.node(1);
    let callers: Vec<std::net::TcpStream> = [(&node.client, &b""[..]), (&node.client, &[22, 3, 1]), (&node.peer, b"")]
        .into_iter()
        .map(|(address, bytes)| {
            let mut caller = std::net::TcpStream::connect(address).expect("it listens");
            caller.set_read_timeout(Some(crate::support::PATIENCE)).expect("a time-out");
            caller.write_all(bytes).expect("sent");
            caller
        })
        .collect();
    certificates.at("client-alice", &node.client, &["kv", "put", "k", "v"]).exits(0);
    for mut caller in callers {
        // Closed or reset; a time-out of this side would mean that it is still let stay.
        let end = caller.read_to_end(&mut Vec::new());
        let waited = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
        assert!(!end.as_ref().is_err_and(waited), "{end:?}");
    }
}
