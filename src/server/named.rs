//! Requests of the Admin and Placement services that name another cluster are refused before anything reads them.
//!
//! Those of the Kv service name it in their headers, and are refused by the node itself or by its router.

use flotilla_proto::{Error, cluster};
use tonic::{Request, Status};

/// Refuses a request that is meant for another cluster than `own`, or says so in no words that can be read.
pub(super) fn check(own: u64, request: Request<()>) -> Result<Request<()>, Status> {
    let Some(named) = request.metadata().get(cluster::METADATA) else { return Ok(request) };
    let named = named.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        let what = format!("the metadata \"{}\" holds no number", cluster::METADATA);
        Error::invalid(what, "it is the cluster's id, in decimal; leave it out for any")
    })?;
    cluster::check(own, named)?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_cluster_and_nonsense_are_refused() {
        let with = |text: Option<&'static str>| {
            let mut request = Request::new(());
            if let Some(text) = text {
                request.metadata_mut().insert(cluster::METADATA, text.parse().expect("plain text"));
            }
            check(7, request)
                .map(drop)
                .map_err(|status| flotilla_proto::error::from_status(&status).expect("ours").kind())
        };
        assert_eq!([with(None), with(Some("7")), with(Some("0"))], [Ok(()), Ok(()), Ok(())]);
        assert_eq!(with(Some("8")), Err(flotilla_proto::v1::ErrorKind::ClusterMismatch));
        assert_eq!(with(Some("seven")), Err(flotilla_proto::v1::ErrorKind::InvalidArgument));
    }
}
