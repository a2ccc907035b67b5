//! The one binary: node, client commands, local cluster.

mod cli;
mod supervisor;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
