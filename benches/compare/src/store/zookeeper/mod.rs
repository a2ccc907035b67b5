//! Three processes of ZooKeeper, and their sessions.
//!
//! Key `abcdef` is the node `/k/ab/abcdef`: no parent has many children, and all parents are there before the first key.
//! A put is `setData`, whatever the version; where that finds no node it is followed by `create`, so that a new key takes
//! two requests. A get is `getData`, with a `sync` before it or without. A session is answered in the order in which it
//! asks: a get waits for the puts that other clients of its session have asked for before.

mod connection;
mod wire;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use flotilla_benches::cluster::{Result, free_addresses, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Done, Failed, Session, connections};
use crate::load::workload::ALPHABET;
use connection::Connection;
use wire::{ANY_VERSION, Request};

/// Each server's heap, at most: about what ZooKeeper's own start script gives it.
const HEAP: &str = "-Xmx1g";
/// The classes, in the directory of the peers.
const CLASSES: &str = "zookeeper/*";
/// Above all keys.
const ROOT: &str = "/k";

/// Three servers; they end with it.
pub struct Zookeeper {
    directory: tempfile::TempDir,
    servers: Vec<Child>,
    /// Where clients ask.
    addresses: Vec<String>,
}

/// How sessions are spread, and what a get is.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Over all servers in turn, not to the leader alone.
    pub spread: bool,
    /// Before each get.
    pub sync: bool,
}

impl Zookeeper {
    /// As a package would start it: the times of its sample configuration, and the defaults (each write synced, a snapshot
    /// after some 100,000), but for the limit of 60 connections from one address, and the port for administration.
    pub async fn start(peers: &Path, dir: &Path, count: usize) -> Result<Self> {
        let directory = tempfile::tempdir_in(dir)?;
        let addresses = free_addresses(3 * count)?;
        let (clients, between) = addresses.split_at(count);
        let mut zookeeper = Self { directory, servers: Vec::new(), addresses: clients.to_vec() };
        let ensemble = ensemble(between)?;
        for (id, client) in (1..).zip(clients) {
            let child = zookeeper.spawn(peers, id, client, &ensemble)?;
            zookeeper.servers.push(child);
        }
        let ready = zookeeper.wait_writable().await;
        ready.map_err(|error| format!("{error}; server 1 says:\n{}", zookeeper.said()))?;
        Ok(zookeeper)
    }

    fn spawn(&self, peers: &Path, id: usize, client: &str, ensemble: &str) -> Result<Child> {
        let data = self.directory.path().join(format!("n{id}"));
        fs::create_dir(&data)?;
        fs::write(data.join("myid"), id.to_string())?;
        let file = self.directory.path().join(format!("n{id}.cfg"));
        fs::write(&file, configuration(&data, client, ensemble)?)?;
        let log = File::create(self.directory.path().join(format!("n{id}.log")))?;
        let mut command = Command::new("java");
        command
            .args([HEAP, "-Dzookeeper.forceSync=yes", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
            .arg(peers.join(CLASSES))
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Ok(command.spawn().map_err(|error| format!("java: {error}: install Java, which ZooKeeper runs on"))?)
    }

    /// All servers serve, and the parents of all keys have been written.
    async fn wait_writable(&mut self) -> Result<()> {
        let mut ended = false;
        wait("all servers of ZooKeeper to serve", async || {
            ended = self.servers.iter_mut().any(|server| !matches!(server.try_wait(), Ok(None)));
            ended || self.leader().await.is_ok()
        })
        .await?;
        if ended {
            return Err("a server of ZooKeeper has ended".into());
        }
        wait("ZooKeeper to be written to", async || self.make_parents().await.is_ok()).await
    }

    async fn make_parents(&self) -> Result<()> {
        let connection = Connection::open(self.leader().await?).await?;
        let pairs = ALPHABET.iter().flat_map(|first| ALPHABET.iter().map(|second| [*first, *second]));
        let paths = pairs.map(|pair| format!("{ROOT}/{}{}", char::from(pair[0]), char::from(pair[1])));
        let asked = std::iter::once(ROOT.to_owned()).chain(paths);
        let asked: Vec<_> = asked.map(|path| connection.ask(Request::Create { path: &path, data: b"" })).collect();
        for answer in asked {
            let error = answer.await?.error;
            if error != wire::OK && error != wire::NODE_EXISTS {
                return Err(failed("create", error).into());
            }
        }
        Ok(())
    }

    /// The end of the first server's log.
    fn said(&self) -> String {
        let log = fs::read_to_string(self.directory.path().join("n1.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    pub fn processes(&self) -> Vec<u32> {
        self.servers.iter().map(Child::id).collect()
    }

    /// Where the leader is reached; an error as long as a server does not serve.
    async fn leader(&self) -> Result<&str> {
        let mut leader = None;
        for address in &self.addresses {
            if matches!(mode(address).await?.as_str(), "leader" | "standalone") {
                leader = Some(address);
            }
        }
        Ok(leader.ok_or("no server leads")?)
    }

    /// Sessions for so many clients.
    pub async fn sessions(&self, clients: usize, manner: Manner) -> Result<Vec<Nodes>> {
        let leader = self.leader().await?;
        let mut sessions = Vec::new();
        for at in 0..connections(clients) {
            let address = if manner.spread { &self.addresses[at % self.addresses.len()] } else { leader };
            sessions.push(Nodes { connection: Connection::open(address).await?, sync: manner.sync });
        }
        Ok(sessions)
    }
}

impl Drop for Zookeeper {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // Gone already is as good.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// The lines that name all servers: each has an address for the leader's followers and one for elections.
fn ensemble(between: &[String]) -> Result<String> {
    let mut lines = String::new();
    for (id, of_one) in (1..).zip(between.chunks(2)) {
        let [peer, election] = of_one else { return Err("a server without an address for elections".into()) };
        lines.push_str(&format!("server.{id}={peer}:{}\n", port(election)?));
    }
    Ok(lines)
}

fn configuration(data: &Path, client: &str, ensemble: &str) -> Result<String> {
    Ok(format!(
        "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPortAddress=127.0.0.1\nclientPort={}\n\
         maxClientCnxns=0\nadmin.enableServer=false\n{ensemble}",
        data.display(),
        port(client)?
    ))
}

fn port(address: &str) -> Result<&str> {
    Ok(address.rsplit_once(':').ok_or("an address without a port")?.1)
}

/// What a server says that it is: one that serves leads, follows or is alone.
async fn mode(address: &str) -> Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(b"srvr").await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    Ok(mode_in(&text).ok_or("a server that does not serve")?.to_owned())
}

fn mode_in(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("Mode: "))
}

fn failed(what: &str, error: i32) -> Failed {
    Failed(format!("{what}: ZooKeeper's error {error}"))
}

/// The node of a key.
fn path_of(key: &Bytes) -> Done<String> {
    let key =
        std::str::from_utf8(key).ok().filter(|key| key.len() >= 2 && key.bytes().all(|of| ALPHABET.contains(&of)));
    let key = key.ok_or_else(|| Failed("a key for ZooKeeper is letters and digits, two at least".into()))?;
    Ok(format!("{ROOT}/{}/{key}", &key[..2]))
}

/// One session.
#[derive(Clone)]
pub struct Nodes {
    connection: Connection,
    sync: bool,
}

impl Nodes {
    /// How long the value is, and its version.
    async fn read(&self, path: &str) -> Done<Option<(usize, i32)>> {
        // Both are under way at once: the server takes them one after the other.
        let synced = self.sync.then(|| self.connection.ask(Request::Sync { path }));
        let read = self.connection.ask(Request::GetData { path });
        if let Some(synced) = synced {
            let error = synced.await?.error;
            if error != wire::OK {
                return Err(failed("sync", error));
            }
        }
        let reply = read.await?;
        match reply.error {
            wire::OK => reply.data().map(Some).ok_or_else(|| Failed("getData: an answer that cannot be read".into())),
            wire::NO_NODE => Ok(None),
            error => Err(failed("getData", error)),
        }
    }

    /// Whether there was such a node, of such a version.
    async fn set(&self, path: &str, value: &Bytes, version: i32) -> Done<bool> {
        match self.connection.ask(Request::SetData { path, data: value, version }).await?.error {
            wire::OK => Ok(true),
            wire::NO_NODE | wire::BAD_VERSION => Ok(false),
            error => Err(failed("setData", error)),
        }
    }

    /// Whether there was none before.
    async fn create(&self, path: &str, value: &Bytes) -> Done<bool> {
        match self.connection.ask(Request::Create { path, data: value }).await?.error {
            wire::OK => Ok(true),
            wire::NODE_EXISTS => Ok(false),
            error => Err(failed("create", error)),
        }
    }
}

impl Session for Nodes {
    async fn put(&self, key: Bytes, value: Bytes) -> Done<()> {
        let path = path_of(&key)?;
        if self.set(&path, &value, ANY_VERSION).await? || self.create(&path, &value).await? {
            return Ok(());
        }
        // Another client has created it since; nobody deletes.
        match self.set(&path, &value, ANY_VERSION).await? {
            true => Ok(()),
            false => Err(failed("setData", wire::NO_NODE)),
        }
    }

    async fn get(&self, key: Bytes) -> Done<Option<usize>> {
        Ok(self.read(&path_of(&key)?).await?.map(|(length, _)| length))
    }

    async fn scan(&self, _: Bytes, _: u32) -> Done<usize> {
        Err(Failed("ZooKeeper has no scan".into()))
    }

    async fn update(&self, key: Bytes, value: Bytes) -> Done<bool> {
        let path = path_of(&key)?;
        match self.read(&path).await? {
            Some((_, version)) => self.set(&path, &value, version).await,
            None => self.create(&path, &value).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::key;

    #[test]
    fn keys_are_spread_over_parents() {
        assert_eq!(path_of(&Bytes::from_static(b"abcdef")).expect("a key"), "/k/ab/abcdef");
        let path = path_of(&key(7)).expect("a key of a load");
        assert_eq!(path.len(), "/k/ab/".len() + 16);
        for none in [&b"a"[..], b"a/b", b"", b"\xff\xff"] {
            assert!(path_of(&Bytes::from_static(none)).is_err(), "{none:?}");
        }
    }

    #[test]
    fn servers_are_told_of_each_other() {
        let between = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"].map(str::to_owned);
        let ensemble = ensemble(&between).expect("two addresses each");
        assert_eq!(ensemble, "server.1=127.0.0.1:1:2\nserver.2=127.0.0.1:3:4\n");
        let text = configuration(Path::new("/data/n1"), "127.0.0.1:5", &ensemble).expect("an address");
        assert!(text.contains("dataDir=/data/n1\nclientPortAddress=127.0.0.1\nclientPort=5\n"), "{text}");
        assert!(text.ends_with(&ensemble), "{text}");
    }

    #[test]
    fn what_a_server_is_is_read_from_what_it_says() {
        assert_eq!(mode_in("Zxid: 0x0\nMode: follower\nNode count: 5\n"), Some("follower"));
        assert_eq!(mode_in("This ZooKeeper instance is not currently serving requests\n"), None);
    }
}
