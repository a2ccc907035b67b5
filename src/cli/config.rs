//! `config`: a node's settings without starting it.

use std::path::PathBuf;

use flotilla::config::Overrides;
use serde_json::json;

use super::failure::{Failure, Result};
use super::global::Global;
use super::{output, start};

#[derive(clap::Subcommand, Debug)]
pub enum ConfigCommand {
    /// Check the settings that `start` would use; prints nothing else than errors, or `ok`
    Check(ConfigArgs),
    /// Print the settings that `start` would use, as a TOML file
    Show(ConfigArgs),
}

#[derive(clap::Args, Debug)]
pub struct ConfigArgs {
    /// The TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Overrides,
}

pub fn run(command: ConfigCommand, global: &Global) -> Result {
    let (ConfigCommand::Check(args) | ConfigCommand::Show(args)) = &command;
    let config =
        start::load(args.config.as_ref(), &args.flags, global).map_err(|error| start::config_failure(&error))?;
    if matches!(command, ConfigCommand::Check(_)) {
        config.check().map_err(|error| start::config_failure(&error))?;
        return if global.json() { output::json(&json!({ "ok": true })) } else { output::line("ok") };
    }
    if !global.json() {
        return output::line(config.to_toml().trim_end());
    }
    let settings = serde_json::to_value(&config).map_err(|error| Failure::failed(error.to_string()))?;
    output::json(&settings)
}
