//! `run add-node` and `run restart N`: orders to the supervisor that runs, over a socket in its directory.
//!
//! ```text
//! run add-node ──"add-node"──▶ DATA/control ─▶ supervisor: starts the node, waits
//!              ◀── a line for each step, at the end "ok" or "failed: why" ──┘
//! ```
//! Only a supervisor can start nodes whose lives hang on its own. One order at a time; while it is carried out, deaths
//! of nodes are not looked for.

use std::fmt::Display;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use super::show::say;
use crate::cli::failure::{Failure, Result};
use crate::cli::run::RunCommand;

const SOCKET: &str = "control";
/// How long an order may take to be said.
const LINE_TIMEOUT: Duration = Duration::from_secs(1);
const DONE: &str = "ok";
const FAILED: &str = "failed: ";

/// The socket's path by its directory's descriptor: a path of a socket may have 108 bytes only.
fn short(directory: &File) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(SOCKET)
}

/// Where orders come in.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Takes orders for the cluster in `data`.
    pub fn open(data: &Path) -> Result<Self> {
        let path = data.join(SOCKET);
        let opened = File::open(data).and_then(|directory| {
            // Left by a supervisor that was killed: another one that lives would hold the nodes' ports.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            UnixListener::bind(short(&directory))
        });
        let listener = opened.map_err(|error| Failure::file("listen at", &path, &error))?;
        Ok(Self { listener, path })
    }

    /// The next order. May be dropped at any time.
    pub async fn next(&self) -> Order {
        loop {
            // Whoever cannot be taken, or says nothing, gets no answer.
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(LINE_TIMEOUT).await;
                continue;
            };
            let (read, replies) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            let line = tokio::time::timeout(LINE_TIMEOUT, lines.next_line()).await;
            let Ok(Ok(Some(line))) = line else { continue };
            let mut order = Order { command: None, replies };
            match parse(&line) {
                Some(command) => return Order { command: Some(command), ..order },
                None => order.end(&Err(Failure::failed(format!("no such order: {line}")))).await,
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // What cannot be removed is no more than a file that nobody listens at.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn text(command: RunCommand) -> String {
    match command {
        RunCommand::AddNode => "add-node".into(),
        RunCommand::Restart { node } => format!("restart {node}"),
    }
}

fn parse(line: &str) -> Option<RunCommand> {
    match line.split_once(' ') {
        None if line == "add-node" => Some(RunCommand::AddNode),
        Some(("restart", node)) => Some(RunCommand::Restart { node: node.parse().ok()? }),
        _ => None,
    }
}

/// An order, and who waits for its end.
#[derive(Debug)]
pub struct Order {
    /// `None`: it was not understood.
    pub command: Option<RunCommand>,
    replies: OwnedWriteHalf,
}

impl Order {
    /// Tells of a step, here and to whoever gave the order.
    pub async fn step(&mut self, text: impl Display) {
        say(&text);
        self.line(&text.to_string()).await;
    }

    /// Tells of the end.
    pub async fn end(&mut self, result: &Result) {
        match result {
            Ok(()) => self.line(DONE).await,
            Err(failure) => self.line(&format!("{FAILED}{failure}")).await,
        }
    }

    async fn line(&mut self, text: &str) {
        // Who gave the order may have gone: it is carried out all the same.
        let _ = self.replies.write_all(format!("{}\n", text.replace('\n', " ")).as_bytes()).await;
    }
}

/// Gives an order to the supervisor of the cluster in `data`, and waits until it is carried out.
pub async fn give(command: RunCommand, data: &Path) -> Result {
    let (mut lines, mut write) = connect(data).await?;
    let lost = || Failure::failed("the supervisor ended before the order was carried out");
    write.write_all(format!("{}\n", text(command)).as_bytes()).await.map_err(|_| lost())?;
    while let Ok(Some(line)) = lines.next_line().await {
        if line == DONE {
            return Ok(());
        }
        if let Some(why) = line.strip_prefix(FAILED) {
            return Err(Failure::failed(why));
        }
        say(line);
    }
    Err(lost())
}

async fn connect(data: &Path) -> Result<(Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf)> {
    let nobody = || {
        Failure::failed(format!("no cluster of `flotilla run` runs in {}", data.display()))
            .hint("start it with `flotilla run`, or name its directory with --data")
    };
    let directory = File::open(data).map_err(|_| nobody())?;
    let stream = UnixStream::connect(short(&directory)).await.map_err(|_| nobody())?;
    let (read, write) = stream.into_split();
    Ok((BufReader::new(read).lines(), write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_they_are_written() {
        for command in [RunCommand::AddNode, RunCommand::Restart { node: 7 }] {
            assert_eq!(parse(&text(command)), Some(command));
        }
        for bad in ["", "add-node 3", "restart", "restart x", "stop"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn an_order_is_told_of_its_steps_and_its_end() {
        let folder = tempfile::tempdir().expect("tempdir");
        // Longer than a socket's path may be.
        let data = folder.path().join("d".repeat(150));
        std::fs::create_dir(&data).expect("mkdir");
        assert!(give(RunCommand::AddNode, &data).await.is_err(), "nobody listens");
        let control = Control::open(&data).expect("it listens");
        let (given, ()) = tokio::join!(give(RunCommand::Restart { node: 2 }, &data), async {
            let mut order = control.next().await;
            assert_eq!(order.command, Some(RunCommand::Restart { node: 2 }));
            order.step("a step").await;
            order.end(&Err(Failure::failed("no such node"))).await;
        });
        assert_eq!(given.expect_err("it failed").to_string(), "no such node");
        drop(control);
        assert!(!data.join(SOCKET).exists());
    }
}
