//! What becomes of a store in which damage was seen: bytes that are not what was written, or files that are gone.
//!
//! Place in the flow: every read of [`crate::RocksStorage`], the scrub, and whoever finds records that cannot be read come
//! here. First nothing is read any more, then the mark is left in the directory (`directory/damage.rs`), then
//! whoever listens is told; the process ends by that. A process that is killed in between meets the damage again.

use std::sync::{Mutex, OnceLock, PoisonError};

use flotilla_engine::storage::{Result, StorageError};

use crate::directory::StoreDirectory;
use crate::error::read_error;
use crate::rocks::{Inner, RocksStorage};

type Listener = Box<dyn Fn(&str) + Send + Sync>;

/// Whether damage was seen, and who is to be told.
#[derive(Default)]
pub(crate) struct Damage {
    seen: OnceLock<String>,
    /// What is told: what was seen, and whether there is a mark.
    told: OnceLock<String>,
    listener: Mutex<Option<Listener>>,
}

impl Damage {
    /// What was seen first.
    pub(crate) fn seen(&self) -> Option<&str> {
        self.seen.get().map(String::as_str)
    }

    /// What there is to tell, if damage was seen: from then on reads wait until the mark is left, or a process that ends by the first of them
    /// would leave none, and would not say what is wrong.
    fn told(&self) -> Option<&str> {
        self.seen.get().map(|_| self.told.wait().as_str())
    }

    /// Takes note, and returns what there is to tell.
    pub(crate) fn note(&self, seen: &str, directory: &StoreDirectory) -> String {
        if self.seen.set(seen.to_owned()).is_err() {
            return self.told.wait().clone();
        }
        let mark = match directory.mark_damaged(seen) {
            Ok(()) => format!("a mark in {} keeps it from being started again", directory.path().display()),
            Err(error) => format!("no mark could be left: {error}"),
        };
        let told = self.told.get_or_init(|| format!("the store is damaged: {seen} ({mark})")).clone();
        if let Some(listener) = &*self.listener.lock().unwrap_or_else(PoisonError::into_inner) {
            listener(&told);
        }
        told
    }

    /// Tells `listener` from now on, and at once if there is something to tell.
    pub(crate) fn listen(&self, listener: Listener) {
        let mut slot = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = self.told.get() {
            listener(told);
        }
        *slot = Some(listener);
    }
}

impl RocksStorage {
    /// Says that the store holds what was not written, or lacks what was: leaves a mark in its directory, tells whoever
    /// listens ([`Self::on_damage`]), and reads and writes nothing any more. Of several the first counts.
    pub fn note_damage(&self, seen: &str) {
        self.inner.note_damage(seen);
    }

    /// What is called when damage is met; at once, if it was before. One listener.
    pub fn on_damage(&self, listener: Box<dyn Fn(&str) + Send + Sync>) {
        self.inner.damage.listen(listener);
    }

    /// What was seen of damage, if any was.
    pub fn damage(&self) -> Option<&str> {
        self.inner.damage.seen()
    }
}

impl Inner {
    /// Fails if the store was seen to be damaged.
    pub(crate) fn check_sound(&self) -> Result<()> {
        match self.damage.told() {
            None => Ok(()),
            Some(told) => Err(StorageError::Corrupt { what: told.into() }),
        }
    }

    /// See [`RocksStorage::note_damage`].
    pub(crate) fn note_damage(&self, seen: &str) {
        let told = self.damage.note(seen, &self.directory);
        // An earlier failure has stopped the writes already.
        let _ = self.failure.set(StorageError::Corrupt { what: told });
    }

    /// What a failed read is; damage is noted.
    pub(crate) fn read_failed(&self, operation: &'static str, error: &rocksdb::Error) -> StorageError {
        let error = read_error(operation, error);
        if let StorageError::Corrupt { what } = &error {
            self.note_damage(what);
        }
        error
    }
}
