//! The command line: parsing, one file for each group of commands, errors and exit codes.
//!
//! [`main`] parses, runs the command and turns its [`failure::Failure`] into stderr and the exit
//! code. Commands of clients talk to the cluster through flotilla-router's client library alone;
//! `start` is flotilla's server, `run` the supervisor, `debug` reads a data directory.

mod bench;
mod bytes;
mod cert;
mod completions;
mod config;
mod confirm;
mod debug;
pub mod failure;
pub mod global;
#[cfg(test)]
mod hostile;
mod keyspace;
pub mod kv;
mod node;
pub mod output;
mod placement;
mod range;
mod recover;
pub mod run;
mod start;
mod status;
mod stop;
mod time;
mod version;

#[cfg(test)]
mod commands_test;

use std::future::Future;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::{Failure, Result};
use global::Global;

/// A key-value store that grows by adding nodes
#[derive(Parser, Debug)]
#[command(name = "flotilla", version, propagate_version = true, max_term_width = 110, subcommand_required = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 outcome unknown, 4 key absent or comparison failed")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a local cluster: all its nodes, ended together
    Run(run::RunArgs),
    /// Run one node
    Start(start::StartArgs),
    /// Make certificates for TLS: a CA, and what it signs for nodes and clients
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Read and write keys
    Kv(kv::KvArgs),
    /// The ranges, who leads them, and orders to them
    #[command(subcommand)]
    Range(range::RangeCommand),
    /// The nodes
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Separate sets of keys, and their settings
    #[command(subcommand)]
    Keyspace(keyspace::KeyspaceCommand),
    /// What placement decided, and what it would decide
    #[command(subcommand)]
    Placement(placement::PlacementCommand),
    /// Go on without nodes that are lost for good, where they held the majority of ranges
    #[command(subcommand)]
    Recover(recover::RecoverCommand),
    /// Whether all is well, and if not, what needs a person
    Status(status::StatusArgs),
    /// Load the cluster and measure
    Bench(bench::BenchArgs),
    /// Look into the data directory of a node that is not running
    #[command(subcommand)]
    Debug(debug::DebugCommand),
    /// Check or show a node's configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
    /// Print the version, and those of the formats
    Version,
}

/// The whole program.
pub fn main() -> ExitCode {
    // clap prints usage errors by itself and exits with 2.
    let cli = Cli::parse();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code())
        }
    }
}

fn execute(cli: Cli) -> Result {
    let Cli { global, command } = cli;
    match command {
        Command::Run(args) => crate::supervisor::run(args, &global),
        Command::Start(args) => start::run(args, &global),
        Command::Cert(command) => cert::run(command, &global),
        Command::Kv(args) => block_on(kv::run(args, &global)),
        Command::Range(command) => block_on(range::run(command, &global)),
        Command::Node(command) => block_on(node::run(command, &global)),
        Command::Keyspace(command) => block_on(keyspace::run(command, &global)),
        Command::Placement(command) => block_on(placement::run(command, &global)),
        Command::Recover(command) => block_on(recover::run(command, &global)),
        Command::Status(args) => block_on(status::run(args, &global)),
        Command::Bench(args) => bench::run(args, &global),
        Command::Debug(command) => debug::run(command, &global),
        Command::Config(command) => config::run(command, &global),
        Command::Completions(args) => completions::run(&args),
        Command::Version => version::run(&global),
    }
}

/// Runs a client command: one thread is enough for it.
pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?
        .block_on(future)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        let words = ["flotilla", "kv", "get", "k", "--addr", "a:1,b:2", "--timeout", "2s", "--output", "json"];
        let cli = Cli::try_parse_from(words).expect("valid");
        assert_eq!(cli.global.addr, ["a:1", "b:2"]);
        assert_eq!(cli.global.timeout, std::time::Duration::from_secs(2));
        assert!(cli.global.json());
    }

    #[test]
    fn what_is_not_known_is_refused_with_the_usage_code() {
        for words in [&["flotilla", "kv", "got", "k"][..], &["flotilla", "--adr", "x"], &["flotilla"]] {
            let error = Cli::try_parse_from(words).expect_err("refused");
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }
}
