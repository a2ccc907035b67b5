//! A cluster that grows, on this machine: what splits, moves and transfers cost and how long a range does not serve
//! around them; how fast a lost node's replicas are rebuilt; what a node with many ranges costs.
//!
//! Node processes, their clients and whatever else runs share the machine: counts and ratios are what to go by.
//! Needs the binary of `make bin`.

mod gaps;
mod gray;
mod load;
mod many;
mod overload;
mod quota;
mod rebuild;
mod splits;

#[path = "../../../tests/powercut/mod.rs"]
mod powercut;

use flotilla_benches::args::{Args, Extra};
use flotilla_benches::cluster;

const ABOUT: &str = "A cluster that grows: splits, time without service, rebuilding, many ranges.";

const EXTRAS: &[Extra] = &[
    Extra {
        flag: "only",
        default: 0,
        help: "1: splits, 2: time without service, 3: rebuild, 4: many ranges, 5: gray failure, 6: overload; 0: all",
    },
    Extra { flag: "ranges", default: 100, help: "ranges that one is split into" },
    Extra { flag: "events", default: 5, help: "splits, moves and transfers of each kind" },
    Extra { flag: "mib", default: 64, help: "MiB of data, of which a node's share is lost" },
    Extra { flag: "percent", default: 50, help: "the load meanwhile, in percent of the capacity" },
    Extra { flag: "case", default: 0, help: "which case of overload, from 1 on; 0: all" },
    Extra { flag: "many", default: 1_000, help: "ranges of one node: one, a tenth of it, all" },
    Extra { flag: "many-of-three", default: 100, help: "at most so many of them on three nodes" },
];

fn main() -> cluster::Result<()> {
    let args = Args::parse(ABOUT, 3.0, EXTRAS);
    let binary = cluster::binary()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let only = args.extra("only");
        if only == 0 || only == 1 {
            splits::run(&binary, &args).await?;
        }
        if only == 0 || only == 2 {
            gaps::run(&binary, &args).await?;
        }
        if only == 0 || only == 3 {
            rebuild::run(&binary, &args).await?;
        }
        if only == 0 || only == 4 {
            many::run(&binary, &args).await?;
        }
        if only == 0 || only == 5 {
            gray::run(&binary, &args).await?;
        }
        if only == 0 || only == 6 {
            overload::run(&binary, &args).await?;
        }
        Ok(())
    })
}
