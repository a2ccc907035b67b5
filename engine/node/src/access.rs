//! Who may call what: each request is held against the table of all RPCs (proto/access.txt) by what its caller's
//! certificate says, before anything else reads it. The one place for that, at both ports.
//!
//! In plain text nobody can be told from anybody: all is allowed there. Users and roles will come in here.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use flotilla_proto::Error;
use flotilla_proto::access::{Who, who_may_call};
use flotilla_tls::{Role, Shown};
use http::{Request, Response};
use tonic::Status;
use tower::{Layer, Service};

use crate::doors::Caller;

/// Lets requests through that their callers may make.
#[derive(Clone, Debug)]
pub struct AccessLayer {
    cluster: Arc<str>,
}

impl AccessLayer {
    /// For the doors of a node of this cluster, by its name.
    pub fn new(cluster: &str) -> Self {
        Self { cluster: cluster.into() }
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Access { inner, cluster: Arc::clone(&self.cluster) }
    }
}

/// See [`AccessLayer`].
#[derive(Clone, Debug)]
pub struct Access<S> {
    inner: S,
    cluster: Arc<str>,
}

impl<S, In, Out> Service<Request<In>> for Access<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    Out: Default + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let caller = request.extensions().get::<Caller>();
        // Every connection of a door has a caller; what came another way has shown nothing.
        let shown = caller.map_or(Shown::Nothing, |caller| caller.guest().shown());
        match check(&self.cluster, shown, request.uri().path()) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => {
                let refused = status.into_http();
                Box::pin(async move { Ok(refused) })
            }
        }
    }
}

/// Whether a caller that has shown this may call the RPC of a path.
fn check(cluster: &str, shown: Shown<'_>, path: &str) -> Result<(), Status> {
    // What stands in no line is there for nobody.
    let needed = who_may_call(path).ok_or_else(|| Status::unimplemented("no such service or method"))?;
    let (is, whose) = match shown {
        Shown::Plain => return Ok(()),
        Shown::Nothing => return Err(denied("the caller has not shown who it is", "connect anew")),
        Shown::Unreadable(words) => return Err(denied(words, "`flotilla cert client` makes a certificate")),
        Shown::Identity(identity) if identity.cluster != cluster => {
            let what = format!("this is cluster \"{cluster}\", and the certificate is that of {}", identity.words());
            return Err(denied(&what, "check the address, or use a certificate of this cluster"));
        }
        // The port asks for no certificate, so this is as good as a client's.
        Shown::Anonymous => (Who::Operator, "has no certificate".to_string()),
        Shown::Identity(identity) => match identity.role {
            Role::Node(_) => (Who::Node, String::new()),
            Role::Client(_) => (Who::Operator, format!("is {}", identity.words())),
            Role::Ca => (Who::Anyone, format!("is {}", identity.words())),
        },
    };
    if is >= needed {
        return Ok(());
    }
    let method = path.trim_start_matches('/').replace('/', ".");
    let (whom, hint) = match needed {
        Who::Node => ("nodes", "a node calls it with its own certificate, which `flotilla cert node` makes"),
        _ => ("clients", "use a client's certificate, which `flotilla cert client` makes"),
    };
    Err(denied(&format!("{method} is for {whom} of the cluster alone, and the caller {whose}"), hint))
}

fn denied(what: &str, hint: &str) -> Status {
    Error::AccessDenied { what: what.into(), hint: hint.into() }.into()
}

#[cfg(test)]
mod tests {
    use flotilla_proto::NodeId;
    use flotilla_tls::Identity;

    use super::*;

    const REPORT: &str = "/flotilla.v1.Placement/Report";
    const PUT: &str = "/flotilla.v1.Kv/Put";
    const HEALTH: &str = "/grpc.health.v1.Health/Check";

    #[test]
    fn each_may_call_what_its_line_says() {
        let of = |cluster: &str, role| Identity { cluster: cluster.into(), role };
        let (node, alice) = (of("prod", Role::Node(NodeId(2))), of("prod", Role::Client("alice".into())));
        let (foreign, ca) = (of("test", Role::Node(NodeId(2))), of("prod", Role::Ca));
        let allowed = |shown| [REPORT, PUT, HEALTH].map(|path| check("prod", shown, path).is_ok());
        assert_eq!(allowed(Shown::Plain), [true, true, true]);
        assert_eq!(allowed(Shown::Identity(&node)), [true, true, true]);
        assert_eq!(allowed(Shown::Identity(&alice)), [false, true, true]);
        assert_eq!(allowed(Shown::Anonymous), [false, true, true]);
        assert_eq!(allowed(Shown::Identity(&ca)), [false, false, true]);
        for shown in [Shown::Identity(&foreign), Shown::Nothing, Shown::Unreadable("no name")] {
            assert_eq!(allowed(shown), [false, false, false], "{shown:?}");
        }
        let unknown = check("prod", Shown::Identity(&node), "/flotilla.v1.Kv/Burn").expect_err("in no line");
        assert_eq!(unknown.code(), tonic::Code::Unimplemented);
        let refused = check("prod", Shown::Identity(&alice), REPORT).expect_err("not a node");
        assert_eq!(
            refused.message(),
            "flotilla.v1.Placement.Report is for nodes of the cluster alone, and the caller is client \"alice\" of cluster \"prod\""
        );
    }
}
