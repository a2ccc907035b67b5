//! One method for each unary RPC of the Kv service: what the server's handlers call, and what
//! [`crate::Client`] is made of. Each becomes one [`Router::call`], but for
//! delete-range, which takes several.

use flotilla_proto::{Error, Result, v1};
use v1::batch_result::Outcome;
use v1::request::Body;
use v1::response::Body as Answer;
use v1::write_op::Op;

use super::router::Router;
use super::transport::{RouteSource, Transport};
use crate::core::{DeleteRange, DeleteStep};

impl<T: Transport, R: RouteSource> Router<T, R> {
    /// Reads one key.
    pub async fn get(&self, request: v1::GetRequest) -> Result<v1::GetResponse> {
        match self.call(Body::Get(request)).await? {
            Answer::Get(answer) => Ok(answer),
            _ => Err(other_kind()),
        }
    }

    /// Reads several keys, each by itself.
    pub async fn multi_get(&self, request: v1::MultiGetRequest) -> Result<v1::MultiGetResponse> {
        match self.call(Body::MultiGet(request)).await? {
            Answer::MultiGet(answer) => Ok(answer),
            _ => Err(other_kind()),
        }
    }

    /// Writes one key.
    pub async fn put(&self, request: v1::PutRequest) -> Result<v1::PutResponse> {
        let v1::PutRequest { header, key, value, if_absent, ttl_ms } = request;
        let (header, result) = self.write(header, Op::Put(v1::Put { key, value, if_absent, ttl_ms })).await?;
        Ok(v1::PutResponse { header, result: Some(result) })
    }

    /// Deletes one key.
    pub async fn delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse> {
        let v1::DeleteRequest { header, key } = request;
        let (header, result) = self.write(header, Op::Delete(v1::Delete { key })).await?;
        Ok(v1::DeleteResponse { header, result: Some(result) })
    }

    /// Writes or deletes one key if its condition holds.
    pub async fn compare_and_swap(&self, request: v1::CompareAndSwapRequest) -> Result<v1::CompareAndSwapResponse> {
        let v1::CompareAndSwapRequest { header, op } = request;
        let op = op.ok_or_else(|| Error::invalid("a compare-and-swap without an operation", "set op"))?;
        let (header, result) = self.write(header, Op::CompareAndSwap(op)).await?;
        Ok(v1::CompareAndSwapResponse { header, result: Some(result) })
    }

    /// Carries several writes out. An atomic batch, and one of a single operation, fails as a
    /// whole; otherwise each operation has its own result.
    pub async fn batch(&self, request: v1::BatchRequest) -> Result<v1::BatchResponse> {
        match self.call(Body::Write(request)).await? {
            Answer::Write(answer) => Ok(answer),
            _ => Err(other_kind()),
        }
    }

    /// Reads one page of a span.
    pub async fn scan(&self, request: v1::ScanRequest) -> Result<v1::ScanResponse> {
        match self.call(Body::Scan(request)).await? {
            Answer::Scan(answer) => Ok(answer),
            _ => Err(other_kind()),
        }
    }

    /// Deletes the keys of a span, as many as the limit and the time allow.
    pub async fn delete_range(&self, request: v1::DeleteRangeRequest) -> Result<v1::DeleteRangeResponse> {
        let mut work = DeleteRange::new(request, self.now());
        loop {
            match work.next(self.now()) {
                DeleteStep::Done(result) => return result,
                DeleteStep::WaitUntil(time) => self.sleep_until(time).await,
                DeleteStep::Call(body) => {
                    let answer = self.call(body).await;
                    work.on_answer(self.now(), self.rand(), answer);
                }
            }
        }
    }

    async fn write(
        &self,
        header: Option<v1::RequestHeader>,
        op: Op,
    ) -> Result<(Option<v1::ResponseHeader>, v1::WriteResult)> {
        let ops = vec![v1::WriteOp { op: Some(op) }];
        let answer = self.batch(v1::BatchRequest { header, ops, atomic: false }).await?;
        match answer.results.into_iter().next().and_then(|result| result.outcome) {
            Some(Outcome::Result(result)) => Ok((answer.header, result)),
            Some(Outcome::Error(error)) => Err(error.into()),
            None => Err(Error::Ambiguous { reason: "the answer has no result".into() }),
        }
    }
}

/// The core answers each request by its own kind; anything else is a bug that must not look like
/// a refusal.
fn other_kind() -> Error {
    Error::Ambiguous { reason: "the answer is to another kind of request".into() }
}
