//! `start`: one node, until a signal or the end of its store.

use std::path::PathBuf;
use std::time::Duration;

use flotilla::config::{Config, ConfigError, Overrides};
use flotilla::server::{self, ServerError};

use super::failure::{Failure, Result};
use super::global::Global;

/// How long an orderly stop may take once the watched process is gone.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

#[derive(clap::Args, Debug)]
pub struct StartArgs {
    /// Settings from a TOML file; flags and FLOTILLA_<NAME> in the environment override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Stop when the process with this id ends: `flotilla run` starts its nodes so
    #[arg(long, value_name = "PID")]
    stop_with: Option<i32>,
    #[command(flatten)]
    flags: Overrides,
}

/// A configuration error: a wrong command line or file.
pub fn config_failure(error: &ConfigError) -> Failure {
    Failure::usage(error.to_string()).hint("`flotilla config show` prints all settings with their values")
}

/// The settings from all layers. The options for TLS are those that all commands know.
pub fn load(file: Option<&PathBuf>, flags: &Overrides, global: &Global) -> std::result::Result<Config, ConfigError> {
    let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let flags = Overrides {
        tls_ca: text(&global.tls_ca),
        tls_cert: text(&global.tls_cert),
        tls_key: text(&global.tls_key),
        ..flags.clone()
    };
    Config::load(file.map(PathBuf::as_path), std::env::vars(), &flags)
}

pub fn run(args: StartArgs, global: &Global) -> Result {
    let config = load(args.config.as_ref(), &args.flags, global).map_err(|error| config_failure(&error))?;
    config.check().map_err(|error| config_failure(&error))?;
    if let Some(pid) = args.stop_with {
        watch(pid)?;
    }
    let log = server::init_logging(&config).map_err(|error| server_failure(&error))?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_name("flotilla-net").worker_threads(network_threads(&config));
    let runtime = builder.build().map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    let reload = || load(args.config.as_ref(), &args.flags, global);
    match runtime.block_on(server::run(config, &log, reload)) {
        Err(error @ ServerError::Failed(_)) => leave(&error),
        done => done.map_err(|error| server_failure(&error)),
    }
}

/// Ends the process at once: the store is beyond repair, so its threads are not waited for, and
/// RocksDB's own tear-down must not run under them.
fn leave(error: &ServerError) -> ! {
    eprintln!("error: {error}");
    // SAFETY: no memory is involved; the log has been written by then, stderr has no buffer.
    unsafe { libc::_exit(i32::from(error.exit_code())) }
}

fn server_failure(error: &ServerError) -> Failure {
    match error.exit_code() {
        2 => Failure::usage(error.to_string()),
        _ => Failure::failed(error.to_string()),
    }
}

fn network_threads(config: &Config) -> usize {
    match config.network_threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)),
        threads => threads,
    }
}

/// Ends this process in order when another one ends, however that one does: a node of a local
/// cluster must not outlive its supervisor, not even one that was started again by hand.
fn watch(pid: i32) -> Result {
    use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};
    let gone = || {
        Failure::usage(format!("--stop-with {pid}: there is no such process"))
            .hint("its cluster has ended; start it again with `flotilla run`, or this node alone without --stop-with")
    };
    let watched = Pid::from_raw(pid).ok_or_else(gone)?;
    let pidfd = pidfd_open(watched, PidfdFlags::empty()).map_err(|_| gone())?;
    let wait = move || {
        let mut files = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        // Readable means that the process ended; an interrupted wait is repeated.
        while !matches!(rustix::event::poll(&mut files, None), Ok(ready) if ready > 0) {}
        // The same way as any other stop; the signal handlers are the server's.
        let _ = kill_process(getpid(), Signal::TERM);
        std::thread::sleep(STOP_TIMEOUT);
        std::process::exit(1);
    };
    let spawned = std::thread::Builder::new().name("flotilla-parent".into()).spawn(wait);
    spawned.map(|_| ()).map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))
}
