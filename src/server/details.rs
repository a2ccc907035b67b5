//! Every gRPC error carries {kind, action, hint}: those that tonic makes by itself (a message that
//! cannot be decoded, one that is too large, a method that does not exist) get them here.

use std::task::{Context, Poll};

use flotilla_proto::Error;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

/// Adds details to errors that have none.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorDetailsLayer;

impl<S> Layer<S> for ErrorDetailsLayer {
    type Service = ErrorDetails<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ErrorDetails { inner }
    }
}

/// See [`ErrorDetailsLayer`].
#[derive(Clone, Debug)]
pub(super) struct ErrorDetails<S> {
    inner: S,
}

impl<S, In, Out> Service<Request<In>> for ErrorDetails<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            add_details(response.headers_mut());
            Ok(response)
        })
    }
}

/// An error that is known before the first byte of an answer stands in the headers.
fn add_details(headers: &mut HeaderMap) {
    let Some(status) = Status::from_header_map(headers) else { return };
    if status.code() == Code::Ok || !status.details().is_empty() {
        return;
    }
    let Some(error) = meaning(&status) else { return };
    let wire = prost::Message::encode_to_vec(&flotilla_proto::v1::Error::from(&error));
    let detailed = Status::with_details(status.code(), status.message(), wire.into());
    for (name, value) in detailed.into_http::<()>().headers() {
        headers.insert(name.clone(), value.clone());
    }
}

fn meaning(status: &Status) -> Option<Error> {
    let what = status.message().to_owned();
    match status.code() {
        // tonic's own word for a coding of messages that is not taken: none is, so that nothing inflates here.
        Code::Unimplemented if what.contains("ompress") => {
            Some(Error::invalid(what, "messages are not compressed: leave grpc-encoding out"))
        }
        Code::Unimplemented => {
            Some(Error::invalid("no such service or method", "this node speaks flotilla.v1; see gRPC reflection"))
        }
        Code::OutOfRange => Some(Error::invalid(what, "requests have at most 1.5 MiB; send several")),
        Code::Internal | Code::InvalidArgument => Some(Error::invalid(
            what,
            "the message cannot be decoded: check it against the .proto files of flotilla.v1",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoding_error_gets_details_and_keeps_its_code() {
        let mut headers = Status::internal("failed to decode").into_http::<()>().headers().clone();
        add_details(&mut headers);
        let status = Status::from_header_map(&headers).expect("still a status");
        assert_eq!(status.code(), Code::Internal);
        let error = flotilla_proto::error::from_status(&status).expect("details");
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
    }

    #[test]
    fn our_own_details_are_left_alone() {
        let status = Status::from(Error::KeyspaceNotFound { name: "x".into() });
        let mut headers = status.into_http::<()>().headers().clone();
        let before = headers.clone();
        add_details(&mut headers);
        assert_eq!(headers, before);
    }
}
