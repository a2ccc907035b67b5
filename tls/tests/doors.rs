//! Certificates as they are made, checked, shown, refused and replaced: over real connections on loopback.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flotilla_proto::NodeId;
use flotilla_tls::issue::{Ca, Issued, Validity};
use flotilla_tls::{Accepted, ClientAuth, Connector, Files, Identity, Port, Role, Shown, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);

/// A directory with a CA of cluster "prod", and what it signs.
struct World {
    directory: tempfile::TempDir,
    ca: Ca,
}

fn year() -> Validity {
    Validity::of(Duration::from_secs(365 * 86_400))
}

fn hosts() -> Vec<String> {
    vec!["127.0.0.1".into(), "localhost".into()]
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let made = Ca::make("prod", year()).expect("a CA");
        std::fs::write(directory.path().join("ca.crt"), &made.certificate).expect("written");
        let ca = Ca::load(&made.certificate, &made.key).expect("its own");
        Self { directory, ca }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn keep(&self, name: &str, issued: &Issued) -> Files {
        let (certificate, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        std::fs::write(&certificate, &issued.certificate).expect("written");
        std::fs::write(&key, &issued.key).expect("written");
        Files { ca: self.path("ca.crt"), own: Some((certificate, key)) }
    }

    fn node(&self, id: u64) -> Files {
        self.node_of("prod", id, &hosts())
    }

    fn node_of(&self, cluster: &str, id: u64, hosts: &[String]) -> Files {
        let issued = self.ca.sign_node(cluster, NodeId(id), hosts, year()).expect("signed");
        self.keep(&format!("{cluster}-node-{id}"), &issued)
    }

    fn client(&self, name: &str) -> Files {
        self.keep(name, &self.ca.sign_client("prod", name, year()).expect("signed"))
    }

    fn anonymous(&self) -> Files {
        Files { ca: self.path("ca.crt"), own: None }
    }
}

fn load(files: Files) -> Arc<Tls> {
    Arc::new(Tls::load(files).expect("they fit together"))
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

async fn accept(port: &Port, listener: &TcpListener) -> Accepted {
    let (stream, _) = timeout(DEADLINE, listener.accept()).await.expect("in time").expect("accepted");
    port.accept(stream)
}

/// One byte there and one back: what the accepting side has been shown, or why the connection did not come about.
async fn meet(server: &Arc<Tls>, auth: ClientAuth, client: Connector, host: &str) -> Result<String, String> {
    let (listener, number) = listen().await;
    let port = Port::new(Arc::clone(server), auth);
    let calling = async {
        let mut stream = client.connect(host, number).await?;
        stream.write_all(b"?").await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map(drop)
    };
    let answering = async {
        let mut stream = accept(&port, &listener).await;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        stream.write_all(b"!").await?;
        stream.shutdown().await?;
        Ok::<_, std::io::Error>(match stream.guest().shown() {
            Shown::Identity(identity) => identity.to_string(),
            other => format!("{other:?}"),
        })
    };
    let (called, answered) = timeout(DEADLINE, async { tokio::join!(calling, answering) }).await.expect("in time");
    match called {
        Err(error) => Err(error.to_string()),
        Ok(()) => answered.map_err(|error| format!("the other side: {error}")),
    }
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let world = World::new();
    let server = load(world.node(1));
    let to = |files: Files| Connector::new(load(files));
    for (client, auth, shown) in [
        (to(world.node(2)), ClientAuth::Require, "flotilla://prod/node/2"),
        (to(world.client("alice")), ClientAuth::Require, "flotilla://prod/client/alice"),
        (to(world.client("alice")), ClientAuth::None, "flotilla://prod/client/alice"),
        (to(world.anonymous()), ClientAuth::None, "Anonymous"),
        (Connector::to_node(load(world.node(2)), NodeId(1)), ClientAuth::Require, "flotilla://prod/node/2"),
    ] {
        assert_eq!(meet(&server, auth, client, "127.0.0.1").await.as_deref(), Ok(shown));
    }
    assert_eq!(server.identity(), Some(Identity { cluster: "prod".into(), role: Role::Node(NodeId(1)) }));
}

#[tokio::test]
async fn who_does_not_belong_is_refused_in_words() {
    let (world, stranger) = (World::new(), World::new());
    let server = load(world.node(1));
    let node_2 = || load(world.node(2));
    let cases: Vec<(&str, Arc<Tls>, ClientAuth, Connector, &str)> = vec![
        (
            "no certificate",
            Arc::clone(&server),
            ClientAuth::Require,
            Connector::new(load(world.anonymous())),
            "give --tls-cert and --tls-key",
        ),
        (
            "another CA, at the caller",
            Arc::clone(&server),
            ClientAuth::Require,
            Connector::new(load(stranger.anonymous())),
            "another CA than the one in --tls-ca",
        ),
        (
            "another node",
            Arc::clone(&server),
            ClientAuth::Require,
            Connector::to_node(node_2(), NodeId(3)),
            "node 1 of cluster \"prod\" answers where node 3 was expected",
        ),
        (
            "another cluster of the same CA",
            load(world.node_of("test", 1, &hosts())),
            ClientAuth::Require,
            Connector::new(node_2()),
            "node 1 of cluster \"test\" answers there, and this is node 2 of cluster \"prod\"",
        ),
        (
            "another host",
            load(world.node_of("prod", 4, &["db9".into()])),
            ClientAuth::Require,
            Connector::new(node_2()),
            "is for db9, and not for 127.0.0.1",
        ),
    ];
    for (what, server, auth, client, words) in cases {
        let error = meet(&server, auth, client, "127.0.0.1").await.expect_err(what);
        assert!(error.contains(words), "{what}: {error}");
    }
    // A client that stands in for a node: its certificate is for the calling end alone.
    let impostor = load(world.client("mallory"));
    let error = meet(&impostor, ClientAuth::Require, Connector::new(node_2()), "127.0.0.1").await.expect_err("no node");
    assert!(error.contains("certificate"), "{error}");
}

/// The caller trusts the node's CA, but comes with a certificate of another one.
#[tokio::test]
async fn a_caller_of_another_ca_is_told() {
    let (world, stranger) = (World::new(), World::new());
    let files = stranger.node(2);
    let both = format!(
        "{}{}",
        std::fs::read_to_string(world.path("ca.crt")).expect("there"),
        std::fs::read_to_string(stranger.path("ca.crt")).expect("there")
    );
    std::fs::write(stranger.path("both.crt"), both).expect("written");
    let client = Connector::new(load(Files { ca: stranger.path("both.crt"), ..files }));
    let error = meet(&load(world.node(1)), ClientAuth::Require, client, "127.0.0.1").await.expect_err("another CA");
    assert!(error.contains("signed by another CA than the node's"), "{error}");
}

#[test]
fn files_that_cannot_be_used_are_refused_in_words() {
    let (world, stranger) = (World::new(), World::new());
    let good = world.node(1);
    let (certificate, key) = good.own.clone().expect("both");
    let missing = world.path("nowhere.key");
    std::fs::write(world.path("empty"), "").expect("written");
    let over = world.ca.sign_node("prod", NodeId(1), &hosts(), Validity::over()).expect("signed");
    let own =
        |certificate: &Path, key: &Path| Files { ca: good.ca.clone(), own: Some((certificate.into(), key.into())) };
    let (_, other_key) = world.node(2).own.expect("both");
    for (files, setting, words) in [
        (own(&certificate, &missing), "tls-key", "there is no such file"),
        (own(&missing, &key), "tls-cert", "there is no such file"),
        (Files { ca: missing.clone(), own: None }, "tls-ca", "there is no such file"),
        (Files { ca: world.path("empty"), own: None }, "tls-ca", "holds no certificate"),
        (own(&certificate, &certificate), "tls-key", "holds no private key"),
        (own(&certificate, &other_key), "tls-key", "is not the key of the certificate"),
        (Files { ca: stranger.path("ca.crt"), ..good.clone() }, "tls-cert", "was not signed by the CA in"),
        (world.keep("over", &over), "tls-cert", "has expired"),
        (own(&world.path("ca.crt"), &key), "tls-cert", "it cannot be used"),
    ] {
        let error = Tls::load(files).map(|_| ()).expect_err(words);
        assert!(error.setting == setting && error.what.contains(words), "{words}: {error}");
    }
}

#[tokio::test]
async fn new_files_are_taken_up_and_bad_ones_are_not() {
    let world = World::new();
    let server = load(world.node(1));
    let to_db9 = || Connector::new(load(world.node(2)));
    assert_eq!(server.reload_if_changed(), Ok(false));
    // The same node, for another host: what new connections see tells the two apart.
    let (certificate, _) = world.node_of("prod", 1, &["db9".into()]).own.expect("both");
    assert_eq!(server.reload_if_changed(), Ok(true));
    let error = meet(&server, ClientAuth::Require, to_db9(), "127.0.0.1").await.expect_err("it is new");
    assert!(error.contains("is for db9"), "{error}");

    world.node(1);
    assert_eq!(server.reload_if_changed(), Ok(true));
    std::fs::write(&certificate, "nonsense").expect("written");
    let error = server.reload_if_changed().expect_err("nonsense");
    assert!(error.what.contains("holds no certificate"), "{error}");
    assert_eq!(server.reload_if_changed(), Ok(false), "it is told once");
    assert!(meet(&server, ClientAuth::Require, to_db9(), "127.0.0.1").await.is_ok(), "the old one stays");

    let other = world.ca.sign_node("prod", NodeId(3), &hosts(), year()).expect("signed");
    world.keep("prod-node-1", &other);
    let error = server.reload_if_changed().expect_err("another node's");
    assert!(error.what.contains("that of node 3") && error.what.contains("this is node 1"), "{error}");
}

#[tokio::test]
async fn a_connection_goes_on_with_what_it_began_with() {
    let world = World::new();
    let server = load(world.node(1));
    let (listener, number) = listen().await;
    let port = Port::new(Arc::clone(&server), ClientAuth::Require);
    let client = Connector::new(load(world.node(2)));
    let (stream, accepted) = tokio::join!(client.connect("localhost", number), async {
        let mut accepted = accept(&port, &listener).await;
        let mut byte = [0];
        // The handshake is a part of the first read, which ends when a byte comes.
        let _ = timeout(Duration::from_millis(200), accepted.read_exact(&mut byte)).await;
        accepted
    });
    let (mut stream, mut accepted) = (stream.expect("connected"), accepted);
    world.node_of("prod", 1, &["db9".into()]);
    server.reload().expect("they fit");
    stream.write_all(b"x").await.expect("sent");
    let mut byte = [0];
    timeout(DEADLINE, accepted.read_exact(&mut byte)).await.expect("in time").expect("it goes on");
    assert_eq!(&byte, b"x");
}

#[tokio::test]
async fn plain_text_and_tls_tell_each_other_apart() {
    let world = World::new();
    let port = Port::new(load(world.node(1)), ClientAuth::None);
    let (listener, number) = listen().await;
    let calling = async {
        let mut stream = TcpStream::connect(("127.0.0.1", number)).await.expect("it listens");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer, and the end");
        answer
    };
    let turning = async {
        let mut accepted = accept(&port, &listener).await;
        accepted.read_exact(&mut [0]).await.expect_err("nothing is let in")
    };
    let (answer, _) = timeout(DEADLINE, async { tokio::join!(calling, turning) }).await.expect("in time");
    assert!(String::from_utf8_lossy(&answer).contains("this port speaks TLS"), "{answer:?}");

    let connector = Connector::new(load(world.anonymous()));
    let answering = async {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        // What an HTTP/2 server says first, whatever comes.
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("sent");
        stream
    };
    let (called, _stream) =
        timeout(DEADLINE, async { tokio::join!(connector.connect("127.0.0.1", number), answering) })
            .await
            .expect("in time");
    let error = called.map(|_| ()).expect_err("no TLS there").to_string();
    assert!(error.contains("does not speak TLS"), "{error}");
}
