//! flotilla-mutants: known bugs, put into the cores on purpose to see that the tests find them.
//!
//! Where a bug would go, a core asks [`Mutant::is_on`]. In a product build, which is one without the feature `mutants`,
//! that is `false` when it is compiled, and nothing of it is left. In a build with it a process may [choose](Mutant::choose)
//! one mutant, once and before it begins: so one build serves all of them.
//!
//! The cores read no setting and no environment for this: whoever runs them chooses (flotilla-sim's `--mutant`, the engine's
//! storms by the variable `MUTANT`). Which mutants there are, and what must find each, stands here alone; what was seen to find
//! them in docs/reliability.md.

use std::fmt;
use std::str::FromStr;

/// Whether a mutant can be chosen in this build.
pub const BUILT: bool = cfg!(feature = "mutants");

#[cfg(feature = "mutants")]
static CHOSEN: std::sync::OnceLock<Mutant> = std::sync::OnceLock::new();

/// What must notice a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// The simulation.
    Seeds,
    /// The simulation, and the storms of losses in the engine's tests.
    SeedsAndStorms,
    /// Nothing: it must do no harm.
    Nothing,
}

macro_rules! mutants {
    ($($variant:ident $name:literal: $what:literal),+ $(,)?) => {
        /// A known bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $(#[doc = $what] $variant),+
        }

        impl Mutant {
            /// Every one.
            pub const ALL: &[Mutant] = &[$(Self::$variant),+];

            /// What it is called.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What is broken by it.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$variant => $what),+ }
            }
        }
    };
}

mutants! {
    AckBeforePersist "ack-before-persist": "a follower acknowledges before its log is durable",
    VoteNotSaved "vote-not-saved": "the vote is not written",
    NoTermStampCheck "no-term-stamp-check": "apply does not compare a command's stamp; brings `late-proposals` along, without which that changes nothing",
    LeaseAfterTimeoutNow "lease-after-timeout-now": "a leader keeps its lease after it has told another to campaign",
    ReplayedSplitOverwrites "replayed-split-overwrites": "a split's parent is written apart from its children, and a split applied again overwrites a child's Raft state",
    NoEpochCheck "no-epoch-check": "apply takes commands of another epoch, and keys outside of the range",
    SnapshotOverOverlap "snapshot-over-overlap": "a snapshot is taken although another range here holds part of its span",
    TombstoneApart "tombstone-apart": "a removal leaves no tombstone",
    ExpiryOfTheRenewed "expiry-of-the-renewed": "a key ends although its ttl was renewed after the leader had looked",
    RemoveBeforeVoter "remove-before-voter": "an order takes a replica away before the one in its place is a voter",
    MergeWithoutAll "merge-without-all": "a quorum of the source's replicas stands still, and the target is asked to take it in",
    ThawWithoutProof "thaw-without-proof": "a source goes on after a while, without having asked what was decided",
    LeaseOverFreeze "lease-over-freeze": "a leader keeps its lease over a freeze",
    MergeTombstoneApart "merge-tombstone-apart": "a range is taken in, and its tombstone is written later",
    MergeKeepsCounter "merge-keeps-counter": "versions go on from the target's counter alone",
    MergedOutlivesSnapshot "merged-outlives-snapshot": "a snapshot leaves the replicas of ranges that it has taken in",
    SleepWithOneBehind "sleep-with-one-behind": "a leader falls asleep with a follower that is heard and not level",
    OrphansSleepOn "orphans-sleep-on": "those who follow a node do not wake when it is dead, or its process another one",
    OrdersBeforeWritten "orders-before-written": "placement sends out orders whose write is not acknowledged",
    LeaseFromReceipt "lease-from-receipt": "a lease runs from when an acknowledgement came, instead of from when the leader asked",
    LeaseWithoutDrift "lease-without-drift": "a lease runs for a whole election time-out: nothing is left for clocks that drift",
    VotesAfterRestart "votes-after-restart": "a store that restarted grants votes at once, and has forgotten what it promised its leader",
    ReadWithoutQuorum "read-without-quorum": "a leader answers a read without asking a quorum whether it still leads",
    ReadBeforeOwnTerm "read-before-own-term": "a leader serves reads before it has applied an entry of its own term",
    VoteBeforeDurable "vote-before-durable": "what promises a vote leaves before the vote is durable",
    AppliedIndexApart "applied-index-apart": "the applied index is written apart from what was applied",
    FormerChangeForgotten "former-change-forgotten": "a restarted replica does not know that the change of replicas before is committed",
    SnapshotKeepsOldKeys "snapshot-keeps-old-keys": "a snapshot leaves keys that its range no longer has",
    IngestWithoutIntent "ingest-without-intent": "a large snapshot is put in place without a record of it: a crash leaves half of it",
    ScanSkipsBorder "scan-skips-border": "a scan that goes on in the next range leaves its first key out",
    CorruptIsAbsent "corrupt-is-absent": "a key whose record cannot be read is taken for one that is not there",
    TtlWithoutDrift "ttl-without-drift": "the leader's clock counts for a ttl as if it could not run fast",
    RepeatUnknownWrite "repeat-unknown-write": "a write whose outcome is unknown is repeated as if it had surely failed",
    RecoverBehind "recover-behind": "of several voters the one with the oldest log goes on",
    RecoverSameReplica "recover-same-replica": "what goes on keeps its replica's id, and a term that the lost ones may reach",
    LateProposals "late-proposals": "no bug by itself: who leads again proposes its last writes of an earlier term once more",
}

impl Mutant {
    /// What must notice it.
    pub const fn found_by(self) -> FoundBy {
        match self {
            Self::LateProposals => FoundBy::Nothing,
            Self::RecoverBehind | Self::RecoverSameReplica => FoundBy::SeedsAndStorms,
            _ => FoundBy::Seeds,
        }
    }

    /// Whether this process has it.
    #[cfg(not(feature = "mutants"))]
    #[inline(always)]
    pub const fn is_on(self) -> bool {
        false
    }

    /// Whether this process has it.
    #[cfg(feature = "mutants")]
    pub fn is_on(self) -> bool {
        Self::chosen().is_some_and(|chosen| chosen.brings(self))
    }

    /// Whether a process that chose this one has the other one.
    #[cfg(feature = "mutants")]
    fn brings(self, other: Self) -> bool {
        self == other || (self == Self::NoTermStampCheck && other == Self::LateProposals)
    }

    /// The one that this process has chosen.
    pub fn chosen() -> Option<Self> {
        #[cfg(feature = "mutants")]
        return CHOSEN.get().copied();
        #[cfg(not(feature = "mutants"))]
        None
    }

    /// Chooses this one for the rest of the process, before anything asks for it.
    pub fn choose(self) -> Result<(), Refused> {
        #[cfg(feature = "mutants")]
        return match *CHOSEN.get_or_init(|| self) {
            chosen if chosen == self => Ok(()),
            chosen => Err(Refused(format!("mutant {self}: this process has {chosen} already"))),
        };
        #[cfg(not(feature = "mutants"))]
        Err(Refused(format!("mutant {self}: this build has none; build it with --features mutants")))
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mutant {
    type Err = Refused;

    fn from_str(name: &str) -> Result<Self, Refused> {
        let found = Self::ALL.iter().copied().find(|mutant| mutant.name() == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|mutant| mutant.name()).collect();
            Refused(format!("no mutant is called {name:?}; there are {}", names.join(", ")))
        })
    }
}

/// Why there is no such mutant here, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_called_by_its_variant_in_kebab_case() {
        for mutant in Mutant::ALL {
            let mut kebab = String::new();
            for letter in format!("{mutant:?}").chars() {
                if letter.is_uppercase() && !kebab.is_empty() {
                    kebab.push('-');
                }
                kebab.push(letter.to_ascii_lowercase());
            }
            assert_eq!(mutant.name(), kebab);
            assert_eq!(kebab.parse(), Ok(*mutant));
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_all_that_are_known() {
        let refused = "ack-after-persist".parse::<Mutant>().unwrap_err().to_string();
        assert!(refused.starts_with("no mutant is called \"ack-after-persist\"; there are ack-before-persist, "));
        assert!(Mutant::ALL.iter().all(|mutant| refused.contains(mutant.name())));
    }

    #[test]
    fn what_was_found_stands_in_the_documents() {
        let documents = include_str!("../../docs/reliability.md");
        for mutant in Mutant::ALL {
            assert!(documents.contains(&format!("| `{mutant}` |")), "{mutant} has no line in docs/reliability.md");
        }
    }

    #[cfg(not(feature = "mutants"))]
    #[test]
    fn a_product_build_has_none_and_says_so() {
        const { assert!(!BUILT && !Mutant::AckBeforePersist.is_on()) };
        let refused = Mutant::AckBeforePersist.choose().unwrap_err().to_string();
        assert_eq!(refused, "mutant ack-before-persist: this build has none; build it with --features mutants");
        assert_eq!(Mutant::chosen(), None);
    }

    #[cfg(feature = "mutants")]
    #[test]
    fn a_process_has_one_and_what_it_brings_along() {
        assert!(Mutant::ALL.iter().all(|mutant| !mutant.is_on()));
        Mutant::NoTermStampCheck.choose().unwrap();
        Mutant::NoTermStampCheck.choose().expect("the same again changes nothing");
        let refused = Mutant::VoteNotSaved.choose().unwrap_err().to_string();
        assert_eq!(refused, "mutant vote-not-saved: this process has no-term-stamp-check already");
        let on: Vec<Mutant> = Mutant::ALL.iter().copied().filter(|mutant| mutant.is_on()).collect();
        assert_eq!(on, [Mutant::NoTermStampCheck, Mutant::LateProposals]);
        assert!(!Mutant::LateProposals.brings(Mutant::NoTermStampCheck));
    }
}
