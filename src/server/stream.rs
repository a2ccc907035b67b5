//! The batch stream: many requests on one stream, answers in any order.
//!
//! A task reads the requests and hands them to the engine in groups, as they came; the response stream
//! takes the answers in groups, as they are there. No more is read from the client while too many of
//! its requests are under way, so a client that does not read its answers stops itself.
//!
//! A stream that just ended would leave its client in doubt about every request that it had sent and the node had not
//! read. So a node that stops says so first, and answers (with a refusal) what comes until the client has ended the
//! stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use flotilla_node::{Node, Replies, ReplySink, replies};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, v1};
use flotilla_router::core::header_of;
use prost::Message;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::NodeRouter;

/// Requests of one stream that may be under way,
const IN_FLIGHT_MAX: usize = 8_192;
/// and bytes of its answers that may wait for their reader.
const UNREAD_BYTES_MAX: usize = 16 << 20;
/// Requests of one message that are handed on before the bounds are looked at again.
const SUBMIT_MAX: usize = 256;
/// Bytes of answers in one message: below the decoder's limit by more than any one framing costs.
const MESSAGE_BYTES_TARGET: usize = 1 << 20;

/// How long a client that was told that the node stops may take to end its stream.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves a batch stream.
pub(super) fn serve(
    node: Node,
    router: NodeRouter,
    stopping: watch::Receiver<bool>,
    requests: Streaming<v1::StreamRequest>,
) -> ResponseStream {
    let (sink, replies) = replies();
    let stopped = super::until(stopping.clone());
    let reader = tokio::spawn(async move {
        tokio::select! {
            broken = read(node, router, requests, sink) => broken,
            // No more is taken; the stream ends when what is under way is answered.
            () = farewell(stopped) => None,
        }
    });
    let farewell = Some(Box::pin(super::until(stopping)) as Farewell);
    ResponseStream { replies, ready: VecDeque::new(), farewell, reader, ended: false }
}

async fn farewell(stopped: impl Future<Output = ()>) {
    stopped.await;
    tokio::time::sleep(FAREWELL_TIMEOUT).await;
}

/// Reads requests until the stream ends, or breaks: why.
async fn read(
    node: Node,
    router: NodeRouter,
    mut requests: Streaming<v1::StreamRequest>,
    sink: ReplySink,
) -> Option<Status> {
    // A broken stream ends the reading like a closed one: answers under way still go out if they can, and then why.
    loop {
        let batch = match requests.message().await {
            Ok(Some(batch)) => batch,
            Ok(None) => return None,
            Err(status) => return Some(status),
        };
        let mut requests = batch.requests.into_iter().peekable();
        while requests.peek().is_some() {
            let room = sink.room(IN_FLIGHT_MAX, UNREAD_BYTES_MAX).await;
            hand_on(&node, &router, requests.by_ref().take(room.min(SUBMIT_MAX)), &sink);
        }
    }
}

fn hand_on(node: &Node, router: &NodeRouter, requests: impl Iterator<Item = v1::Request>, sink: &ReplySink) {
    let mut here = Vec::with_capacity(requests.size_hint().0);
    for request in requests {
        let id = request.id;
        match place(request) {
            Place::Here(request) => here.push(request),
            Place::Routed(body) => route(router.clone(), sink.clone(), id, body),
            Place::Nowhere(error) => sink.push(failure(id, &error)),
        }
    }
    if !here.is_empty() {
        node.submit(here, sink);
    }
}

enum Place {
    Here(v1::Request),
    Routed(v1::request::Body),
    Nowhere(Error),
}

fn place(request: v1::Request) -> Place {
    let Some(body) = request.body else {
        return Place::Nowhere(Error::invalid("a request without a body", "set get, multi_get, write or scan"));
    };
    if let Err(error) = flotilla_router::core::check(&body) {
        return Place::Nowhere(error);
    }
    if header_of(&body).is_some_and(|header| header.range_id == SYSTEM_RANGE.0) {
        let what = "range 1 is the system's own";
        return Place::Nowhere(Error::invalid(
            what,
            "placement's state is changed by `flotilla keyspace`, `node`, `range`",
        ));
    }
    if header_of(&body).is_some_and(|header| header.range_id != 0) {
        return Place::Here(v1::Request { id: request.id, body: Some(body) });
    }
    Place::Routed(body)
}

fn route(router: NodeRouter, sink: ReplySink, id: u64, body: v1::request::Body) {
    tokio::spawn(async move {
        let response = match router.call(body).await {
            Ok(body) => v1::Response { id, body: Some(body) },
            Err(error) => failure(id, &error),
        };
        sink.push(response);
    });
}

fn failure(id: u64, error: &Error) -> v1::Response {
    v1::Response { id, body: Some(v1::response::Body::Error(error.into())) }
}

/// Resolves when the client is to be told that the node stops.
type Farewell = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The answers of one batch stream.
pub(crate) struct ResponseStream {
    replies: Replies,
    /// Answers that did not fit into the last message.
    ready: VecDeque<v1::Response>,
    /// Absent once it is told.
    farewell: Option<Farewell>,
    /// Why the requests broke off, if they did.
    reader: tokio::task::JoinHandle<Option<Status>>,
    /// All is said.
    ended: bool,
}

impl ResponseStream {
    fn next_message(&mut self) -> v1::StreamResponse {
        let mut responses = Vec::with_capacity(self.ready.len());
        let mut bytes = 0;
        while let Some(next) = self.ready.front_mut() {
            // An answer too large for the caller's decoder would break the stream for all the others.
            next.body = next.body.take().map(flotilla_router::core::fit);
            let next_bytes = next.encoded_len();
            if !responses.is_empty() && bytes + next_bytes > MESSAGE_BYTES_TARGET {
                break;
            }
            bytes += next_bytes;
            responses.extend(self.ready.pop_front());
        }
        v1::StreamResponse { responses, closing: false }
    }
}

impl Stream for ResponseStream {
    type Item = Result<v1::StreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(farewell) = &mut self.farewell
            && farewell.as_mut().poll(context).is_ready()
        {
            self.farewell = None;
            return Poll::Ready(Some(Ok(v1::StreamResponse { responses: Vec::new(), closing: true })));
        }
        while self.ready.is_empty() {
            match self.replies.poll_next(context) {
                Poll::Ready(Some(responses)) => self.ready = responses.into(),
                Poll::Ready(None) if self.ended => return Poll::Ready(None),
                Poll::Ready(None) => {
                    // It has let go of its answers, so it is at its end.
                    let broken = std::task::ready!(Pin::new(&mut self.reader).poll(context));
                    self.ended = true;
                    return Poll::Ready(broken.ok().flatten().map(Err));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Some(Ok(self.next_message())))
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        // Nobody reads the answers any more: take no more requests.
        self.reader.abort();
    }
}
