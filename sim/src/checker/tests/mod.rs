//! Tests of the checkers: hand-written histories, then random ones against a brute-force checker.

mod bad;
mod brute;
mod expiry;
mod good;
mod random;

use super::history::{Expect, History, Input, OpId, Operation, Outcome, Output, Version};
use super::linearizability::{Budget, Verdict, Violation, check};

/// Builds histories on the key `k` with few words: intervals are given as (invoked, returned).
struct Script {
    history: History,
}

impl Script {
    fn new() -> Self {
        Self { history: History::new() }
    }

    fn op(self, window: (u64, u64), input: Input, outcome: Outcome) -> Self {
        self.op_for(0, window, input, outcome)
    }

    fn op_for(mut self, ttl_ns: u64, window: (u64, u64), input: Input, outcome: Outcome) -> Self {
        let client = self.history.len() as u64;
        let _ = self.history.push(Operation {
            client,
            key: "k".into(),
            input,
            ttl_ns,
            invoked_ns: window.0,
            returned_ns: Some(window.1),
            outcome,
        });
        self
    }

    fn ok(self, window: (u64, u64), input: Input, output: Output) -> Self {
        self.op(window, input, Outcome::Ok(output))
    }

    fn unknown(self, invoked: u64, input: Input) -> Self {
        self.op((invoked, invoked), input, Outcome::Unknown)
    }

    fn put(self, window: (u64, u64), value: &'static str, version: Version) -> Self {
        self.ok(window, Input::Put(value.into()), Output::Put { version })
    }

    fn put_for(self, ttl_ns: u64, window: (u64, u64), value: &'static str, version: Version) -> Self {
        self.op_for(ttl_ns, window, Input::Put(value.into()), Outcome::Ok(Output::Put { version }))
    }

    fn get(self, window: (u64, u64), value: &'static str, version: Version) -> Self {
        self.ok(window, Input::Get, Output::Get(Some((value.into(), version))))
    }

    fn get_nothing(self, window: (u64, u64)) -> Self {
        self.ok(window, Input::Get, Output::Get(None))
    }

    fn deleted(self, window: (u64, u64), version: Version) -> Self {
        self.ok(window, Input::Delete, Output::Delete { existed: true, version: Some(version) })
    }

    fn delete_nothing(self, window: (u64, u64)) -> Self {
        self.ok(window, Input::Delete, Output::Delete { existed: false, version: None })
    }

    fn applied(self, window: (u64, u64), input: Input, version: Version) -> Self {
        self.ok(window, input, Output::Applied { version })
    }

    fn exists(self, window: (u64, u64), value: &'static str, version: Version) -> Self {
        self.ok(window, if_absent(value), Output::Exists { version })
    }

    fn failed(self, window: (u64, u64), input: Input, found: Option<(&'static str, Version)>) -> Self {
        let current = found.map(|(value, version)| (value.into(), version));
        self.ok(window, input, Output::Failed { current })
    }

    /// The history must pass everything.
    fn passes(self) {
        let verdict = check(&self.history, Budget::default());
        assert!(verdict.is_ok(), "{verdict}\n{}", super::timeline(&self.history, &"k".into()));
        let findings = super::nothing_invented(&self.history);
        assert!(findings.is_empty(), "{findings:?}");
        let audit = super::nothing_lost(&self.history);
        assert!(audit.findings.is_empty(), "{audit:?}");
    }

    /// The history must be found out, and the explanation name exactly these operations.
    fn contradicts(self, core: &[usize]) {
        let violation = self.violation();
        let found: Vec<usize> = violation.core.iter().map(|id| id.0).collect();
        assert_eq!(found, core, "{}", violation.explanation);
    }

    fn violation(&self) -> Box<Violation> {
        match check(&self.history, Budget::default()) {
            Verdict::Violation(violation) => violation,
            other => panic!("{other}\n{}", super::timeline(&self.history, &"k".into())),
        }
    }
}

fn put(value: &'static str) -> Input {
    Input::Put(value.into())
}

fn if_absent(value: &'static str) -> Input {
    Input::PutIfAbsent(value.into())
}

fn swap(expect: Expect, new: &'static str) -> Input {
    Input::CompareAndSwap { expect, new: Some(new.into()) }
}

fn swap_value(expect: &'static str, new: &'static str) -> Input {
    swap(Expect::Value(expect.into()), new)
}

fn remove_value(expect: &'static str) -> Input {
    Input::CompareAndSwap { expect: Expect::Value(expect.into()), new: None }
}
