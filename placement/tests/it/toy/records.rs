//! The system range's data: atomic batches with conditions, and a version for every write.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_proto::v1;

use super::Scan;

#[derive(Clone, Debug, Default)]
pub struct Records {
    data: BTreeMap<Bytes, (Bytes, u64)>,
    versions: u64,
}

impl Records {
    pub fn seed(&mut self, records: Vec<(Bytes, Bytes)>) {
        for (key, value) in records {
            self.put(key, value);
        }
    }

    pub fn all(&self) -> Scan {
        self.data.iter().map(|(key, (value, version))| (key.clone(), value.clone(), *version)).collect()
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        self.versions += 1;
        self.data.insert(key, (value, self.versions));
    }

    /// All or nothing; whether it was applied.
    pub fn apply(&mut self, request: &v1::WriteRequest) -> bool {
        use v1::compare_and_swap::Expect;
        use v1::write_op::Op;
        assert!(request.atomic);
        for op in &request.ops {
            if let Some(Op::CompareAndSwap(swap)) = &op.op {
                let current = self.data.get(&swap.key);
                let holds = match swap.expect.as_ref().expect("a condition") {
                    Expect::Value(value) => current.is_some_and(|(current, _)| current == value),
                    Expect::Version(version) => current.is_some_and(|(_, current)| current == version),
                    Expect::Absent(_) => current.is_none(),
                };
                if !holds {
                    return false;
                }
            }
        }
        for op in &request.ops {
            match op.op.clone().expect("an operation") {
                Op::Put(put) => self.put(put.key, put.value),
                Op::Delete(delete) => drop(self.data.remove(&delete.key)),
                Op::CompareAndSwap(swap) => self.put(swap.key, swap.new_value.expect("the service swaps in values")),
            }
        }
        true
    }
}
