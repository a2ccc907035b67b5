//! Three (or more) `flotilla start` processes on loopback.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flotilla_proto::v1;
use flotilla_router::{Client, ClientConfig};

use super::ports::free_port;
use super::{eventually, runtime};

/// A cluster of processes; all end with it.
pub struct Cluster {
    directory: tempfile::TempDir,
    nodes: Vec<Process>,
    extra_args: Vec<String>,
}

/// One node.
pub struct Process {
    pub id: u64,
    pub client: String,
    pub peer: String,
    pub http: String,
    pub data: PathBuf,
    /// Where what it logs goes.
    log: PathBuf,
    environment: Vec<(String, String)>,
    /// Instead of the one under test.
    binary: Option<PathBuf>,
    child: Option<Child>,
}

/// The binary's path.
pub const BINARY: &str = env!("CARGO_BIN_EXE_flotilla");

/// The binary under test. Its process ends with the thread that starts it, so that a test program that is killed
/// leaves none behind.
pub fn binary() -> Command {
    binary_at(Path::new(BINARY))
}

/// Another binary, tied in the same way.
fn binary_at(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env_remove("FLOTILLA_ADDR").stdin(Stdio::null());
    end_with_this_thread(&mut command);
    command
}

/// Ties a child to the thread that starts it.
pub fn end_with_this_thread(command: &mut Command) {
    let before_exec = || {
        // SAFETY: prctl with these arguments takes no pointers.
        let done = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: it runs between fork and exec: one system call, nothing is allocated.
    unsafe { command.pre_exec(before_exec) };
}

impl Cluster {
    /// Lays a cluster out; no process runs yet.
    pub fn new(nodes: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let nodes = (1..=nodes).map(|id| Process::laid_out(id, directory.path())).collect();
        Self { directory, nodes, extra_args: Vec::new() }
    }

    /// Lays one more node out; its id.
    pub fn add(&mut self) -> u64 {
        let id = self.nodes.len() as u64 + 1;
        self.nodes.push(Process::laid_out(id, self.directory.path()));
        id
    }

    /// Three nodes, serving.
    pub fn three() -> Self {
        let mut cluster = Self::new(3);
        cluster.start_all();
        cluster
    }

    /// Flags for every node that is started from now on, besides the usual ones or in their place.
    pub fn set_args(&mut self, args: &[&str]) {
        self.extra_args = args.iter().map(|arg| (*arg).to_owned()).collect();
    }

    /// Where everything of it is.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn nodes(&self) -> &[Process] {
        &self.nodes
    }

    pub fn node(&self, id: u64) -> &Process {
        &self.nodes[id as usize - 1]
    }

    /// Puts a node's data below another directory, before its first start. What it logs stays where it was.
    pub fn lay_below(&mut self, id: u64, directory: &Path) {
        self.nodes[id as usize - 1].data = directory.join(format!("node-{id}"));
    }

    /// Environment of a node from its next start on.
    pub fn set_environment(&mut self, id: u64, environment: Vec<(String, String)>) {
        self.nodes[id as usize - 1].environment = environment;
    }

    /// The binary of a node from its next start on; `None`: the one under test.
    pub fn set_binary(&mut self, id: u64, binary: Option<&Path>) {
        self.nodes[id as usize - 1].binary = binary.map(Path::to_path_buf);
    }

    /// Starts all nodes that do not run, and waits until they serve.
    pub fn start_all(&mut self) {
        let new = !self.node(1).data.join("IDENTITY").exists();
        for id in 1..=self.nodes.len() as u64 {
            if self.node(id).child.is_none() {
                self.start(id);
                self.wait_initialised(id);
            }
        }
        self.wait_ready();
        if new {
            self.wait_spread();
        }
    }

    /// Waits until a node's directory says who it is: nodes that join one after the other get their ids in this order.
    pub fn wait_initialised(&mut self, id: u64) {
        let identity = self.node(id).data.join("IDENTITY");
        eventually(&format!("node {id} to have a store"), || {
            assert!(self.is_running(id), "node {id} ended:\n{}", self.log(id));
            identity.exists()
        });
    }

    /// Starts a node, without waiting.
    pub fn start(&mut self, id: u64) {
        let node = self.node(id);
        assert!(node.child.is_none(), "node {id} runs already");
        let log = File::options().create(true).append(true).open(&node.log).expect("a log file");
        let mut command = self.command(id);
        command.stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("the binary starts");
        self.nodes[id as usize - 1].child = Some(child);
    }

    /// What starts a node.
    pub fn command(&self, id: u64) -> Command {
        let node = self.node(id);
        let replicas = self.nodes.len().min(3).to_string();
        let (how, of) = if id == 1 { ("--initial-replicas", &replicas) } else { ("--join", &self.node(1).client) };
        let mut command = node.binary.as_deref().map_or_else(binary, binary_at);
        command.arg("start");
        if id == 1 {
            command.arg("--bootstrap");
        }
        for (flag, value) in [
            ("--initial-ranges", "16"),
            ("--cluster-name", "test"),
            ("--memory-bytes", "33554432"),
            ("--ballast-bytes", "1048576"),
            ("--disk-margin-bytes", "1048576"),
            (how, of),
            ("--client-listen", &node.client),
            ("--peer-listen", &node.peer),
            ("--http-listen", &node.http),
            ("--data", &node.data.display().to_string()),
        ] {
            if !self.extra_args.iter().any(|extra| extra == flag) {
                command.args([flag, value]);
            }
        }
        command.args(&self.extra_args).envs(node.environment.iter().cloned());
        command
    }

    /// Waits until every running node serves all its ranges.
    pub fn wait_ready(&mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].child.is_none() {
                continue;
            }
            self.wait_node(at as u64 + 1);
        }
        self.wait_replicated();
    }

    /// Waits until a node serves.
    pub fn wait_node(&mut self, id: u64) {
        let what = format!("node {id} to be ready; its log:\n{}", self.log(id));
        eventually(&what, || {
            assert!(self.is_running(id), "node {id} ended:\n{}", self.log(id));
            http_get(&self.node(id).http, "/readyz").is_some_and(|(status, _)| status == 200)
        });
    }

    /// Waits until no node leads many more ranges than another: from then on leaders stay where they are.
    fn wait_spread(&self) {
        eventually("leaders to be spread", || {
            let routes = routes(&self.node(1).client).unwrap_or_default();
            let led = |node: &Process| {
                let of = |route: &&v1::RangeStatus| route.leader_node_id == node.id;
                routes.ranges.iter().filter(of).count()
            };
            let led: Vec<usize> = self.nodes.iter().map(led).collect();
            let (least, most) = (led.iter().min().unwrap_or(&0), led.iter().max().unwrap_or(&0));
            *most > 0 && most - least <= 2
        });
    }

    /// Waits until every running node knows every range with all its replicas and a leader that runs.
    pub fn wait_replicated(&mut self) {
        let replicas = self.nodes.len().min(3);
        let up: Vec<(u64, String)> =
            self.nodes.iter().filter(|node| node.child.is_some()).map(|node| (node.id, node.client.clone())).collect();
        if up.len() * 2 <= replicas {
            return;
        }
        let whole = |routes: &v1::ListRangesResponse| {
            let whole = |route: &v1::RangeStatus| {
                let voter = |of: &&v1::ReplicaDescriptor| of.role() == v1::ReplicaRole::Voter;
                let voters = route.descriptor.iter().flat_map(|range| &range.replicas).filter(voter).count();
                voters >= replicas && up.iter().any(|(id, _)| *id == route.leader_node_id)
            };
            !routes.ranges.is_empty() && routes.ranges.iter().all(whole)
        };
        eventually("every range to have its replicas", || {
            up.iter().all(|(_, address)| routes(address).is_some_and(|routes| whole(&routes)))
        });
    }

    /// Ends a node at once.
    pub fn kill(&mut self, id: u64) {
        if let Some(mut child) = self.nodes[id as usize - 1].child.take() {
            child.kill().expect("the child is ours");
            child.wait().expect("the child is ours");
        }
    }

    /// Ends a node in order; its exit code.
    pub fn terminate(&mut self, id: u64) -> Option<i32> {
        let mut child = self.nodes[id as usize - 1].child.take()?;
        signal(child.id(), libc::SIGTERM);
        child.wait().expect("the child is ours").code()
    }

    /// Waits for a node to end by itself; its exit code (none: by a signal).
    pub fn wait_end(&mut self, id: u64) -> Option<i32> {
        let mut ended = None;
        let log = self.node(id).log.clone();
        let child = self.nodes[id as usize - 1].child.as_mut().expect("the node runs");
        eventually(&format!("node {id} to end; see {}", log.display()), || {
            ended = child.try_wait().expect("the child is ours");
            ended.is_some()
        });
        self.nodes[id as usize - 1].child = None;
        ended.and_then(|status| status.code())
    }

    /// Sends a signal to a running node.
    pub fn signal(&self, id: u64, number: i32) {
        signal(self.pid(id).expect("the node runs"), number);
    }

    pub fn is_running(&mut self, id: u64) -> bool {
        let child = self.nodes[id as usize - 1].child.as_mut();
        child.is_some_and(|child| child.try_wait().expect("the child is ours").is_none())
    }

    pub fn pid(&self, id: u64) -> Option<u32> {
        self.node(id).child.as_ref().map(Child::id)
    }

    /// What a node has logged.
    pub fn log(&self, id: u64) -> String {
        std::fs::read_to_string(&self.node(id).log).unwrap_or_default()
    }

    /// All client addresses.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client.clone()).collect()
    }

    /// A client that knows all nodes.
    pub async fn client(&self, timeout: Duration) -> Client {
        let config = ClientConfig { timeout, ..ClientConfig::default() };
        Client::connect(self.addresses(), config).await.expect("a node that runs")
    }
}

impl Process {
    fn laid_out(id: u64, directory: &Path) -> Self {
        let data = directory.join(format!("node-{id}"));
        let log = data.with_extension("log");
        let address = || format!("127.0.0.1:{}", free_port());
        Self {
            id,
            client: address(),
            peer: address(),
            http: address(),
            data,
            log,
            environment: vec![],
            binary: None,
            child: None,
        }
    }
}

impl Cluster {
    /// For a test that failed: what a node knows of ranges without a leader. Its log is copied to the directory that
    /// FLOTILLA_TEST_KEEP names.
    fn tell(&self, id: u64) {
        let node = self.node(id);
        if node.child.is_some() {
            let ranges = routes(&node.client).unwrap_or_default().ranges;
            let orphans = ranges.iter().filter(|range| range.leader_node_id == 0);
            orphans.for_each(|range| eprintln!("--- node {id} knows no leader: {range:?}"));
        }
        if let Some(directory) = std::env::var_os("FLOTILLA_TEST_KEEP") {
            let copy = Path::new(&directory).join(format!("{}-node-{id}.log", std::process::id()));
            let done = std::fs::copy(&node.log, &copy);
            eprintln!("--- node {id}: its log goes to {}: {done:?}", copy.display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for id in 1..=self.nodes.len() as u64 {
            if std::thread::panicking() {
                self.tell(id);
                let log = self.log(id);
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                eprintln!("--- node {id}, the end of its log:");
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
            self.kill(id);
        }
    }
}

/// What one node knows of the ranges.
pub fn routes(address: &str) -> Option<v1::ListRangesResponse> {
    let asked = async {
        let mut admin = v1::admin_client::AdminClient::connect(format!("http://{address}")).await.ok()?;
        Some(admin.list_ranges(v1::ListRangesRequest::default()).await.ok()?.into_inner())
    };
    // On a thread of its own: whoever waits for a cluster may be driving a runtime.
    std::thread::scope(|scope| scope.spawn(|| runtime().block_on(asked)).join().expect("no panic"))
}

/// Sends a signal to a process of this test.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes no pointers; the process is a child that has not been waited for.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// Status and body of a small HTTP answer; `None` if nobody answers.
pub fn http_get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split_whitespace().nth(1)?.parse().ok()?;
    let body = text.split_once("\r\n\r\n")?.1.to_owned();
    Some((status, body))
}
