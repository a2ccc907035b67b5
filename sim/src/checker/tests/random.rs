//! Random histories: linearizable ones must pass, corrupted ones must be judged as brute force does.

use super::*;
use crate::checker::{nothing_invented, nothing_lost};

/// SplitMix64: enough for tests, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What a generated workload looks like.
#[derive(Default)]
struct Shape {
    clients: usize,
    operations: usize,
    /// Chance that a client gives up waiting, at each step; such requests linger.
    unknown_percent: u64,
    /// How many values there are; 0: every write has its own.
    values: u64,
    /// Gaps between versions, as other keys of the range leave them.
    version_gap: u64,
    /// How many of the writes have a ttl (those write a value of their own), of at most so much.
    ttl_percent: u64,
    ttl_max: u64,
}

enum Phase {
    Idle,
    Waiting(OpId),
    Answered(OpId, Outcome),
}

/// One atomic register, with clients that invoke, take effect and return at random moments.
struct World {
    random: Random,
    shape: Shape,
    history: History,
    current: Option<(bytes::Bytes, Version)>,
    /// When that ends by itself at the earliest.
    ends_ns: Option<u64>,
    seen: Vec<(bytes::Bytes, Version)>,
    last: Version,
    lingering: Vec<OpId>,
    now_ns: u64,
}

impl World {
    fn run(seed: u64, shape: Shape) -> History {
        let mut world = Self {
            random: Random(seed),
            shape,
            history: History::new(),
            current: None,
            ends_ns: None,
            seen: Vec::new(),
            last: 0,
            lingering: Vec::new(),
            now_ns: 0,
        };
        let mut phases: Vec<Phase> = (0..world.shape.clients).map(|_| Phase::Idle).collect();
        while world.history.len() < world.shape.operations {
            world.now_ns += world.random.below(3);
            if world.ends_ns.is_some_and(|ends_ns| ends_ns <= world.now_ns) && world.random.percent(20) {
                world.write(None, None);
            }
            if world.random.percent(2 + world.shape.unknown_percent) && !world.lingering.is_empty() {
                let at = world.random.below(world.lingering.len() as u64) as usize;
                let id = world.lingering.swap_remove(at);
                let _ = world.take_effect(id);
            }
            let client = world.random.below(phases.len() as u64) as usize;
            let phase = std::mem::replace(&mut phases[client], Phase::Idle);
            phases[client] = world.advance(client as u64, phase);
        }
        world.history
    }

    fn advance(&mut self, client: u64, phase: Phase) -> Phase {
        match phase {
            Phase::Idle => {
                let drawn = self.input();
                let (input, ttl_ns) = self.mortal(drawn);
                let id = self.history.invoke(client, self.now_ns, "k".into(), input);
                self.history.ends_after(id, ttl_ns);
                Phase::Waiting(id)
            }
            Phase::Waiting(id) if self.random.percent(self.shape.unknown_percent) => {
                // May still take effect, or be lost.
                if self.random.percent(60) {
                    self.lingering.push(id);
                }
                self.history.complete(id, self.now_ns, Outcome::Unknown);
                Phase::Idle
            }
            Phase::Waiting(id) if self.random.percent(3) => Phase::Answered(id, Outcome::NotApplied),
            Phase::Waiting(id) => Phase::Answered(id, Outcome::Ok(self.take_effect(id))),
            Phase::Answered(id, outcome) => {
                let lost = self.random.percent(self.shape.unknown_percent);
                let outcome = if lost { Outcome::Unknown } else { outcome };
                self.history.complete(id, self.now_ns, outcome);
                Phase::Idle
            }
        }
    }

    fn input(&mut self) -> Input {
        let expect = match self.random.below(3) {
            0 => Expect::Absent,
            1 => Expect::Value(self.seen_before().0),
            _ => Expect::Version(self.seen_before().1),
        };
        match self.random.below(12) {
            0..4 => Input::Get,
            4..6 => Input::Put(self.value()),
            6 => Input::PutIfAbsent(self.value()),
            7 => Input::Delete,
            8 => Input::CompareAndSwap { expect, new: None },
            _ => Input::CompareAndSwap { expect, new: Some(self.value()) },
        }
    }

    /// Gives some writes a ttl, and a value of their own.
    fn mortal(&mut self, input: Input) -> (Input, u64) {
        let own = bytes::Bytes::from(format!("t{}", self.history.len()));
        let mortal = match &input {
            Input::Put(_) => Input::Put(own),
            Input::PutIfAbsent(_) => Input::PutIfAbsent(own),
            Input::CompareAndSwap { expect, new: Some(_) } => {
                Input::CompareAndSwap { expect: expect.clone(), new: Some(own) }
            }
            _ => return (input, 0),
        };
        if !self.random.percent(self.shape.ttl_percent) {
            return (input, 0);
        }
        (mortal, 1 + self.random.below(self.shape.ttl_max))
    }

    fn value(&mut self) -> bytes::Bytes {
        let distinct = self.shape.values;
        let number = if distinct == 0 { self.history.len() as u64 } else { self.random.below(distinct) };
        format!("v{number}").into()
    }

    /// What the key holds, or held not long ago.
    fn seen_before(&mut self) -> (bytes::Bytes, Version) {
        if self.seen.is_empty() {
            return ("nothing".into(), 1);
        }
        let back = 1 + self.random.below(3.min(self.seen.len() as u64));
        self.seen[self.seen.len() - back as usize].clone()
    }

    fn write(&mut self, value: Option<bytes::Bytes>, ends_ns: Option<u64>) -> Version {
        self.ends_ns = ends_ns.filter(|_| value.is_some());
        self.last += 1 + self.random.below(1 + self.shape.version_gap);
        self.current = value.map(|value| (value, self.last));
        self.seen.extend(self.current.clone());
        self.last
    }

    fn take_effect(&mut self, id: OpId) -> Output {
        let current = self.current.clone();
        let operation = self.history.operation(id);
        let ends = (operation.ttl_ns > 0).then_some(operation.invoked_ns + operation.ttl_ns);
        match operation.input.clone() {
            Input::Get => Output::Get(current),
            Input::Put(value) => Output::Put { version: self.write(Some(value), ends) },
            Input::PutIfAbsent(value) => match current {
                Some((_, version)) => Output::Exists { version },
                None => Output::Applied { version: self.write(Some(value), ends) },
            },
            Input::Delete if current.is_none() => Output::Delete { existed: false, version: None },
            Input::Delete => {
                let version = self.write(None, None);
                let version = self.random.percent(70).then_some(version);
                Output::Delete { existed: true, version }
            }
            Input::CompareAndSwap { expect, new } => {
                let holds = match (&expect, &current) {
                    (Expect::Absent, found) => found.is_none(),
                    (Expect::Value(expected), Some((value, _))) => expected == value,
                    (Expect::Version(expected), Some((_, version))) => expected == version,
                    _ => false,
                };
                if holds { Output::Applied { version: self.write(new, ends) } } else { Output::Failed { current } }
            }
        }
    }
}

fn operations(history: &History) -> Vec<Operation> {
    history.operations().map(|(_, operation)| operation.clone()).collect()
}

fn pushed(operations: &[Operation]) -> History {
    let mut history = History::new();
    for operation in operations {
        history.push(operation.clone());
    }
    history
}

/// Changes one answer.
fn corrupt(random: &mut Random, operations: &mut [Operation], highest: Version) {
    let answered: Vec<usize> =
        (0..operations.len()).filter(|at| matches!(operations[*at].outcome, Outcome::Ok(_))).collect();
    if answered.is_empty() {
        return;
    }
    let at = answered[random.below(answered.len() as u64) as usize];
    let other = random.below(operations.len() as u64) as usize;
    let some_value = match &operations[other].input {
        Input::Put(value) | Input::PutIfAbsent(value) | Input::CompareAndSwap { new: Some(value), .. } => value.clone(),
        _ => "v0".into(),
    };
    let version = 1 + random.below(highest + 1);
    let found = random.percent(75).then_some((some_value, version));
    let output = match &operations[at].input {
        Input::Get => Output::Get(found),
        Input::Put(_) => Output::Put { version },
        Input::Delete => {
            let reported = random.percent(70).then_some(version);
            Output::Delete { existed: found.is_some(), version: reported.filter(|_| found.is_some()) }
        }
        Input::PutIfAbsent(_) if random.percent(50) => Output::Exists { version },
        Input::CompareAndSwap { .. } if random.percent(50) => Output::Failed { current: found },
        _ => Output::Applied { version },
    };
    operations[at].outcome = Outcome::Ok(output);
}

/// The highest version that anybody speaks of.
fn highest_version(operations: &[Operation]) -> Version {
    let of = |operation: &Operation| match &operation.outcome {
        Outcome::Ok(Output::Get(Some((_, version))))
        | Outcome::Ok(Output::Failed { current: Some((_, version)) })
        | Outcome::Ok(Output::Put { version } | Output::Applied { version })
        | Outcome::Ok(Output::Exists { version }) => *version,
        Outcome::Ok(Output::Delete { version, .. }) => version.unwrap_or(0),
        _ => 0,
    };
    let expected = |operation: &Operation| match &operation.input {
        Input::CompareAndSwap { expect: Expect::Version(version), .. } => *version,
        _ => 0,
    };
    operations.iter().map(|operation| of(operation).max(expected(operation))).max().unwrap_or(0)
}

#[test]
fn long_linearizable_histories_pass() {
    for seed in 0..60 {
        let shape = Shape {
            clients: 8 << (seed % 4),
            operations: 3000,
            unknown_percent: seed % 8,
            values: if seed % 8 == 0 { 20 } else { 0 },
            version_gap: seed % 3,
            ttl_percent: 20 * (seed % 4),
            ttl_max: 400,
        };
        let history = World::run(seed, shape);
        let verdict = check(&history, Budget::default());
        assert!(verdict.is_ok(), "seed {seed}: {verdict}");
        let findings = nothing_invented(&history);
        assert!(findings.is_empty(), "seed {seed}: {findings:?}");
        let audit = nothing_lost(&history);
        assert!(audit.findings.is_empty(), "seed {seed}: {audit:?}");
    }
}

#[test]
fn a_hot_key_with_hundreds_of_unknown_outcomes_is_decided() {
    for seed in 100..104 {
        let shape =
            Shape { clients: 64, operations: 8000, unknown_percent: 6, values: 0, version_gap: 2, ..Shape::default() };
        let verdict = check(&World::run(seed, shape), Budget::default());
        assert!(verdict.is_ok(), "seed {seed}: {verdict}");
    }
}

#[test]
fn tiny_histories_are_judged_as_by_brute_force() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..30_000 {
        let mut random = Random(seed ^ 0xabcd);
        let shape = Shape {
            clients: 2 + random.below(3) as usize,
            operations: 3 + random.below(5) as usize,
            unknown_percent: random.below(80),
            values: random.below(4),
            version_gap: random.below(2),
            ttl_percent: 40 * (seed % 3),
            ttl_max: 8,
        };
        let recorded = World::run(seed, shape);
        let mut operations = operations(&recorded);
        for _ in 0..random.below(4) {
            let highest = highest_version(&operations).max(2);
            corrupt(&mut random, &mut operations, highest);
        }
        *if judge_as_brute_force(&operations, seed) { &mut good } else { &mut bad } += 1;
    }
    assert!(good > 5_000 && bad > 5_000, "{good} good and {bad} bad ones: too one-sided");
}

/// Few answers, many open operations, and no register behind them: mostly contradictions, whose few
/// exceptions need just the right open operations in the right order.
#[test]
fn invented_histories_are_judged_as_by_brute_force() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..60_000 {
        let mut random = Random(seed);
        let count = 2 + random.below(2) + random.below(4);
        let mut definite_left = 2 + random.below(2);
        let spread = random.below(3);
        let mortal = random.below(2 * count);
        let mut operations = Vec::new();
        for at in 0..count {
            let definite = random.below(count - at) < definite_left;
            definite_left -= u64::from(definite);
            let mut input = invented_input(&mut random);
            let mut ttl_ns = 0;
            if at == mortal
                && let Input::Put(value) | Input::PutIfAbsent(value) | Input::CompareAndSwap { new: Some(value), .. } =
                    &mut input
            {
                *value = MORTAL.into();
                ttl_ns = 1 + 10 * random.below(4);
            }
            let start = if definite { 10 * at } else { 0 };
            operations.push(Operation {
                client: at,
                key: "k".into(),
                outcome: if definite { invented_outcome(&mut random, &input) } else { Outcome::Unknown },
                input,
                ttl_ns,
                invoked_ns: start,
                returned_ns: Some(start + 5 + 10 * random.below(1 + spread)),
            });
        }
        *if judge_as_brute_force(&operations, seed) { &mut good } else { &mut bad } += 1;
    }
    assert!(good > 5_000 && bad > 5_000, "{good} good and {bad} bad ones: too one-sided");
}

fn invented_value(random: &mut Random) -> bytes::Bytes {
    format!("v{}", random.below(3)).into()
}

/// A value that at most one operation writes, one with a ttl.
const MORTAL: &str = "t";

fn named_value(random: &mut Random) -> bytes::Bytes {
    if random.percent(30) { MORTAL.into() } else { invented_value(random) }
}

fn invented_input(random: &mut Random) -> Input {
    match random.below(10) {
        0..2 => Input::Put(invented_value(random)),
        2..4 => Input::PutIfAbsent(invented_value(random)),
        4..6 => Input::Delete,
        6 => Input::Get,
        _ => {
            let expect = match random.below(5) {
                0 => Expect::Absent,
                1..3 => Expect::Value(named_value(random)),
                _ => Expect::Version(1 + random.below(4)),
            };
            let new = random.percent(70).then(|| invented_value(random));
            Input::CompareAndSwap { expect, new }
        }
    }
}

fn invented_outcome(random: &mut Random, input: &Input) -> Outcome {
    let version = 1 + random.below(6);
    let found = random.percent(60).then(|| (named_value(random), version));
    Outcome::Ok(match input {
        Input::Get => Output::Get(found),
        Input::Put(_) => Output::Put { version },
        Input::Delete => {
            let version = random.percent(70).then_some(version).filter(|_| found.is_some());
            Output::Delete { existed: found.is_some(), version }
        }
        Input::PutIfAbsent(_) if random.percent(70) => Output::Exists { version },
        Input::CompareAndSwap { .. } if random.percent(40) => Output::Failed { current: found },
        _ => Output::Applied { version },
    })
}

/// Whether both checkers accept the history; they must agree, also on the core.
fn judge_as_brute_force(operations: &[Operation], seed: u64) -> bool {
    let history = pushed(operations);
    let limit = highest_version(operations);
    let verdict = check(&history, Budget::default());
    assert!(!matches!(verdict, Verdict::Undecided { .. }), "seed {seed}: {verdict}");
    assert_eq!(
        verdict.is_ok(),
        brute::linearizable(operations, limit),
        "seed {seed}: {verdict}\n{}",
        super::super::timeline(&history, &"k".into())
    );
    if let Verdict::Violation(violation) = &verdict {
        core_is_a_contradiction(operations, &violation.core, limit, seed);
    } else {
        assert_eq!(nothing_invented(&history), [], "seed {seed}");
        assert_eq!(nothing_lost(&history).findings, [], "seed {seed}");
    }
    verdict.is_ok()
}

/// Weakens all but the core and asks brute force again.
fn core_is_a_contradiction(all: &[Operation], core: &[OpId], limit: Version, seed: u64) {
    let weakened: Vec<Operation> = all
        .iter()
        .enumerate()
        .map(|(at, operation)| {
            let mut operation = operation.clone();
            let had_effect = !matches!(
                operation.outcome,
                Outcome::Ok(
                    Output::Get(_)
                        | Output::Exists { .. }
                        | Output::Failed { .. }
                        | Output::Delete { existed: false, .. }
                )
            );
            if operation.outcome != Outcome::NotApplied && !core.contains(&OpId(at)) {
                operation.outcome = if had_effect { Outcome::Unknown } else { Outcome::NotApplied };
            }
            operation
        })
        .collect();
    assert!(!brute::linearizable(&weakened, limit), "seed {seed}: core {core:?} is possible");
}

#[test]
fn a_corrupted_answer_in_a_long_history_is_decided() {
    let mut found = 0;
    for seed in 0..60 {
        let shape = Shape {
            clients: 16,
            operations: 2000,
            unknown_percent: 5,
            values: 0,
            version_gap: 1,
            ttl_percent: 10 * (seed % 3),
            ttl_max: 300,
        };
        let recorded = World::run(seed, shape);
        let mut operations = operations(&recorded);
        let mut random = Random(seed);
        let highest = highest_version(&operations);
        corrupt(&mut random, &mut operations, highest);
        match check(&pushed(&operations), Budget::default()) {
            Verdict::Violation(violation) => {
                found += 1;
                assert!(violation.core.len() <= 6, "seed {seed}: {}", violation.explanation);
            }
            Verdict::Ok(_) => {}
            undecided @ Verdict::Undecided { .. } => panic!("seed {seed}: {undecided}"),
        }
    }
    // The others remain possible, such as a read of nothing while a delete was under way.
    assert!(found >= 45, "only {found} of 60 corrupted answers were found");
}
