//! Which store each other node had when it was first met, kept on disk.
//!
//! A node whose disk was replaced has forgotten its votes and the writes that it acknowledged. Under
//! its old id it could help to elect a leader that misses acknowledged writes. So every store draws an id
//! when it is made, a node tells it in its handshake, and who has met the node with another store
//! refuses it: both ways, so that no message passes, and so that it hears of it and stops.
//!
//! A node that is gone for good, and whose ranges went on without it, is condemned: no store is its own any more, and if
//! it comes back it hears so and stops.
//!
//! Invariant: before a node is let in for the first time, its store's id is durable here. What this
//! cannot see: a node that nobody who is up has met before.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use flotilla_engine::keys::{MetaRecord, meta};
use flotilla_engine::record;
use flotilla_engine::storage::{self, Family, StorageError, WriteBatch};
use flotilla_proto::{Error, NodeId, v1};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::hello::Refusal;
use crate::disk::LocalStorage;
use crate::failure::Failure;

/// The store of a node that is never to come back. Stores' ids are random: none has this one.
const CONDEMNED: u64 = u64::MAX;

type Save = Arc<dyn Fn(&v1::KnownStores) -> storage::Result<()> + Send + Sync>;

/// See the module.
pub(crate) struct KnownStores {
    known: Mutex<BTreeMap<NodeId, u64>>,
    /// `None` once the node stops: nothing holds the storage open then.
    save: std::sync::Mutex<Option<Save>>,
}

impl KnownStores {
    /// What the storage remembers, and what placement said of nodes that were never met.
    pub fn load<S: LocalStorage>(storage: &S, nodes: &[v1::NodeRecord]) -> storage::Result<Self> {
        let key = meta(MetaRecord::KnownStores);
        let stored: v1::KnownStores = match storage.get(Family::Meta, &key)? {
            Some(stored) => record::decode(&stored, "known stores of other nodes")?,
            None => v1::KnownStores::default(),
        };
        let told = nodes.iter().filter(|node| node.store_id != 0).map(|node| (NodeId(node.node_id), node.store_id));
        let met = stored.stores.into_iter().map(|store| (NodeId(store.node_id), store.store_id));
        let known = told.chain(met).collect();
        let storage = storage.clone();
        let save: Save = Arc::new(move |stores| {
            let mut batch = storage.batch();
            batch.put(Family::Meta, &key, &record::encode(stores));
            storage.write(batch)?;
            storage.sync()
        });
        Ok(Self { known: Mutex::new(known), save: std::sync::Mutex::new(Some(save)) })
    }

    /// Takes over what placement says of nodes that were never met.
    pub async fn learn(&self, nodes: &[v1::NodeRecord]) {
        let mut known = self.known.lock().await;
        for node in nodes.iter().filter(|node| node.store_id != 0) {
            known.entry(NodeId(node.node_id)).or_insert(node.store_id);
        }
    }

    /// Lets a node in whose store is the known one. That of a node that was never met is remembered
    /// first; a disk that fails that has failed.
    pub async fn admit(&self, theirs: &v1::Hello, failure: &Failure) -> Result<(), Refusal> {
        let node = NodeId(theirs.node_id);
        if theirs.store_id == 0 {
            return Err(format!("node {} does not tell which store it has: upgrade it", node.0).into());
        }
        let mut known = self.known.lock().await;
        match known.get(&node) {
            Some(store) if *store == theirs.store_id => return Ok(()),
            Some(&CONDEMNED) => return Err(Refusal::Replaced(condemned(node))),
            Some(_) => return Err(Refusal::Replaced(replaced(node))),
            None => {}
        }
        let mut with_it = known.clone();
        with_it.insert(node, theirs.store_id);
        self.remember(&with_it, failure, node).await?;
        *known = with_it;
        Ok(())
    }

    /// Writes what is known to the disk; one that fails has failed for good. `node`: of whom there is news.
    async fn remember(&self, known: &BTreeMap<NodeId, u64>, failure: &Failure, node: NodeId) -> Result<(), Refusal> {
        let save = self.save.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let save = save.ok_or("the node is stopping")?;
        let stores = known.iter().map(|(node, store)| v1::KnownStore { node_id: node.0, store_id: *store });
        let stores = v1::KnownStores { stores: stores.collect() };
        match spawn_blocking(move || save(&stores)).await {
            Ok(Ok(())) => Ok(()),
            // Closed, or failed before: whoever saw to that has told why.
            Ok(Err(StorageError::Poisoned { .. })) | Err(_) => Err("the node's store takes nothing more".into()),
            Ok(Err(error)) => {
                failure.fail(format!("remembering the store of node {}: {error}", node.0));
                Err("the node's store failed".into())
            }
        }
    }

    /// Refuses a node that was condemned.
    pub async fn refuse_condemned(&self, node: NodeId) -> Result<(), Refusal> {
        match self.known.lock().await.get(&node) {
            Some(&CONDEMNED) => Err(Refusal::Replaced(condemned(node))),
            _ => Ok(()),
        }
    }

    /// The nodes that were condemned.
    pub async fn condemned(&self) -> Vec<NodeId> {
        let known = self.known.lock().await;
        known.iter().filter(|(_, store)| **store == CONDEMNED).map(|(node, _)| *node).collect()
    }

    /// Nodes are gone for good: remembered before it returns.
    pub async fn condemn(&self, nodes: &[NodeId], failure: &Failure) -> Result<(), Error> {
        let mut known = self.known.lock().await;
        let mut with_them = known.clone();
        with_them.extend(nodes.iter().map(|node| (*node, CONDEMNED)));
        self.remember(&with_them, failure, nodes.first().copied().unwrap_or_default()).await.map_err(|refusal| {
            let reason = refusal.words().to_owned();
            Error::Unavailable { reason }
        })?;
        *known = with_them;
        Ok(())
    }

    /// Remembers nothing more, and lets go of the storage.
    pub fn close(&self) {
        self.save.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn condemned(node: NodeId) -> String {
    format!(
        "node {} was given up for good, and the ranges that it held went on without it: what it has is out of date, and it \
         must not serve. Keep its data directory for inspection, and start it with an empty one and --join, as a new node",
        node.0
    )
}

fn replaced(node: NodeId) -> String {
    format!(
        "node {} is known with another store: its data directory was replaced, and its votes and the writes that it \
         acknowledged went with the old one. Put the old data directory back, or leave the node out: the others go on without \
         it. If the cluster is new and holds nothing yet, empty the data directories of all nodes and bootstrap them again",
        node.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(node_id: u64, store_id: u64) -> v1::Hello {
        v1::Hello { node_id, store_id, ..Default::default() }
    }

    fn over(save: Save) -> KnownStores {
        KnownStores { known: Mutex::default(), save: std::sync::Mutex::new(Some(save)) }
    }

    #[tokio::test]
    async fn the_first_store_is_saved_before_it_is_let_in_and_no_other_one_is() {
        let saved = Arc::new(std::sync::Mutex::new(Vec::new()));
        let log = Arc::clone(&saved);
        let known = over(Arc::new(move |stores| {
            log.lock().expect("no panic").push(stores.clone());
            Ok(())
        }));
        let failure = Failure::default();
        for (theirs, well) in
            [(hello(2, 0), false), (hello(2, 7), true), (hello(3, 8), true), (hello(2, 7), true), (hello(2, 9), false)]
        {
            assert_eq!(known.admit(&theirs, &failure).await.is_ok(), well, "{theirs:?}");
        }
        assert!(matches!(known.admit(&hello(3, 7), &failure).await, Err(Refusal::Replaced(_))));
        let store = |node_id, store_id| v1::KnownStore { node_id, store_id };
        let first = v1::KnownStores { stores: vec![store(2, 7)] };
        let second = v1::KnownStores { stores: vec![store(2, 7), store(3, 8)] };
        assert_eq!(*saved.lock().expect("no panic"), [first, second]);
        known.close();
        assert!(known.admit(&hello(2, 7), &failure).await.is_ok(), "it is known");
        assert!(matches!(known.admit(&hello(4, 1), &failure).await, Err(Refusal::Stranger(_))));
        assert!(!failure.is_set());
    }

    #[tokio::test]
    async fn a_disk_that_fails_to_remember_ends_the_store() {
        let known = over(Arc::new(|_| Err(StorageError::Io { operation: "sync", cause: "injected".into() })));
        let failure = Failure::default();
        assert!(known.admit(&hello(2, 7), &failure).await.is_err());
        assert!(failure.reason().is_some_and(|reason| reason.contains("remembering the store of node 2")));
    }

    #[test]
    fn golden() {
        let stores = v1::KnownStores { stores: vec![v1::KnownStore { node_id: 2, store_id: 258 }] };
        assert_eq!(record::encode(&stores)[4..], [1, 0x0a, 5, 8, 2, 16, 0x82, 2]);
    }
}
