//! Requests of the Admin and Placement services name their cluster, once it is known: see [`flotilla_proto::cluster`].
//!
//! Invariant: the first answer that names a cluster counts; whoever belongs to another one is never asked for anything
//! that another node could answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_proto::{Error, Result, cluster, v1};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};
use v1::admin_client::AdminClient;

/// A channel whose requests name their cluster.
pub(super) type NamedChannel = InterceptedService<Channel, Naming>;
/// The Admin service over one.
pub(super) type Admin = AdminClient<NamedChannel>;

/// The cluster that is spoken to, shared by all channels to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Naming {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// 0: not known yet.
    cluster: u64,
    /// The address that told it; empty: it was given.
    by: String,
}

impl Naming {
    /// `cluster`: the only one to speak to; 0: the one that answers first.
    pub fn new(cluster: u64) -> Self {
        Self { known: Arc::new(Mutex::new(Known { cluster, by: String::new() })) }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change is a single one, so a panic elsewhere does no harm.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the cluster is known, so that nodes of another one refuse.
    pub fn is_known(&self) -> bool {
        self.lock().cluster != 0
    }

    /// Takes in which cluster the node at an address belongs to (0: it did not say); the first one counts.
    ///
    /// Errors: *fail*: [`Error::ClusterMismatch`]: another one than before.
    pub fn told(&self, address: &str, cluster: u64) -> Result<()> {
        let mut known = self.lock();
        if known.cluster == 0 {
            *known = Known { cluster, by: address.to_string() };
        }
        if cluster == 0 || cluster == known.cluster {
            return Ok(());
        }
        let source = match &known.by[..] {
            "" => String::new(),
            by => format!(", which {by} belongs to"),
        };
        let what = format!(
            "the node at {address} belongs to cluster {cluster:016x}, and not to cluster {:016x}{source}",
            known.cluster
        );
        Err(Error::ClusterMismatch { what })
    }
}

impl Interceptor for Naming {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        let cluster = self.lock().cluster;
        if cluster != 0 {
            request.metadata_mut().insert(cluster::METADATA, cluster.into());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_counts_and_is_named_to_all_others() {
        let mut naming = Naming::default();
        let named = |naming: &mut Naming| {
            let request = naming.call(Request::new(())).expect("never refused");
            request.metadata().get(cluster::METADATA).map(|value| value.to_str().expect("digits").to_string())
        };
        assert_eq!((naming.told("a:1", 0), named(&mut naming)), (Ok(()), None));
        assert_eq!((naming.told("b:1", 7), naming.told("c:1", 7)), (Ok(()), Ok(())));
        assert_eq!(named(&mut naming).as_deref(), Some("7"));
        let error = naming.told("d:1", 8).expect_err("another cluster").to_string();
        assert!(error.contains("d:1") && error.contains("which b:1 belongs to"), "{error}");
        assert_eq!(named(&mut naming).as_deref(), Some("7"));
        let given = Naming::new(5).told("d:1", 8).expect_err("another cluster").to_string();
        assert!(given.ends_with("not to cluster 0000000000000005"), "{given}");
    }
}
