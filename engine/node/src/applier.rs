//! Where committed entries are applied: inline, in the store's loop.
//!
//! On few cores a hop to another thread costs more than it wins. The loop knows only [`Applier::run`],
//! whose results it treats as inputs of a following turn, so that workers can take its place.

use std::sync::Arc;

use flotilla_engine::apply::{ApplyError, ApplyStage, ApplyTask};
use flotilla_engine::storage::Storage;
use flotilla_engine::store::Input;
use flotilla_engine::time::BootTime;

use crate::checks::Checks;
use crate::clock;
use crate::counters::Counters;

/// The apply stage with its storage.
pub(crate) struct Applier<S> {
    stage: ApplyStage,
    storage: S,
    counters: Arc<Counters>,
    checks: Arc<Checks>,
    /// When the last pass began and ended.
    last_pass: (BootTime, BootTime),
}

impl<S: Storage + Clone> Applier<S> {
    /// An applier that goes on where recovery found the store.
    pub fn new(stage: ApplyStage, storage: S, counters: Arc<Counters>, checks: Arc<Checks>) -> Self {
        Self { stage, storage, counters, checks, last_pass: Default::default() }
    }

    /// Takes tasks; what became of them is added to `done`, now or at a later call.
    pub fn run(&mut self, tasks: Vec<ApplyTask>, done: &mut Vec<Input>) -> Result<(), ApplyError> {
        let began = clock::now();
        let checks = &self.checks;
        let mut show = |storage: &S, checkpoint| checks.begin(storage, checkpoint);
        let applied = self.stage.apply(&self.storage, tasks, &mut show)?;
        let ended = clock::now();
        self.counters.apply_pass.record(ended.since(began));
        self.last_pass = (began, ended);
        done.extend(applied.into_iter().map(Input::Applied));
        Ok(())
    }

    /// When the last pass began and ended.
    pub fn last_pass(&self) -> (BootTime, BootTime) {
        self.last_pass
    }
}
