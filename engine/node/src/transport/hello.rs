//! The handshake: the first frame on a connection, in both directions.
//!
//! Both sides check what the other says, and refuse in words: another cluster, another node than the
//! one meant, no protocol in common, another store than the one it was met with
//! ([`super::known_stores`]). Under TLS a node is who its certificate says: the side that was called holds the Hello
//! against it here, the calling side has done so with the first byte (flotilla-tls). In plain text, which does not
//! leave a machine, a node's id is what it says it is.

use flotilla_proto::{NodeId, v1};
use flotilla_tls::{Role, Shown};
use tonic::Status;

use super::Context;
use super::frame::Frame;

/// Oldest protocol between nodes that this version speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// Newest protocol between nodes that this version speaks.
pub const PROTOCOL_MAX: u32 = 1;

/// What a node is told that this one does not know. One that has just joined is not known everywhere at once.
pub(super) const NOT_A_MEMBER: &str = "is not a member of cluster";

/// Why a connection is not let in, in words for people on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The other side does not belong here, or says what cannot be understood.
    Stranger(String),
    /// The other side is a node that lost its store: it must stop.
    Replaced(String),
}

impl Refusal {
    /// The words.
    pub fn words(&self) -> &str {
        match self {
            Self::Stranger(words) | Self::Replaced(words) => words,
        }
    }

    /// How a dialled side says it: as the stream's end.
    pub fn to_status(&self) -> Status {
        match self {
            Self::Stranger(words) => Status::failed_precondition(words),
            Self::Replaced(words) => Status::permission_denied(words),
        }
    }

    /// How a dialling side says it: as its last frame.
    pub fn to_frame(&self) -> Frame {
        match self {
            Self::Stranger(words) => Frame::Refused(words.clone()),
            Self::Replaced(words) => Frame::Replaced(words.clone()),
        }
    }
}

impl From<String> for Refusal {
    fn from(words: String) -> Self {
        Self::Stranger(words)
    }
}

impl From<&str> for Refusal {
    fn from(words: &str) -> Self {
        Self::Stranger(words.into())
    }
}

/// What this node says of itself to `to`.
pub(crate) fn hello_to(own: &v1::Hello, to: NodeId) -> v1::Hello {
    v1::Hello { to_node_id: to.0, ..own.clone() }
}

/// Decides whether the other side is let in. `expected` is the node that was dialled.
pub(crate) async fn admit(context: &Context, theirs: &v1::Hello, expected: Option<NodeId>) -> Result<(), Refusal> {
    check(&context.hello, theirs, expected)?;
    context.known_stores.refuse_condemned(NodeId(theirs.node_id)).await?;
    if context.peers.get(NodeId(theirs.node_id)).is_none() {
        let cluster = context.hello.cluster_id;
        return Err(format!("node {} {NOT_A_MEMBER} {cluster:016x}", theirs.node_id).into());
    }
    let admitted = context.known_stores.admit(theirs, &context.failure).await;
    if context.failure.is_set() {
        context.inbox.nudge();
    }
    admitted
}

/// Whether the caller is the node that it says it is. That its certificate is of this cluster is known by then
/// ([`crate::access`]).
pub(crate) fn check_certificate(shown: Shown<'_>, theirs: &v1::Hello) -> Result<(), String> {
    match shown {
        Shown::Plain => Ok(()),
        Shown::Identity(identity) if identity.role == Role::Node(NodeId(theirs.node_id)) => Ok(()),
        Shown::Identity(identity) => Err(format!(
            "a caller says that it is node {}, and its certificate is that of {}: each node needs its own, made with \
             `flotilla cert node`",
            theirs.node_id,
            identity.words()
        )),
        _ => Err(format!("a caller says that it is node {}, and has shown no certificate", theirs.node_id)),
    }
}

/// Checks what the other side says; the error is for people on both sides. `expected` is the node that
/// was dialled.
fn check(own: &v1::Hello, theirs: &v1::Hello, expected: Option<NodeId>) -> Result<(), String> {
    if theirs.cluster_id != own.cluster_id {
        return Err(format!(
            "node {} belongs to cluster {:016x}, node {} to cluster {:016x}: check the addresses and the cluster's name",
            theirs.node_id, theirs.cluster_id, own.node_id, own.cluster_id
        ));
    }
    if theirs.node_id == own.node_id {
        return Err(format!("both sides are node {}: two nodes have the same id, or one dials itself", own.node_id));
    }
    if let Some(expected) = expected.filter(|expected| expected.0 != theirs.node_id) {
        return Err(format!(
            "node {} answers where node {} was expected: check the addresses",
            theirs.node_id, expected.0
        ));
    }
    if theirs.to_node_id != own.node_id {
        return Err(format!(
            "node {} meant to reach node {}, this is node {}: check the addresses",
            theirs.node_id, theirs.to_node_id, own.node_id
        ));
    }
    if theirs.protocol_max < own.protocol_min || own.protocol_max < theirs.protocol_min {
        return Err(format!(
            "node {} (version {}) speaks protocols {} to {}, node {} (version {}) {} to {}: upgrade the older one",
            theirs.node_id,
            theirs.version,
            theirs.protocol_min,
            theirs.protocol_max,
            own.node_id,
            own.version,
            own.protocol_min,
            own.protocol_max
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use flotilla_tls::Identity;

    use super::*;

    fn hello(node_id: u64, to_node_id: u64) -> v1::Hello {
        v1::Hello { cluster_id: 7, node_id, to_node_id, protocol_min: 1, protocol_max: 1, ..Default::default() }
    }

    #[test]
    fn a_node_is_who_its_certificate_says() {
        let of = |role| Identity { cluster: "prod".into(), role };
        let theirs = hello(3, 1);
        let (two, three) = (of(Role::Node(NodeId(2))), of(Role::Node(NodeId(3))));
        assert_eq!(check_certificate(Shown::Plain, &theirs), Ok(()));
        assert_eq!(check_certificate(Shown::Identity(&three), &theirs), Ok(()));
        let error = check_certificate(Shown::Identity(&two), &theirs).expect_err("node 2's");
        assert!(error.starts_with("a caller says that it is node 3, and its certificate is that of node 2"), "{error}");
        let client = of(Role::Client("3".into()));
        for shown in [Shown::Identity(&client), Shown::Anonymous, Shown::Nothing, Shown::Unreadable("")] {
            assert!(check_certificate(shown, &theirs).is_err(), "{shown:?}");
        }
    }

    #[test]
    fn each_difference_is_refused_in_words() {
        let own = hello(1, 0);
        assert_eq!(check(&own, &hello(2, 1), None), Ok(()));
        assert_eq!(check(&own, &hello(2, 1), Some(NodeId(2))), Ok(()));
        let newer = v1::Hello { protocol_min: 2, protocol_max: 3, ..hello(2, 1) };
        for (theirs, expected, words) in [
            (v1::Hello { cluster_id: 8, ..hello(2, 1) }, None, "belongs to cluster 0000000000000008"),
            (hello(1, 1), None, "both sides are node 1"),
            (hello(3, 1), Some(NodeId(2)), "node 3 answers where node 2 was expected"),
            (hello(2, 3), None, "node 2 meant to reach node 3, this is node 1"),
            (newer, None, "speaks protocols 2 to 3"),
        ] {
            let error = check(&own, &theirs, expected).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
    }
}
