//! Orders to a cluster that runs: `run add-node` and `run restart N`, from another terminal.
//!
//! One socket in the cluster's directory. An order is a line; so is its answer, `ok: ` or `error: ` and words.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader as AsyncReader};
use tokio::net::{UnixListener, UnixStream};

use crate::cli::failure::{Failure, Result};
use crate::cli::run::RunCommand;

const FILE: &str = "control.sock";
/// How long an order may take to come, and to be carried out.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// The supervisor's end.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

/// An order that came.
#[derive(Debug)]
pub struct Ordered {
    /// What is to be done.
    pub order: RunCommand,
    asker: UnixStream,
}

impl Control {
    /// Listens in the cluster's directory.
    pub fn new(data: &Path) -> Result<Self> {
        let path = data.join(FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::file("replace", &path, &error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(|error| Failure::file("listen at", &path, &error))?;
        Ok(Self { listener, path })
    }

    /// The next order that makes sense.
    pub async fn next(&self) -> Ordered {
        loop {
            let Ok((mut asker, _)) = self.listener.accept().await else {
                tokio::time::sleep(READ_TIMEOUT).await;
                continue;
            };
            let mut line = String::new();
            let mut reader = AsyncReader::new(&mut asker);
            let came = matches!(tokio::time::timeout(READ_TIMEOUT, reader.read_line(&mut line)).await, Ok(Ok(_)));
            if let Some(order) = parse(line.trim()).filter(|_| came) {
                return Ordered { order, asker };
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // What is left of it does no harm: the next supervisor replaces it.
        std::fs::remove_file(&self.path).ok();
    }
}

impl Ordered {
    /// Tells whoever gave the order.
    pub async fn answer(mut self, done: Result<String>) {
        let line = match done {
            Ok(what) => format!("ok: {what}\n"),
            Err(failure) => format!("error: {failure}\n"),
        };
        // Whoever is gone wants no answer.
        self.asker.write_all(line.as_bytes()).await.ok();
    }
}

fn parse(line: &str) -> Option<RunCommand> {
    match line.split_once(' ') {
        None if line == "add-node" => Some(RunCommand::AddNode),
        Some(("restart", node)) => Some(RunCommand::Restart { node: node.parse().ok()? }),
        _ => None,
    }
}

/// Gives an order to the supervisor of the cluster in `data`.
pub fn send(data: &Path, order: RunCommand) -> Result {
    let path = data.join(FILE);
    let failed = |error: std::io::Error| {
        Failure::failed(format!("no cluster runs in {}: {error}", data.display()))
            .hint("start it with `flotilla run`, or name its directory with --data")
    };
    let mut stream = BlockingStream::connect(&path).map_err(failed)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
    let line = match order {
        RunCommand::AddNode => "add-node\n".to_owned(),
        RunCommand::Restart { node } => format!("restart {node}\n"),
    };
    stream.write_all(line.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(|error| {
        Failure::failed(format!("the supervisor does not answer: {error}")).hint("look at its terminal")
    })?;
    match answer.trim().split_once(": ") {
        Some(("ok", what)) => {
            println!("{what}");
            Ok(())
        }
        Some(("error", what)) => Err(Failure::failed(what.to_owned())),
        _ => Err(Failure::failed("the supervisor ended before the order was carried out")),
    }
}
