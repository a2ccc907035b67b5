//! `debug store`.

use serde_json::json;

use super::{StoreArgs, copy, load};
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, plural, size};

pub fn run(args: &StoreArgs, global: &Global) -> Result {
    let opened = copy::Opened::open(&args.dir)?;
    let boot = load(&opened)?;
    let storage = opened.storage();
    let (recovery, properties) = (storage.recovery(), storage.properties());
    let torn = recovery.torn.as_ref().map(|torn| format!("{torn:?}"));
    if global.json() {
        let nodes = boot.known.nodes.iter().map(|node| json!({ "node_id": node.node_id, "peer_addr": node.peer_addr }));
        return output::json(&json!({
            "directory": args.dir.display().to_string(),
            "cluster_id": format!("{:016x}", boot.identity.cluster_id),
            "cluster_name": boot.known.cluster_name,
            "node_id": boot.identity.node_id,
            "format": boot.identity.format,
            "nodes": nodes.collect::<Vec<_>>(),
            "ranges": boot.ranges.len(),
            "replicas_here": boot.ranges.len(),
            "clean_stop": recovery.clean_stop,
            "last_sequence": recovery.last_sequence,
            "wal_files": recovery.wal_files,
            "wal_batches": recovery.wal_batches,
            "wal_torn": torn,
            "table_bytes": properties.sst_bytes,
            "l0_files": properties.l0_files,
        }));
    }
    let nodes: Vec<String> =
        boot.known.nodes.iter().map(|node| format!("{}={}", node.node_id, node.peer_addr)).collect();
    output::line(format_args!(
        "node {} of cluster \"{}\" ({:016x}), disk format {}\n\
         born with {} on nodes {}; {} here\n\
         {}; {} in {} since the last flush, last sequence number {}\n\
         tables {}, {} at level 0",
        boot.identity.node_id,
        boot.known.cluster_name,
        boot.identity.cluster_id,
        boot.identity.format,
        plural(boot.ranges.len() as u64, "range"),
        nodes.join(", "),
        plural(boot.ranges.len() as u64, "replica"),
        if recovery.clean_stop { "stopped in order" } else { "not stopped in order: a crash or a kill" },
        plural(recovery.wal_batches, "batch").replace("batchs", "batches"),
        plural(recovery.wal_files as u64, "WAL file"),
        recovery.last_sequence,
        size(properties.sst_bytes),
        plural(properties.l0_files, "file"),
    ))?;
    torn.map_or(Ok(()), |torn| output::line(format_args!("a torn end of the WAL was dropped: {torn}")))
}
