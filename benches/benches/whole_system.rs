//! A cluster of three node processes on this machine, loaded through its own client: what a put and a get cost all
//! nodes together, with one, 16 and 256 ranges; how many fsyncs a put takes, also when the disk is slow; and what
//! grouping syncs costs a single client.
//!
//! Variants take turns, so that what else the machine does falls on all of them. Needs the binary of `make bin`.

use std::error::Error;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flotilla_benches::args::{Args, Extra};
use flotilla_benches::stats::Table;
use serde_json::Value;

// The shim that slows fsync down.
#[path = "../../tests/powercut/mod.rs"]
mod powercut;

const ABOUT: &str = "Three node processes under load: costs per operation, fsyncs, latency of one client.";
const PATIENCE: Duration = Duration::from_secs(60);
const SLOW_FSYNC_US: u64 = 2_000;

/// One way to run and load the cluster.
struct Variant {
    name: &'static str,
    ranges: u32,
    clients: u32,
    workload: &'static str,
    slow_fsync: bool,
    grouped: bool,
}

const fn variant(name: &'static str, ranges: u32, clients: u32, workload: &'static str) -> Variant {
    Variant { name, ranges, clients, workload, slow_fsync: false, grouped: true }
}

const VARIANTS: &[Variant] = &[
    variant("put, 16 ranges, 256 clients", 16, 256, "put"),
    variant("get, 16 ranges, 256 clients", 16, 256, "get"),
    variant("put, 1 range, 256 clients", 1, 256, "put"),
    variant("put, 256 ranges, 256 clients", 256, 256, "put"),
    Variant { slow_fsync: true, ..variant("put, 16 ranges, 256 clients, fsync 2 ms slower", 16, 256, "put") },
    variant("put, 16 ranges, 1 client", 16, 1, "put"),
    Variant { grouped: false, ..variant("put, 16 ranges, 1 client, one batch a sync", 16, 1, "put") },
    Variant { grouped: false, ..variant("put, 16 ranges, 256 clients, one batch a sync", 16, 256, "put") },
];

const COLUMNS: &[&str] =
    &["operations/s", "server CPU µs/op", "fsyncs/op", "bytes written/op", "Raft messages/op", "p50 µs", "p99 µs"];

fn main() -> Result<(), Box<dyn Error>> {
    let bytes = Extra { flag: "value-bytes", default: 256, help: "size of a value" };
    let args = Args::parse(ABOUT, 4.0, &[bytes]);
    let binary = binary()?;
    let mut table = Table::new("Three nodes, all of them together", COLUMNS);
    for _ in 0..args.reps {
        for variant in VARIANTS {
            table.add(variant.name, &measure(&binary, &args, variant)?);
        }
    }
    table.print();
    Ok(())
}

/// The binary beside this bench: <target>/release/deps/whole_system-... -> <target>/release/flotilla.
fn binary() -> Result<PathBuf, Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let binary = own.ancestors().nth(2).ok_or("a bench lies in <target>/release/deps")?.join("flotilla");
    if !binary.exists() {
        return Err(format!("{} is not there: run `make bin` first", binary.display()).into());
    }
    Ok(binary)
}

fn measure(binary: &Path, args: &Args, variant: &Variant) -> Result<Vec<f64>, Box<dyn Error>> {
    let directory = tempfile::tempdir_in(&args.dir)?;
    let cluster = Cluster::start(binary, directory.path(), variant)?;
    let output = Command::new(binary)
        .args(["--addr", &cluster.clients.join(","), "bench", variant.workload, "--output", "json"])
        .args(["--clients", &variant.clients.to_string(), "--seconds", &format!("{}s", args.seconds)])
        .args(["--value-bytes", &args.extra("value-bytes").to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("{}: the load ended with {}", variant.name, output.status).into());
    }
    let result: Value = serde_json::from_slice(&output.stdout)?;
    let latency = if variant.workload == "get" { "read_micros" } else { "write_micros" };
    let at = |path: &[&str]| path.iter().fold(&result, |value, key| &value[*key]).as_f64().unwrap_or(f64::NAN);
    Ok(vec![
        at(&["operations_per_second"]),
        at(&["per_operation", "server_cpu_micros"]),
        at(&["per_operation", "fsyncs"]),
        at(&["per_operation", "bytes_written"]),
        at(&["per_operation", "raft_messages"]),
        at(&[latency, "p50"]),
        at(&[latency, "p99"]),
    ])
}

/// Three processes; they end with it.
struct Cluster {
    nodes: Vec<Child>,
    clients: Vec<String>,
}

impl Cluster {
    fn start(binary: &Path, directory: &Path, variant: &Variant) -> Result<Self, Box<dyn Error>> {
        // Held until all are known, so that none is given twice.
        let held: Vec<TcpListener> = (0..9).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let addresses: Vec<String> =
            held.iter().map(|one| one.local_addr().map(|address| address.to_string())).collect::<Result<_, _>>()?;
        drop(held);
        let mut cluster = Self { nodes: Vec::new(), clients: Vec::new() };
        for node in 0..3 {
            let data = directory.join(format!("node-{}", node + 1));
            std::fs::create_dir_all(&data)?;
            let mut command = Command::new(binary);
            command
                .args(["start", "--cluster-name", "bench", "--memory-bytes", "268435456"])
                .args(["--client-listen", &addresses[3 * node], "--peer-listen", &addresses[3 * node + 1]])
                .args(["--http-listen", &addresses[3 * node + 2], "--log-level", "warn", "--data"])
                .arg(&data);
            if node == 0 {
                command.args(["--bootstrap", "--initial-ranges", &variant.ranges.to_string()]);
            } else {
                command.args(["--join", &addresses[0]]);
            }
            if !variant.grouped {
                command.args(["--sync-batches-max", "1"]);
            }
            if variant.slow_fsync {
                command.envs(powercut::PowerCut::faults_only(Some(&data)).fsync_delay_us(SLOW_FSYNC_US).vars());
            }
            cluster.nodes.push(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
            cluster.clients.push(addresses[3 * node].clone());
            wait_ready(&addresses[3 * node + 2])?;
        }
        wait_replicated(binary, &cluster.clients.join(","))?;
        Ok(cluster)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Gone already is as good.
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Waits until every range has its three replicas.
fn wait_replicated(binary: &Path, clients: &str) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let asked = Command::new(binary).args(["--addr", clients, "status", "--check"]).output()?;
        if asked.status.success() {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    Err(format!("the cluster at {clients} is not replicated after {PATIENCE:?}").into())
}

fn wait_ready(address: &str) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
            if std::io::read_to_string(&stream).is_ok_and(|answer| answer.contains(" 200 ")) {
                return Ok(());
            }
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    Err(format!("{address} is not ready after {PATIENCE:?}").into())
}
