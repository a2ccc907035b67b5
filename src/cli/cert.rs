//! `cert`: a CA of one's own, and the certificates that it signs for nodes and clients.
//!
//! No cluster is asked: everything happens in one directory. The CA's key is made once and never overwritten; it is
//! needed where certificates are made, and on no node.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flotilla_proto::NodeId;
use flotilla_tls::issue::{Ca, Issued, Validity};
use serde_json::json;

use super::failure::{Failure, Result};
use super::global::Global;
use super::output;

const DAY: Duration = Duration::from_secs(86_400);

#[derive(clap::Subcommand, Debug)]
pub enum CertCommand {
    /// Make the CA of a new cluster: ca.crt, which all nodes and clients get, and ca.key, which is kept safe
    Ca(CaArgs),
    /// Make a node's certificate: node-ID.crt and node-ID.key
    Node(NodeArgs),
    /// Make a client's certificate: client-NAME.crt and client-NAME.key
    Client(ClientArgs),
}

#[derive(clap::Args, Debug)]
pub struct CaArgs {
    /// The cluster's name, as `start --cluster-name` has it
    #[arg(long, value_name = "NAME", default_value = "flotilla")]
    cluster_name: String,
    /// Days until it ends
    #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Where the files are put
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
}

#[derive(clap::Args, Debug)]
pub struct NodeArgs {
    /// The node's id: 1 for the first, which begins the cluster; each further one of its own
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Names and IP addresses at which clients and other nodes reach it, without ports
    #[arg(long = "host", visible_alias = "hosts", value_name = "HOST,...", value_delimiter = ',', required = true)]
    hosts: Vec<String>,
    #[command(flatten)]
    signed: SignedArgs,
}

#[derive(clap::Args, Debug)]
pub struct ClientArgs {
    /// Whose it is
    #[arg(long, value_name = "NAME")]
    name: String,
    #[command(flatten)]
    signed: SignedArgs,
}

/// What the CA is asked for.
#[derive(clap::Args, Debug)]
struct SignedArgs {
    /// Days until it ends
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Where ca.crt and ca.key are, and the new files are put
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// Replace a certificate that is there, to make it last longer
    #[arg(long)]
    overwrite: bool,
}

impl SignedArgs {
    fn validity(&self) -> Validity {
        Validity::of(DAY * self.days)
    }

    /// The CA in the directory, and the cluster that it is for.
    fn ca(&self) -> Result<(Ca, String)> {
        let read = |name: &str| {
            let path = self.dir.join(name);
            std::fs::read_to_string(&path).map_err(|error| {
                Failure::file("read", &path, &error).hint("`flotilla cert ca` makes a CA; --dir says where it is")
            })
        };
        let ca = Ca::load(&read("ca.crt")?, &read("ca.key")?).map_err(|what| {
            Failure::failed(what).hint(
                "ca.crt and ca.key must be a pair that `flotilla cert ca` made; other CAs sign by their own means",
            )
        })?;
        let cluster = ca.cluster().to_owned();
        Ok((ca, cluster))
    }
}

pub fn run(command: CertCommand, global: &Global) -> Result {
    let (dir, name, issued, overwrite) = match command {
        CertCommand::Ca(args) => {
            let issued = Ca::make(&args.cluster_name, Validity::of(DAY * args.days)).map_err(Failure::usage)?;
            (args.dir, "ca".to_owned(), issued, false)
        }
        CertCommand::Node(args) => {
            let (ca, cluster) = args.signed.ca()?;
            let issued = ca.sign_node(&cluster, NodeId(args.id), &args.hosts, args.signed.validity());
            let issued =
                issued.map_err(|what| Failure::usage(what).hint("--host db1.example,10.0.0.1 names a node's hosts"))?;
            (args.signed.dir, format!("node-{}", args.id), issued, args.signed.overwrite)
        }
        CertCommand::Client(args) => {
            check_name(&args.name)?;
            let (ca, cluster) = args.signed.ca()?;
            let issued = ca.sign_client(&cluster, &args.name, args.signed.validity()).map_err(Failure::usage)?;
            (args.signed.dir, format!("client-{}", args.name), issued, args.signed.overwrite)
        }
    };
    let (certificate, key) = keep(&dir, &name, &issued, overwrite)?;
    if global.json() {
        return output::json(&json!({ "certificate": certificate, "key": key }));
    }
    output::line(format_args!("{}\n{}", certificate.display(), key.display()))
}

/// The name is a part of a file's name, too.
fn check_name(name: &str) -> Result {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._@".contains(&byte);
    if !name.is_empty() && name.len() <= 128 && name.bytes().all(plain) && !name.starts_with('.') {
        return Ok(());
    }
    Err(Failure::usage(format!("\"{name}\" is no name of a client"))
        .hint("letters, digits and -._@, such as alice or backup.prod; at most 128"))
}

/// Puts the two files into the directory. The key comes first: a node that looks between the two finds a pair that does
/// not fit, keeps the old one, and looks again.
fn keep(dir: &Path, name: &str, issued: &Issued, overwrite: bool) -> Result<(PathBuf, PathBuf)> {
    std::fs::create_dir_all(dir).map_err(|error| Failure::file("make", dir, &error))?;
    let (certificate, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    for path in [&key, &certificate] {
        if !overwrite && path.exists() {
            let hint = if name == "ca" {
                "what it has signed would be worth nothing with another one: move it away if that is meant"
            } else {
                "--overwrite replaces it"
            };
            return Err(Failure::usage(format!("{} is there already", path.display())).hint(hint));
        }
    }
    write(&key, &issued.key, 0o600)?;
    write(&certificate, &issued.certificate, 0o644)?;
    Ok((certificate, key))
}

/// As a whole or not at all, and readable for nobody else from the first moment if it is a key.
fn write(path: &Path, text: &str, mode: u32) -> Result {
    let new = path.with_extension("flotilla-tmp");
    let failed = |error: std::io::Error| Failure::file("write", path, &error);
    // One that was left behind might have other rights.
    if new.exists() {
        std::fs::remove_file(&new).map_err(failed)?;
    }
    let mut file = std::fs::File::options().write(true).create_new(true).mode(mode).open(&new).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)
}
