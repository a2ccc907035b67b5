//! What a node with many empty ranges costs: memory, a start, and CPU while nothing happens.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_benches::args::Args;
use flotilla_benches::stats::Table;
use flotilla_proto::{RangeId, v1};
use flotilla_router::{Client, SplitAt};

use flotilla_benches::cluster::{Cluster, PATIENCE, Result, pause_after, shown, user_ranges, wait};

/// What ranges do after their birth is over by then.
const SETTLE: Duration = Duration::from_secs(3);
const MIB: f64 = 1024.0 * 1024.0;
/// Children of one order.
const PARTS_MAX: usize = 1_000;
/// Before an order is given again.
const RETRY: Duration = Duration::from_millis(200);

const COLUMNS: &[&str; 9] = &[
    "resident, MiB",
    "the same after a restart",
    "idle CPU, % of a core",
    "idle fsyncs/s",
    "idle Raft messages/s",
    "after kill -9: ready, ms",
    "first write, ms",
    "after SIGTERM: ready, ms",
    "first write, ms",
];

pub async fn run(binary: &Path, args: &Args) -> Result<()> {
    let mut table = Table::new("A node with many empty ranges; of three nodes, the last one", COLUMNS);
    let many = args.extra("many");
    for _ in 0..args.reps {
        for nodes in [1, 3] {
            for ranges in [1, many / 10, many] {
                let most = if nodes == 1 { many } else { args.extra("many-of-three") };
                if ranges <= most && ranges > 0 {
                    let name = format!("{nodes} node{}, {ranges} ranges", if nodes == 1 { "" } else { "s" });
                    let values = shown(&name, COLUMNS, measure(binary, args, nodes, ranges)).await?;
                    table.add(name, &values);
                }
            }
        }
    }
    table.print();
    Ok(())
}

async fn measure(binary: &Path, args: &Args, nodes: usize, ranges: u64) -> Result<[f64; 9]> {
    let mut cluster = Cluster::start(binary, &args.dir, nodes, &["--initial-ranges", "1"]).await?;
    let client = cluster.client().await?;
    multiply(&client, ranges).await?;
    cluster.wait_whole(nodes.min(3)).await?;
    tokio::time::sleep(SETTLE).await;
    let before = cluster.counters(&client).await?;
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs_f64(args.seconds)).await;
    let spent = cluster.counters(&client).await?.since(before);
    let idle = |sum: f64| sum / begun.elapsed().as_secs_f64() / nodes as f64;
    let at = nodes - 1;
    let resident = cluster.resident_bytes(at)? / MIB;
    cluster.kill(at)?;
    let (killed_ready, killed_write) = restart(&mut cluster, at).await?;
    tokio::time::sleep(SETTLE).await;
    let again = cluster.resident_bytes(at)? / MIB;
    cluster.stop(at)?;
    let (stopped_ready, stopped_write) = restart(&mut cluster, at).await?;
    Ok([
        resident,
        again,
        idle(spent.cpu_micros / 1e4),
        idle(spent.syncs),
        idle(spent.messages),
        killed_ready,
        killed_write,
        stopped_ready,
        stopped_write,
    ])
}

/// Makes one range many: by orders to split the last one, which bring its children to life where its replicas are.
async fn multiply(client: &Client, ranges: u64) -> Result<()> {
    let keys: Vec<Bytes> = (1..ranges).map(|at| Bytes::from(format!("{at:08}"))).collect();
    for keys in keys.chunks(PARTS_MAX) {
        let begun = Instant::now();
        loop {
            let routes = user_ranges(client).await?;
            let last = routes.iter().filter_map(|route| route.descriptor.as_ref()).find(|range| range.end.is_empty());
            let last = RangeId(last.ok_or("some range is the last")?.range_id);
            match client.split_range(last, SplitAt::Keys(keys.to_vec())).await {
                Ok(_) => break,
                // Ids for new ranges come from placement; the last range is not led at once, nor known everywhere.
                Err(_) if begun.elapsed() < PATIENCE => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(error.into()),
            }
        }
    }
    wait("all ranges to be known", async || {
        let Ok(routes) = user_ranges(client).await else { return false };
        pause_after(&routes).await;
        routes.len() as u64 == ranges
    })
    .await
}

/// Starts a node again: milliseconds until it says that it is ready, and until a write sent to it was answered.
async fn restart(cluster: &mut Cluster, at: usize) -> Result<(f64, f64)> {
    let begun = Instant::now();
    cluster.spawn(at)?;
    let ready = async {
        cluster.wait_ready(at).await?;
        Ok(begun.elapsed())
    };
    let (ready, written) = tokio::try_join!(ready, first_write(&cluster.nodes[at].client, begun))?;
    Ok((ready.as_secs_f64() * 1000.0, written.as_secs_f64() * 1000.0))
}

/// When a node has answered a write, from the beginning on.
async fn first_write(address: &str, begun: Instant) -> Result<Duration> {
    wait("the first write", async || {
        let Ok(mut client) = v1::kv_client::KvClient::connect(format!("http://{address}")).await else { return false };
        let header = Some(v1::RequestHeader { timeout_ms: 60_000, ..Default::default() });
        let put = v1::PutRequest { header, key: Bytes::from_static(b"m"), ..Default::default() };
        client.put(put).await.is_ok()
    })
    .await?;
    Ok(begun.elapsed())
}
