//! Newtypes for ids, so that one is never taken for another. 0 is never a valid id.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl From<u64> for $name {
            fn from(id: u64) -> Self {
                Self(id)
            }
        }
    };
}

id!(
    /// A node: a process with one store. A wiped disk never gets its old id back.
    NodeId, "n"
);
id!(
    /// A range; 1 is reserved for the system range.
    RangeId, "r"
);
id!(
    /// A replica of a range; never reused within its range.
    ReplicaId, "p"
);
id!(
    /// A keyspace.
    KeyspaceId, "k"
);

/// The keyspace that every cluster has from its birth, of the `plain` model.
pub const DEFAULT_KEYSPACE: KeyspaceId = KeyspaceId(1);

/// Name of [`DEFAULT_KEYSPACE`].
pub const DEFAULT_KEYSPACE_NAME: &str = "default";

/// The keyspace of the system range: the placement service's own state. Not offered to clients.
pub const SYSTEM_KEYSPACE: KeyspaceId = KeyspaceId(0xFFFF_FFFE);

/// The one range of [`SYSTEM_KEYSPACE`]: never split, merged or dropped.
pub const SYSTEM_RANGE: RangeId = RangeId(1);

/// By how much at least terms, `conf_ver` and ids leap where ranges go on without their majorities: more than changes that
/// nobody alive has heard of.
pub const LEAP: u64 = 1 << 20;
