//! `run`: a whole cluster on this machine.
//!
//! ```text
//! plan ─▶ checks ─▶ children start ─▶ all ranges led ─▶ table, `ready:` ─▶ sample ─▶ watch ─▶ stop
//! ```
//! The supervisor starts the nodes, tells what happens to them, and ends them; it restarts none unless it is told to
//! ([`orders`]). All of it runs on the process' main thread: the children's lives hang on that thread ([`child`]).

mod change;
mod checks;
mod child;
mod cluster;
mod level;
mod nodes;
mod once;
mod orders;
mod outage;
mod plan;
mod sample;
mod show;
mod watch;

use std::path::Path;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::block_on;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::run::RunArgs;
use cluster::Cluster;
use orders::Control;
use plan::Plan;

/// The first node's port for clients.
const BASE_PORT: u16 = 7300;

/// The command.
pub fn run(args: RunArgs, global: &Global) -> Result {
    if global.tls_ca.is_some() || global.tls_cert.is_some() || global.tls_key.is_some() {
        return Err(Failure::usage("a local cluster speaks plain text, on loopback")
            .hint("leave --tls-ca, --tls-cert and --tls-key away, and FLOTILLA_TLS_CA, ..._CERT and ..._KEY unset; `flotilla start` takes them"));
    }
    match args.command {
        Some(command) => block_on(orders::give(command, args.data())),
        None if args.once => block_on(once::run(args, global)),
        None => block_on(serve(args, global)),
    }
}

/// The signals that end the cluster, and the one that tells of a child's end.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    child: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let on = |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot take signals: {error}")));
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            child: on(SignalKind::child())?,
        })
    }

    /// Resolves when the cluster is to end.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn serve(args: RunArgs, global: &Global) -> Result {
    let mut signals = Signals::new()?;
    let plan = Plan::new(args.data(), args.nodes, args.zones, args.base_port.unwrap_or(BASE_PORT))?;
    checks::all(&plan)?;
    let mut cluster = Cluster::start(plan)?;
    let result = tokio::select! {
        result = open(&mut cluster, args.sample.as_deref(), global) => Some(result),
        () = signals.stop() => None,
    };
    let result = match result {
        Some(Ok(control)) => watch::watch(&mut cluster, &control, &mut signals).await,
        Some(Err(failure)) => Err(failure),
        None => Ok(()),
    };
    show::say("stopping the nodes");
    let stopped = tokio::select! {
        stopped = cluster.stop() => stopped,
        // Asked twice: at once then.
        () = signals.stop() => Err(Failure::failed("the nodes were killed before they had stopped in order")),
    };
    result.and(stopped)
}

/// From the children's start to a cluster that can be used, and that takes orders.
async fn open(cluster: &mut Cluster, sample: Option<&Path>, global: &Global) -> Result<Control> {
    cluster.ready().await?;
    let control = Control::open(&cluster.plan.data)?;
    show::table(cluster);
    if let (true, Some(root)) = (cluster.plan.fresh, sample) {
        let stored = cluster.store_sample(root, global).await?;
        show::say(format_args!("sample: {}", stored.text()));
    }
    show::lines(cluster);
    Ok(control)
}
