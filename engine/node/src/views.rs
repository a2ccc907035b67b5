//! What readers may know of each range: the newest view that the store's loop has published.
//!
//! The loop alone writes; any thread reads, and neither waits for the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::{ArcSwap, Guard};
use flotilla_engine::store::ReadView;
use flotilla_proto::RangeId;
use tokio::sync::watch;

type Cells = HashMap<RangeId, Arc<ArcSwap<ReadView>>>;

/// The newest view of each range of this store.
#[derive(Debug)]
pub struct Views {
    cells: ArcSwap<Cells>,
    led: AtomicUsize,
    changes: watch::Sender<u64>,
}

fn leads(view: &ReadView) -> bool {
    view.leader == Some(view.own_node)
}

impl Views {
    /// The views that a store begins with.
    pub fn new(initial: Vec<Arc<ReadView>>) -> Self {
        let views = Self {
            cells: ArcSwap::default(),
            led: AtomicUsize::new(initial.iter().filter(|view| leads(view)).count()),
            changes: watch::Sender::new(0),
        };
        let cells = initial.into_iter().map(|view| (view.range(), Arc::new(ArcSwap::new(view)))).collect::<Cells>();
        views.cells.store(Arc::new(cells));
        views
    }

    /// Makes each view the newest of its range. Called by the store's loop only.
    pub fn publish(&self, views: impl Iterator<Item = Arc<ReadView>>) {
        let cells = self.cells.load();
        // Ranges that begin: the table is copied once for all of them.
        let mut grown: Option<Cells> = None;
        for view in views {
            let known = cells.get(&view.range()).or_else(|| grown.as_ref()?.get(&view.range()));
            if let Some(cell) = known {
                self.replace(cell, view);
                continue;
            }
            self.led.fetch_add(usize::from(leads(&view)), Ordering::Relaxed);
            let grown = grown.get_or_insert_with(|| Cells::clone(&cells));
            grown.insert(view.range(), Arc::new(ArcSwap::new(view)));
        }
        if let Some(grown) = grown {
            self.cells.store(Arc::new(grown));
            self.changed();
        }
    }

    fn replace(&self, cell: &ArcSwap<ReadView>, view: Arc<ReadView>) {
        let old = cell.swap(Arc::clone(&view));
        if leads(&old) != leads(&view) {
            self.led.fetch_add(usize::from(leads(&view)), Ordering::Relaxed);
            self.led.fetch_sub(usize::from(leads(&old)), Ordering::Relaxed);
        }
        if old.leader != view.leader || !Arc::ptr_eq(&old.descriptor, &view.descriptor) {
            self.changed();
        }
    }

    /// Nothing can be read of these ranges here any more, until they are published again. Called by the store's loop
    /// only.
    pub fn withdraw(&self, ranges: impl Iterator<Item = RangeId>) {
        let cells = self.cells.load();
        // The table is copied once, however many ranges end: a dropped keyspace may have thousands.
        let mut left: Option<Cells> = None;
        for range in ranges {
            if !cells.contains_key(&range) {
                continue;
            }
            let left = left.get_or_insert_with(|| Cells::clone(&cells));
            if let Some(cell) = left.remove(&range) {
                self.led.fetch_sub(usize::from(leads(&cell.load())), Ordering::Relaxed);
            }
        }
        if let Some(left) = left {
            self.cells.store(Arc::new(left));
            self.changed();
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Counts the changes of leaders and descriptors.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The newest view of a range; `None`: no replica here.
    pub fn get(&self, range: RangeId) -> Option<Guard<Arc<ReadView>>> {
        self.cells.load().get(&range).map(|cell| cell.load())
    }

    /// The newest views of all ranges, by range id.
    pub fn all(&self) -> Vec<Arc<ReadView>> {
        let mut views: Vec<_> = self.cells.load().values().map(|cell| cell.load_full()).collect();
        views.sort_by_key(|view| view.range());
        views
    }

    /// Whether there is no replica here.
    pub fn is_empty(&self) -> bool {
        self.cells.load().is_empty()
    }

    /// How many ranges this store leads.
    pub fn led(&self) -> usize {
        self.led.load(Ordering::Relaxed)
    }
}
