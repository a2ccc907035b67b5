//! `completions`: scripts that complete our commands in a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::failure::Result;
use super::{Cli, output};

#[derive(clap::Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub fn run(args: &CompletionsArgs) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "flotilla", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}
