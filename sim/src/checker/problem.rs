//! One key's operations, prepared for the search: actions, orders, and classes of open operations.
//!
//! Invariants: `ops[..definite]` took effect for certain (they have a known answer, or [`super::infer`]
//! found that they must have) and must all be placed; `ops[definite..]` are open (unknown outcome, able
//! to have an effect) and may be placed. Both parts are in the order of invocation. Surely failed
//! operations and open reads are left out: neither has an effect.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{History, Input, Moment, OpId, Outcome, Output, Value, Version};
use super::infer;
use super::model::{self, Action, Need, Then, UNNAMED, ValueId};

/// One operation of the problem.
pub(super) struct Op {
    pub id: OpId,
    pub invoked: Moment,
    pub returned: Moment,
    pub action: Action,
    /// Not the operation itself: the end of what it wrote, when its ttl is over.
    pub ends: bool,
}

/// Open operations that nothing can tell apart but the time of their invocation, earliest first.
/// Where a linearization uses a later one before (or instead of) an earlier one, exchanging the two
/// keeps it valid: the earlier was invoked by then, and an open operation never has to have ended.
/// So it is enough to use the members in order.
pub(super) struct Class {
    pub action: Action,
    pub members: Vec<usize>,
}

/// What the end of a value by its ttl may be applied to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// To that value alone.
    OfTheirOwn,
    /// Where nobody saw the value, and its write is of unknown outcome, to whatever is there: as if it had been written
    /// just before. Such ends can be told apart by nothing but their time, as plain deletions; which is much cheaper, and
    /// lax: what is a contradiction even so is a real one.
    OfAny,
}

/// Everything the search needs to know about one key.
pub(super) struct Problem {
    pub ops: Vec<Op>,
    pub definite: usize,
    /// Definite operations by the end of their interval.
    pub by_return: Vec<usize>,
    /// Definite operations that speak of a version, by the highest that the key may have reached
    /// before them.
    pub by_version: Vec<(Version, usize)>,
    pub classes: Vec<Class>,
    /// For each value, the classes that write it.
    pub writers: Vec<Vec<usize>>,
    /// The classes that delete.
    pub deleters: Vec<usize>,
    /// The class of puts of values that nobody names, and that of plain deletes.
    pub plain_put: Option<usize>,
    pub plain_delete: Option<usize>,
    names: Vec<Value>,
}

impl Problem {
    /// Prepares the operations `ids` of one key. Those for which `known` is false are weakened: a
    /// write counts as of unknown outcome, and what had no effect is left out. Every linearization
    /// of the history is one of the weakened history, so a contradiction there is a real one.
    pub(super) fn new(history: &History, ids: &[OpId], known: impl Fn(OpId) -> bool, ends: Ends) -> Self {
        let mut names = Names::default();
        let (mut definite, mut open) = (Vec::new(), Vec::new());
        for &id in ids {
            let operation = history.operation(id);
            let (invoked, returned) = (history.invoked_at(id), history.returned_at(id));
            open.extend(end(history, id, known(id), |value| names.id(value)));
            match &operation.outcome {
                Outcome::NotApplied => {}
                Outcome::Ok(output) if known(id) => {
                    let action = Action::of_answer(&operation.input, output, |value| names.id(value));
                    definite.push(Op { id, invoked, returned, action, ends: false });
                }
                outcome => {
                    if matches!(outcome, Outcome::Ok(output) if !had_effect(output)) {
                        continue;
                    }
                    let action = Action::of_unknown(&operation.input, |value| names.id(value));
                    let returned = (u64::MAX, u64::MAX);
                    open.extend(action.map(|action| Op { id, invoked, returned, action, ends: false }));
                }
            }
        }
        infer::settle(&mut definite, &mut open);
        if ends == Ends::OfAny {
            loosen(&definite, &mut open);
        }
        forget_unnamed(&mut definite, &mut open);
        Self::arrange(definite, open, names.list)
    }

    fn arrange(mut definite: Vec<Op>, mut open: Vec<Op>, names: Vec<Value>) -> Self {
        definite.sort_by_key(|op| op.invoked);
        open.sort_by_key(|op| op.invoked);
        let count = definite.len();
        let mut by_return: Vec<usize> = (0..count).collect();
        by_return.sort_by_key(|&at| definite[at].returned);
        let mut by_version: Vec<(Version, usize)> = definite
            .iter()
            .enumerate()
            .filter_map(|(at, op)| op.action.last_before().map(|version| (version, at)))
            .collect();
        by_version.sort_unstable();

        let mut members: BTreeMap<Action, Vec<usize>> = BTreeMap::new();
        for (at, op) in open.iter().enumerate() {
            members.entry(op.action).or_default().push(count + at);
        }
        let classes: Vec<Class> = members.into_iter().map(|(action, members)| Class { action, members }).collect();
        let mut writers = vec![Vec::new(); names.len() + 1];
        let mut deleters = Vec::new();
        for (at, class) in classes.iter().enumerate() {
            match class.action.then {
                Then::Write(Some(value), _) => writers[value as usize].push(at),
                Then::Write(None, _) => deleters.push(at),
                Then::Keep => {}
            }
        }
        let mut ops = definite;
        ops.append(&mut open);
        let class_of = |need, value| {
            let action = Action { need, then: Then::Write(value, None) };
            classes.iter().position(|class| class.action == action)
        };
        let plain_put = class_of(Need::Anything, Some(UNNAMED));
        let plain_delete = class_of(Need::Present, None);
        Self { ops, definite: count, by_return, by_version, classes, writers, deleters, plain_put, plain_delete, names }
    }

    /// The value behind a number; `None` for those that no operation names.
    pub(super) fn name(&self, value: ValueId) -> Option<&Value> {
        (value != UNNAMED).then(|| &self.names[value as usize - 1])
    }
}

/// Whether an operation with this answer changed the key.
pub(super) fn had_effect(output: &Output) -> bool {
    match output {
        Output::Get(_) | Output::Exists { .. } | Output::Failed { .. } => false,
        Output::Put { .. } | Output::Applied { .. } => true,
        Output::Delete { existed, version } => *existed || version.is_some(),
    }
}

/// The end of the value that an operation wrote with a ttl, or may have written. (Where several operations write one
/// value, and it is not known under which version, any of their ends will do for it: too lax, never too strict.)
fn end<'a>(history: &'a History, id: OpId, known: bool, id_of: impl FnOnce(&'a Value) -> ValueId) -> Option<Op> {
    let operation = history.operation(id);
    let (Input::Put(value) | Input::PutIfAbsent(value) | Input::CompareAndSwap { new: Some(value), .. }) =
        &operation.input
    else {
        return None;
    };
    let version = match &operation.outcome {
        Outcome::NotApplied => return None,
        Outcome::Ok(output) if !had_effect(output) => return None,
        Outcome::Ok(Output::Put { version } | Output::Applied { version }) if known => Some(*version),
        _ => None,
    };
    let invoked = history.ends_at(id)?;
    let action = model::end_of(id_of(value), version);
    Some(Op { id, invoked, returned: (u64::MAX, u64::MAX), action, ends: true })
}

/// Makes the ends of values that nobody saw plain deletions: see [`Ends::OfAny`].
fn loosen(definite: &[Op], open: &mut [Op]) {
    let written =
        definite.iter().filter_map(|op| if let Then::Write(value, _) = op.action.then { value } else { None });
    let asked = open.iter().filter(|op| !op.ends).chain(definite);
    let named: BTreeSet<ValueId> = asked.filter_map(|op| value_of(op.action.need)).chain(written).collect();
    for op in open.iter_mut().filter(|op| op.ends) {
        if value_of(op.action.need).is_some_and(|value| !named.contains(&value)) {
            op.action.need = Need::Present;
        }
    }
}

fn value_of(need: Need) -> Option<ValueId> {
    match need {
        Need::Value(value) | Need::Exactly(value, _) => Some(value),
        _ => None,
    }
}

/// Gives all values that no operation names (sees or expects) the same number.
fn forget_unnamed(definite: &mut [Op], open: &mut [Op]) {
    let named: BTreeSet<ValueId> =
        definite.iter().chain(open.iter()).filter_map(|op| value_of(op.action.need)).collect();
    for op in definite.iter_mut().chain(open) {
        if let Then::Write(Some(value), _) = &mut op.action.then
            && !named.contains(value)
        {
            *value = UNNAMED;
        }
    }
}

/// The values by number, from 1.
#[derive(Default)]
struct Names<'a> {
    list: Vec<Value>,
    ids: BTreeMap<&'a Value, ValueId>,
}

impl<'a> Names<'a> {
    fn id(&mut self, value: &'a Value) -> ValueId {
        *self.ids.entry(value).or_insert_with(|| {
            self.list.push(value.clone());
            UNNAMED + self.list.len() as ValueId
        })
    }
}
