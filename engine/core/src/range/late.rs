//! A fault on demand, never in a product build (the mutant `late-proposals`): a replica that leads
//! again proposes its last writes of an earlier term a second time, as they were evaluated then.
//!
//! With the stamp checked at apply this is harmless: every replica skips them. Without the check
//! (`no-term-stamp-check`, which brings this one along) they are applied twice, or after their callers
//! were told that they were not. So the simulation passes with this fault alone, and must fail with both.

use flotilla_mutants::Mutant;
use flotilla_proto::v1;

use super::Range;

/// How many writes are remembered.
const LATE_MAX: usize = 8;

impl Range {
    pub(super) fn remember_for_late(&mut self, requests: &[v1::WriteRequest]) {
        if !Mutant::LateProposals.is_on() {
            return;
        }
        self.late.push((self.term(), requests.to_vec()));
        if self.late.len() > LATE_MAX {
            self.late.remove(0);
        }
    }

    pub(super) fn propose_late(&mut self) {
        if !self.leads() {
            return;
        }
        for (term, requests) in std::mem::take(&mut self.late) {
            if term == self.term() {
                self.late.push((term, requests));
            } else {
                // Refused: as good as forgotten.
                let _ = self.propose_stamped(term, v1::Command { requests, ..Default::default() });
            }
        }
    }
}
