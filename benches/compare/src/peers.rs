//! The programs that are compared with: built or fetched once, of the versions that `peers/go.mod` and `peers/pom.xml` name.

use std::path::{Path, PathBuf};
use std::process::Command;

use flotilla_benches::cluster::Result;

use crate::store::System;

/// What is built of etcd, and from which package.
const PROGRAMS: &[(&str, &str)] =
    &[("etcd", "go.etcd.io/etcd/server/v3"), ("benchmark", "go.etcd.io/etcd/v3/tools/benchmark")];

#[derive(clap::Args)]
pub struct Build {
    /// What is built
    #[arg(long, value_enum, value_delimiter = ',', default_value = "etcd,zookeeper")]
    only: Vec<Peer>,
    /// Where the programs go
    #[arg(long, value_name = "DIR", default_value_os_t = default_directory())]
    peers: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Peer {
    /// By Go
    Etcd,
    /// By Maven, which fetches it; it runs on Java
    Zookeeper,
}

/// Beside this program.
pub fn default_directory() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.parent().map(|directory| directory.join("peers")).unwrap_or_default()
}

pub fn build(build: &Build) -> Result<()> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    for peer in &build.only {
        match peer {
            Peer::Etcd => build_etcd(&module, &build.peers)?,
            Peer::Zookeeper => fetch_zookeeper(&module, &build.peers)?,
        }
    }
    Ok(())
}

fn build_etcd(module: &Path, peers: &Path) -> Result<()> {
    for (program, package) in PROGRAMS {
        let output = peers.join(program);
        let status = Command::new("go").args(["build", "-o"]).arg(&output).arg(package).current_dir(module).status();
        let status = status.map_err(|error| format!("go: {error}: install Go, which builds etcd"))?;
        if !status.success() {
            return Err(format!("{program} was not built: go ended with {status}").into());
        }
        println!("{}", output.display());
    }
    Ok(())
}

/// ZooKeeper's classes and those that it needs.
fn fetch_zookeeper(module: &Path, peers: &Path) -> Result<()> {
    let output = std::path::absolute(peers.join("zookeeper"))?;
    // What an older version needed must not be found beside what this one needs.
    if output.is_dir() {
        std::fs::remove_dir_all(&output)?;
    }
    let mut command = Command::new("mvn");
    command.args(["--batch-mode", "--quiet", "dependency:copy-dependencies"]);
    command.arg(format!("-DoutputDirectory={}", output.display())).current_dir(module);
    let status = command.status().map_err(|error| {
        format!("mvn: {error}: install Maven, which fetches ZooKeeper, or go without: compare build --only etcd")
    })?;
    if !status.success() {
        return Err(format!("ZooKeeper was not fetched: mvn ended with {status}").into());
    }
    println!("{}", output.display());
    Ok(())
}

/// Refuses to go on without a system's programs.
pub fn check(directory: &Path, system: System) -> Result<()> {
    let needed: &[&str] = match system {
        System::Stream | System::Unary => &[],
        System::Etcd | System::EtcdSpread => &["etcd"],
        System::EtcdTool => &["etcd", "benchmark"],
        System::ZookeeperSync | System::Zookeeper | System::ZookeeperSpread => &["zookeeper/zookeeper.jar"],
    };
    match needed.iter().map(|file| directory.join(file)).find(|file| !file.is_file()) {
        Some(file) => Err(format!("{} is not there: run `compare build` first", file.display()).into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_without_its_programs_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        check(directory.path(), System::Stream).expect("it is not a peer");
        std::fs::write(directory.path().join("etcd"), "").expect("written");
        check(directory.path(), System::Etcd).expect("it is there");
        for system in [System::EtcdTool, System::Zookeeper] {
            let error = check(directory.path(), system).expect_err("it is not there").to_string();
            assert!(error.contains("compare build"), "{error}");
        }
    }
}
