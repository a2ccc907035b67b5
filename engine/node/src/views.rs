//! What readers may know of each range: the newest view that the store's loop has published.
//!
//! The loop alone writes; any thread reads, and neither waits for the other.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use flotilla_engine::store::ReadView;
use flotilla_proto::RangeId;
use tokio::sync::watch;

type Cells = HashMap<RangeId, Arc<Cell>>;

/// A range's newest view.
#[derive(Debug)]
struct Cell {
    view: ArcSwap<ReadView>,
    /// It was read by the lease since the loop last asked.
    read: AtomicBool,
}

impl Cell {
    fn new(view: Arc<ReadView>) -> Arc<Self> {
        Arc::new(Self { view: ArcSwap::new(view), read: AtomicBool::new(false) })
    }
}

/// The newest view of each range of this store.
#[derive(Debug)]
pub struct Views {
    cells: ArcSwap<Cells>,
    led: AtomicUsize,
    leaderless: AtomicUsize,
    changes: watch::Sender<u64>,
    /// The ranges that are led by another one, or have another descriptor, or none any more, since somebody asked.
    changed: Mutex<BTreeSet<RangeId>>,
    /// The ranges that are awake, and those that were since somebody asked.
    stirred: Mutex<BTreeSet<RangeId>>,
    /// The ranges that were read by the lease since the loop last asked.
    read: Mutex<Vec<RangeId>>,
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
            leaderless: AtomicUsize::new(initial.iter().filter(|view| view.leader.is_none()).count()),
            changes: watch::Sender::new(0),
            changed: Mutex::new(initial.iter().map(|view| view.range()).collect()),
            stirred: Mutex::new(initial.iter().map(|view| view.range()).collect()),
            read: Mutex::default(),
        };
        let cells = initial.into_iter().map(|view| (view.range(), Cell::new(view))).collect::<Cells>();
        views.cells.store(Arc::new(cells));
        views
    }

    /// Makes each view the newest of its range. Called by the store's loop only.
    pub fn publish(&self, views: impl Iterator<Item = Arc<ReadView>>) {
        let cells = self.cells.load();
        // Ranges that begin: the table is copied once for all of them.
        let (mut grown, mut new): (Option<Cells>, Vec<RangeId>) = (None, Vec::new());
        for view in views {
            let known = cells.get(&view.range()).or_else(|| grown.as_ref()?.get(&view.range()));
            if let Some(cell) = known {
                self.replace(&cell.view, view);
                continue;
            }
            self.led.fetch_add(usize::from(leads(&view)), Ordering::Relaxed);
            self.leaderless.fetch_add(usize::from(view.leader.is_none()), Ordering::Relaxed);
            new.push(view.range());
            let grown = grown.get_or_insert_with(|| Cells::clone(&cells));
            grown.insert(view.range(), Cell::new(view));
        }
        if let Some(grown) = grown {
            self.cells.store(Arc::new(grown));
            self.stir(new.iter().copied());
            self.changed(new);
        }
    }

    fn replace(&self, cell: &ArcSwap<ReadView>, view: Arc<ReadView>) {
        let old = cell.swap(Arc::clone(&view));
        if leads(&old) != leads(&view) {
            self.led.fetch_add(usize::from(leads(&view)), Ordering::Relaxed);
            self.led.fetch_sub(usize::from(leads(&old)), Ordering::Relaxed);
        }
        if old.leader.is_none() != view.leader.is_none() {
            self.leaderless.fetch_add(usize::from(view.leader.is_none()), Ordering::Relaxed);
            self.leaderless.fetch_sub(usize::from(old.leader.is_none()), Ordering::Relaxed);
        }
        if old.asleep && !view.asleep {
            self.stir([view.range()]);
        }
        if old.leader != view.leader || !Arc::ptr_eq(&old.descriptor, &view.descriptor) {
            self.changed([view.range()]);
        }
    }

    /// Nothing can be read of these ranges here any more, until they are published again. Called by the store's loop
    /// only.
    pub fn withdraw(&self, ranges: impl Iterator<Item = RangeId>) {
        let cells = self.cells.load();
        // The table is copied once, however many ranges end: a dropped keyspace may have thousands.
        let (mut left, mut gone): (Option<Cells>, Vec<RangeId>) = (None, Vec::new());
        for range in ranges {
            if !cells.contains_key(&range) {
                continue;
            }
            gone.push(range);
            let left = left.get_or_insert_with(|| Cells::clone(&cells));
            if let Some(cell) = left.remove(&range) {
                let view = cell.view.load();
                self.led.fetch_sub(usize::from(leads(&view)), Ordering::Relaxed);
                self.leaderless.fetch_sub(usize::from(view.leader.is_none()), Ordering::Relaxed);
            }
        }
        if let Some(left) = left {
            self.cells.store(Arc::new(left));
            self.changed(gone);
        }
    }

    /// A range was read by the leader's lease, which the loop has no part in: it is not idle.
    pub fn note_read(&self, range: RangeId) {
        let cells = self.cells.load();
        let Some(cell) = cells.get(&range) else { return };
        if !cell.read.load(Ordering::Relaxed) && !cell.read.swap(true, Ordering::Relaxed) {
            self.read.lock().unwrap_or_else(PoisonError::into_inner).push(range);
        }
    }

    /// The ranges that were read by the lease since the last call.
    pub fn take_read(&self) -> Vec<RangeId> {
        let read = std::mem::take(&mut *self.read.lock().unwrap_or_else(PoisonError::into_inner));
        let cells = self.cells.load();
        for cell in read.iter().filter_map(|range| cells.get(range)) {
            cell.read.store(false, Ordering::Relaxed);
        }
        read
    }

    /// Called once the new views can be seen.
    fn changed(&self, ranges: impl IntoIterator<Item = RangeId>) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).extend(ranges);
        self.changes.send_modify(|count| *count += 1);
    }

    /// The ranges whose leader or descriptor is another one than at the last call, or that have begun or gone; at the first
    /// call all of them. What [`Views::get`] says of them then is not older than that.
    pub fn take_changed(&self) -> BTreeSet<RangeId> {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts the changes of leaders and descriptors.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The newest view of a range; `None`: no replica here.
    pub fn get(&self, range: RangeId) -> Option<Guard<Arc<ReadView>>> {
        self.cells.load().get(&range).map(|cell| cell.view.load())
    }

    /// Called once the new views can be seen.
    fn stir(&self, ranges: impl IntoIterator<Item = RangeId>) {
        self.stirred.lock().unwrap_or_else(PoisonError::into_inner).extend(ranges);
    }

    /// The newest views of the ranges that are awake, or were since the last call; at the first call of all. What sleeps on
    /// costs nothing.
    pub fn take_stirred(&self) -> Vec<Arc<ReadView>> {
        let mut stirred = self.stirred.lock().unwrap_or_else(PoisonError::into_inner);
        let views: Vec<_> = stirred.iter().filter_map(|range| self.get(*range)).map(|view| Arc::clone(&view)).collect();
        *stirred = views.iter().filter(|view| !view.asleep).map(|view| view.range()).collect();
        views
    }

    /// The newest views of all ranges, by range id.
    pub fn all(&self) -> Vec<Arc<ReadView>> {
        let mut views: Vec<_> = self.cells.load().values().map(|cell| cell.view.load_full()).collect();
        views.sort_by_key(|view| view.range());
        views
    }

    /// How many replicas are here.
    pub fn len(&self) -> usize {
        self.cells.load().len()
    }

    /// How many of them know no leader.
    pub fn leaderless(&self) -> usize {
        self.leaderless.load(Ordering::Relaxed)
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

#[cfg(test)]
mod tests {
    use flotilla_engine::store::RangeClock;
    use flotilla_engine::time::BootTime;
    use flotilla_proto::{NodeId, v1};

    use super::*;

    fn view(range_id: u64, leader: u64, asleep: bool) -> Arc<ReadView> {
        Arc::new(ReadView {
            own_node: NodeId(1),
            descriptor: Arc::new(v1::RangeDescriptor { range_id, ..Default::default() }),
            siblings: Arc::default(),
            term: 1,
            leader: (leader != 0).then_some(NodeId(leader)),
            serves: false,
            asleep,
            lease_until: BootTime::default(),
            clock: RangeClock { ms: 0, at: BootTime::default() },
            incarnation: 1,
            tally: None,
            frozen: false,
        })
    }

    fn stirred(views: &Views) -> Vec<u64> {
        views.take_stirred().iter().map(|view| view.range().0).collect()
    }

    #[test]
    fn what_sleeps_on_is_looked_at_once_and_what_is_awake_always() {
        let views = Views::new(vec![view(2, 1, true), view(3, 2, false)]);
        assert_eq!(stirred(&views), [2, 3]);
        assert_eq!(stirred(&views), [3]);
        views.publish([view(2, 1, false), view(3, 2, true)].into_iter());
        assert_eq!(stirred(&views), [2, 3], "one woke, the other one may have been written to before it fell asleep");
        assert_eq!(stirred(&views), [2]);
        views.publish([view(2, 1, true), view(2, 1, false), view(4, 1, true)].into_iter());
        assert_eq!(stirred(&views), [2, 4]);
        views.withdraw([RangeId(2)].into_iter());
        assert!(stirred(&views).is_empty());
    }

    #[test]
    fn changes_of_leaders_and_ranges_are_told_once() {
        let views = Views::new(vec![view(2, 0, false)]);
        let changed = |views: &Views| views.take_changed().iter().map(|range| range.0).collect::<Vec<_>>();
        assert_eq!((changed(&views), views.leaderless()), (vec![2], 1));
        let led = view(2, 1, false);
        views.publish([Arc::clone(&led), view(3, 0, false)].into_iter());
        assert_eq!((changed(&views), views.led(), views.leaderless()), (vec![2, 3], 1, 1));
        views.publish([led].into_iter());
        assert!(changed(&views).is_empty());
        views.withdraw([RangeId(3)].into_iter());
        assert_eq!((changed(&views), views.leaderless()), (vec![3], 0));
    }
}
