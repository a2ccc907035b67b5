//! `version`: of the program and of everything that older or newer ones must understand.

use serde_json::json;

use super::failure::Result;
use super::global::Global;
use super::output;

pub fn run(global: &Global) -> Result {
    let version = env!("CARGO_PKG_VERSION");
    let disk = flotilla_store::FORMAT;
    let command = flotilla_engine::command::VERSION;
    let protocol = flotilla_node::transport::PROTOCOL_MAX;
    if global.json() {
        return output::json(&json!({
            "version": version,
            "disk_format": disk,
            "command_version": command,
            "peer_protocol": protocol,
            "api": "flotilla.v1",
        }));
    }
    output::line(format_args!(
        "flotilla {version}\ndisk format {disk}\ncommand version {command}\npeer protocol {protocol}\napi flotilla.v1"
    ))
}
