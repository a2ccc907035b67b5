//! Which cluster a request is meant for.
//!
//! A node that comes up at an address where a node of another cluster listened before may get that one's requests. Ids of
//! nodes and ranges are small numbers in every cluster, and may well agree; ids of clusters are random. So whoever
//! routes by what a cluster told it names that cluster in all that it sends, and a node of another one refuses:
//! [`RequestHeader.cluster_id`](crate::v1::RequestHeader) of keys' requests, [`METADATA`] of all others.

use crate::{Error, Result};

/// The name, in a request's metadata, under which the cluster's id stands, in decimal.
pub const METADATA: &str = "flotilla-cluster";

/// Refuses what is meant for another cluster than `own`; 0 is meant for any.
///
/// Errors: [`Error::ClusterMismatch`]: surely not applied.
#[inline]
pub fn check(own: u64, named: u64) -> Result<()> {
    if named == 0 || named == own {
        return Ok(());
    }
    let what = format!("this node belongs to cluster {own:016x}, and the request is for cluster {named:016x}");
    Err(Error::ClusterMismatch { what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_names_another_cluster_is_refused() {
        assert_eq!((check(7, 0), check(7, 7)), (Ok(()), Ok(())));
        let refused = check(7, 8).expect_err("another cluster").to_string();
        assert!(refused.contains("0000000000000007") && refused.contains("0000000000000008"), "{refused}");
    }
}
