//! When the last log batches became durable, to tell the stages of a write apart.

use std::collections::VecDeque;

use flotilla_engine::time::BootTime;

/// So many syncs are remembered: more than any write under way needs, unless it is stuck.
const KEPT: usize = 1_024;

/// The last syncs: up to which sequence each went, and when it was reported.
#[derive(Debug, Default)]
pub(crate) struct Persisted {
    syncs: VecDeque<(u64, BootTime)>,
}

impl Persisted {
    /// Notes a sync.
    pub fn note(&mut self, sequence: u64, now: BootTime) {
        if self.syncs.len() == KEPT {
            self.syncs.pop_front();
        }
        self.syncs.push_back((sequence, now));
    }

    /// When the batch of this sequence became durable, if that is known.
    pub fn when(&self, sequence: u64) -> Option<BootTime> {
        let at = self.syncs.partition_point(|(last, _)| *last < sequence);
        self.syncs.get(at).map(|(_, when)| *when)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_covers_every_batch_up_to_its_last() {
        let mut persisted = Persisted::default();
        persisted.note(3, BootTime(30));
        persisted.note(4, BootTime(40));
        let when: Vec<_> = (1..=5).map(|sequence| persisted.when(sequence)).collect();
        assert_eq!(when, [Some(30), Some(30), Some(30), Some(40), None].map(|nanos| nanos.map(BootTime)));
    }
}
