//! An empty keyspace becomes many ranges, on three nodes: by as few orders as it takes, and one split after the other.
//!
//! One order names [`KEYS_MAX`] keys at most. For more ranges than that the first order cuts the range into equal parts,
//! and each part is then split by its own leader, all of them at the same time.

use std::time::Instant;

use bytes::Bytes;
use flotilla_benches::args::Args;
use flotilla_benches::stats::Table;
use flotilla_proto::{Error, RangeId, v1};
use flotilla_router::{Client, SplitAt};

use flotilla_benches::cluster::{Cluster, PATIENCE, Result, shown, user_ranges, wait};

/// Keys of one order: the store refuses more.
const KEYS_MAX: usize = 1_023;

const COLUMNS: &[&str; 6] =
    &["answered, s", "all led, s", "fsyncs/split", "log entries/split", "Raft messages/split", "server CPU ms/split"];

#[derive(Clone, Copy)]
enum How {
    /// By one order, or by one and then others side by side.
    AtOnce,
    /// Always the first range, which keeps its id.
    First,
    /// Always the last one, which has just come to life.
    Last,
}

const HOW: &[(&str, How)] = &[
    ("by as few orders as it takes", How::AtOnce),
    ("one by one, always the first range", How::First),
    ("one by one, always the newest child", How::Last),
];

pub async fn run(binary: &std::path::Path, args: &Args) -> Result<()> {
    let ranges = args.extra("ranges");
    let mut table = Table::new(format!("One range becomes {ranges}; sums over three nodes"), COLUMNS);
    for _ in 0..args.reps {
        for (name, how) in HOW {
            table.add(*name, &shown(name, COLUMNS, measure(binary, args, ranges, *how)).await?);
        }
    }
    table.print();
    Ok(())
}

async fn measure(binary: &std::path::Path, args: &Args, ranges: u64, how: How) -> Result<[f64; 6]> {
    let cluster = Cluster::start(binary, &args.dir, 3, &[]).await?;
    let client = cluster.client().await?;
    let range = user_ranges(&client).await?.first().and_then(|route| route.descriptor.clone()).ok_or("no range")?;
    let keys: Vec<Bytes> = (1..ranges).map(|at| Bytes::from(format!("{at:08}"))).collect();
    let before = cluster.counters(&client).await?;
    let begun = Instant::now();
    split(&client, RangeId(range.range_id), keys, how).await?;
    let answered = begun.elapsed().as_secs_f64();
    wait("all ranges to be led", async || {
        let routes = user_ranges(&client).await.unwrap_or_default();
        routes.len() as u64 == ranges && routes.iter().all(|route| route.leader_node_id != 0)
    })
    .await?;
    let led = begun.elapsed().as_secs_f64();
    let spent = cluster.counters(&client).await?.since(before);
    let each = |sum: f64| sum / (ranges - 1) as f64;
    Ok([answered, led, each(spent.syncs), each(spent.entries), each(spent.messages), each(spent.cpu_micros / 1000.0)])
}

async fn split(client: &Client, mut range: RangeId, mut keys: Vec<Bytes>, how: How) -> Result<()> {
    match how {
        How::AtOnce => return at_once(client, range, keys).await,
        How::First => keys.reverse(),
        How::Last => {}
    }
    for key in keys {
        let parts = split_at(client, range, vec![key]).await?;
        if let How::Last = how {
            range = RangeId(parts.last().ok_or("a split has parts")?.range_id);
        }
    }
    Ok(())
}

/// Splits a range at all of these keys, which are in order.
async fn at_once(client: &Client, range: RangeId, keys: Vec<Bytes>) -> Result<()> {
    // With one key between every two parts.
    let parts = (keys.len() + 1).div_ceil(KEYS_MAX + 1);
    if parts > KEYS_MAX {
        return Err(format!("{} ranges: {} at most", keys.len() + 1, KEYS_MAX * (KEYS_MAX + 1)).into());
    }
    if parts == 1 {
        return split_at(client, range, keys).await.map(drop);
    }
    let borders = (1..parts).map(|at| keys[at * keys.len() / parts].clone()).collect();
    let mut orders = tokio::task::JoinSet::new();
    for part in split_at(client, range, borders).await? {
        let within = |key: &&Bytes| **key > part.start && (part.end.is_empty() || **key < part.end);
        let own: Vec<Bytes> = keys.iter().filter(within).cloned().collect();
        let client = client.clone();
        orders.spawn(async move {
            // A boxed error may not leave its task; its words may.
            split_at(&client, RangeId(part.range_id), own).await.map_err(|error| error.to_string())
        });
    }
    while let Some(order) = orders.join_next().await {
        order??;
    }
    Ok(())
}

/// Splits a range. One that was born this moment may not be known yet to the node that is asked for it.
async fn split_at(client: &Client, range: RangeId, keys: Vec<Bytes>) -> Result<Vec<v1::RangeDescriptor>> {
    let begun = Instant::now();
    loop {
        match client.split_range(range, SplitAt::Keys(keys.clone())).await {
            Ok(parts) => return Ok(parts),
            Err(Error::InvalidArgument { what, .. })
                if what.contains("there is no range") && begun.elapsed() < PATIENCE => {}
            Err(error) => return Err(error.into()),
        }
    }
}
