//! The programs that are compared with: built once, of the versions that `peers/go.mod` names.

use std::path::{Path, PathBuf};
use std::process::Command;

use flotilla_benches::cluster::Result;

/// What is built, and from which package.
const PROGRAMS: &[(&str, &str)] =
    &[("etcd", "go.etcd.io/etcd/server/v3"), ("benchmark", "go.etcd.io/etcd/v3/tools/benchmark")];

#[derive(clap::Args)]
pub struct Build {
    /// Where the programs go
    #[arg(long, value_name = "DIR", default_value_os_t = default_directory())]
    peers: PathBuf,
}

/// Beside this program.
pub fn default_directory() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.parent().map(|directory| directory.join("peers")).unwrap_or_default()
}

pub fn build(build: &Build) -> Result<()> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    for (program, package) in PROGRAMS {
        let output = build.peers.join(program);
        let status = Command::new("go").args(["build", "-o"]).arg(&output).arg(package).current_dir(&module).status();
        let status = status.map_err(|error| format!("go: {error}: install Go, which builds etcd"))?;
        if !status.success() {
            return Err(format!("{program} was not built: go ended with {status}").into());
        }
        println!("{}", output.display());
    }
    Ok(())
}

/// Refuses to go on without a program.
pub fn check(directory: &Path, program: &str) -> Result<()> {
    if directory.join(program).is_file() {
        return Ok(());
    }
    Err(format!("{} is not there: run `compare build` first", directory.join(program).display()).into())
}
