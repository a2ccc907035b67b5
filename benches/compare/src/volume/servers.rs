//! What is asked of both systems: servers that can be ended, and started again with what they have on disk.

use std::path::{Path, PathBuf};

use flotilla_benches::cluster::Result;

use super::metrics::{Split, number};
use crate::store::Session;
use crate::store::etcd::{Etcd, Kv};
use crate::store::flotilla::{Flotilla, Stream};

/// A system's nodes.
pub trait Servers {
    type Session: Session;

    fn processes(&self) -> Result<Vec<u32>>;

    /// Of a client that knows nothing yet.
    async fn sessions(&self, clients: usize) -> Result<Vec<Self::Session>>;

    /// Sends all nodes a signal that ends them, and waits until it has.
    async fn end(&mut self, signal: i32) -> Result<()>;

    /// Starts all nodes at once, in control groups if there are any, and waits for nothing.
    fn start_again(&mut self, groups: &[PathBuf]) -> Result<()>;

    /// Where all nodes keep what they have.
    fn directory(&self) -> &Path;

    /// What was written for what since the nodes started, if they count it.
    async fn split(&self) -> Result<Option<Split>>;

    /// Whether no work is put off to a later time, whatever is written until then. (What lies in a memtable is none: it is
    /// in the write-ahead log, and is flushed when more comes.)
    async fn has_tidied_up(&self) -> Result<bool>;
}

impl Servers for Flotilla {
    type Session = Stream;

    fn processes(&self) -> Result<Vec<u32>> {
        self.processes()
    }

    async fn sessions(&self, _clients: usize) -> Result<Vec<Stream>> {
        self.stream().await
    }

    async fn end(&mut self, signal: i32) -> Result<()> {
        self.end(signal).await
    }

    fn start_again(&mut self, groups: &[PathBuf]) -> Result<()> {
        self.start_again(groups)
    }

    fn directory(&self) -> &Path {
        self.directory()
    }

    async fn split(&self) -> Result<Option<Split>> {
        Split::of(&self.metrics().await?).map(Some)
    }

    /// Compactions begin when there is something to compact.
    async fn has_tidied_up(&self) -> Result<bool> {
        Ok(true)
    }
}

impl Servers for Etcd {
    type Session = Kv;

    fn processes(&self) -> Result<Vec<u32>> {
        Ok(self.processes())
    }

    async fn sessions(&self, clients: usize) -> Result<Vec<Kv>> {
        self.sessions(clients, false).await
    }

    async fn end(&mut self, signal: i32) -> Result<()> {
        self.end(signal).await
    }

    fn start_again(&mut self, groups: &[PathBuf]) -> Result<()> {
        self.start_again(groups)
    }

    fn directory(&self) -> &Path {
        self.directory()
    }

    async fn split(&self) -> Result<Option<Split>> {
        Ok(None)
    }

    /// Old revisions go every five minutes, those of the last write too.
    async fn has_tidied_up(&self) -> Result<bool> {
        for node in self.metrics().await? {
            let compacted = number(&node, "etcd_debugging_mvcc_compact_revision")?;
            if compacted < number(&node, "etcd_debugging_mvcc_current_revision")? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
