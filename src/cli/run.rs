//! `run`: what its command line looks like. The supervisor carries it out.
//!
//! Without a subcommand, `run` is the supervisor of a local cluster, for as long as it lasts. The
//! subcommands are orders to the supervisor that runs already, found by its data directory.

use std::path::{Path, PathBuf};

/// Most nodes of a local cluster.
pub const NODES_MAX: u32 = 9;
/// Where a local cluster lies if nothing else is said.
const DATA_DEFAULT: &str = "flotilla-data";

#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct RunArgs {
    /// An order to the cluster that runs already; `None`: run it
    #[command(subcommand)]
    pub command: Option<RunCommand>,
    /// How many nodes; a cluster that is there already keeps its number [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(NODES_MAX)))]
    pub nodes: Option<u32>,
    /// Spread the nodes over so many zones: each gets a label, zone=z1, z2, ... in turn, and placement keeps the replicas
    /// of a range apart by it. A cluster that is there already keeps its zones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(NODES_MAX)))]
    pub zones: Option<u32>,
    /// Where the nodes keep their data; goes on with what is there [default: flotilla-data]
    #[arg(long, value_name = "DIR", global = true)]
    pub data: Option<PathBuf>,
    /// Node I listens at this + 100 x (I - 1) for clients, + 1 for nodes, + 2 for http [default: 7300]
    #[arg(long, value_name = "PORT")]
    pub base_port: Option<u16>,
    /// Store this file tree in a new cluster (of a git checkout, the files that git knows)
    #[arg(long, value_name = "DIR")]
    pub sample: Option<PathBuf>,
    /// Show all of it once, without hands: start, store, kill a node, read back, restart it, stop.
    /// Uses a temporary directory and free ports unless --data and --base-port are given
    #[arg(long)]
    pub once: bool,
}

/// An order to the supervisor of a cluster that runs.
#[derive(clap::Subcommand, Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunCommand {
    /// Add a node to the cluster that runs already; it joins and gets its share of the ranges
    AddNode,
    /// Stop a node in order (if it still runs) and start it again
    Restart {
        /// The node's id
        node: u64,
    },
}

impl RunArgs {
    /// Where the cluster lies.
    pub fn data(&self) -> &Path {
        self.data.as_deref().unwrap_or(Path::new(DATA_DEFAULT))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn parse(words: &[&str]) -> Option<RunArgs> {
        Line::try_parse_from([&["run"], words].concat()).ok().map(|line| line.args)
    }

    #[test]
    fn orders_name_the_cluster_and_nothing_else() {
        let args = parse(&["--nodes", "5", "--data", "x"]).expect("valid");
        assert_eq!((args.command, args.nodes, args.data()), (None, Some(5), Path::new("x")));
        let args = parse(&["add-node", "--data", "y"]).expect("valid");
        assert_eq!((args.command, args.data()), (Some(RunCommand::AddNode), Path::new("y")));
        let args = parse(&["restart", "2"]).expect("valid");
        assert_eq!((args.command, args.data()), (Some(RunCommand::Restart { node: 2 }), Path::new(DATA_DEFAULT)));
        for bad in
            [&["restart"][..], &["restart", "x"], &["--nodes", "3", "add-node"], &["--nodes", "0"], &["add-node", "2"]]
        {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }
}
