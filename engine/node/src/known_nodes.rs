//! The nodes of the cluster, kept on disk: so that a node that starts while the system range is down finds the others.

use std::sync::{Mutex, PoisonError};

use flotilla_engine::keys::{MetaRecord, meta};
use flotilla_engine::record;
use flotilla_engine::storage::{self, Family, Storage, StorageError, WriteBatch};
use flotilla_proto::v1;
use tokio::task::spawn_blocking;

use crate::failure::Failure;

/// See the module.
#[derive(Debug)]
pub(crate) struct KnownNodes<S> {
    known: Mutex<v1::KnownNodes>,
    /// `None` once the node has stopped: nothing holds the storage open then.
    storage: Mutex<Option<S>>,
}

impl<S: Storage + Clone> KnownNodes<S> {
    /// What the storage remembers.
    pub fn new(storage: S, known: v1::KnownNodes) -> Self {
        Self { known: Mutex::new(known), storage: Mutex::new(Some(storage)) }
    }

    /// All of them.
    pub fn get(&self) -> Vec<v1::NodeRecord> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).nodes.clone()
    }

    /// Takes what placement says; a disk that fails to remember it has failed.
    pub async fn learn(&self, nodes: &[v1::NodeRecord], failure: &Failure) {
        let known = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.nodes == nodes {
                return;
            }
            known.nodes = nodes.to_vec();
            known.clone()
        };
        let storage = self.storage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(storage) = storage else { return };
        match spawn_blocking(move || save(&storage, &known)).await {
            // Closed, or failed before: whoever saw to that has told why.
            Ok(Ok(()) | Err(StorageError::Poisoned { .. })) | Err(_) => {}
            Ok(Err(error)) => failure.fail(format!("remembering the nodes of the cluster: {error}")),
        }
    }

    /// Remembers nothing more, and lets go of the storage.
    pub fn close(&self) {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn save<S: Storage>(storage: &S, known: &v1::KnownNodes) -> storage::Result<()> {
    let mut batch = storage.batch();
    batch.put(Family::Meta, &meta(MetaRecord::KnownNodes), &record::encode(known));
    storage.write(batch)?;
    storage.sync()
}
