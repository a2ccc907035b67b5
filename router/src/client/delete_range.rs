//! Deletes of whole spans: as much as the time allows, or part after part to the span's end.

use bytes::Bytes;
#[allow(unused_imports, reason = "for the documentation")]
use flotilla_proto::{Error, Result, v1};

use super::api::Client;
use super::types::ScanOptions;
use crate::core::token;

/// What to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteOptions {
    /// First key.
    pub start: Bytes,
    /// First key after the span; empty: to the end of the keyspace.
    pub end: Bytes,
    /// At most so many keys in one call; 0: as many as the time allows.
    pub limit: u64,
    /// From an earlier part: goes on there, and replaces start and end.
    pub token: Bytes,
}

impl DeleteOptions {
    /// All keys of the keyspace.
    pub fn all() -> Self {
        Self::span(Bytes::new(), Bytes::new())
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let ScanOptions { start, end, .. } = ScanOptions::prefix(prefix);
        Self::span(start, end)
    }

    /// The keys from `start` up to, and without, `end`; empty: to the end of the keyspace.
    pub fn span(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { start: start.into(), end: end.into(), limit: 0, token: Bytes::new() }
    }
}

/// What one call has deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedPart {
    /// Keys that are known to have been deleted; where an answer was lost on the way it may have been
    /// more.
    pub count: u64,
    /// Where to go on; empty: the span is done.
    pub next_token: Bytes,
}

impl DeletedPart {
    /// The key that `next_token` goes on at, for people and for other spans; `None`: the span is done.
    pub fn next_key(&self) -> Option<Bytes> {
        // An empty token is not one.
        token::decode(&self.next_token).ok().map(|span| span.start)
    }
}

impl Client {
    /// Deletes keys of a span until it is done, the limit is reached, or the client's time-out is
    /// nearly over. Not all or nothing, and not one point in time: a key that is there from the
    /// beginning to the end goes, one that is written for the first time meanwhile may go or stay; so
    /// may one that is written again after this call has deleted it.
    /// May be repeated at will; `next_token` goes on where it ended.
    ///
    /// Errors come only where no part of the span was done: *retry*: [`Error::Timeout`]; *fail*:
    /// [`Error::InvalidArgument`] (a bound, a token), [`Error::KeyspaceNotFound`];
    /// *ambiguous*: [`Error::Ambiguous`]: some keys may have been deleted.
    pub async fn delete_range(&self, options: DeleteOptions) -> Result<DeletedPart> {
        let DeleteOptions { start, end, limit, token } = options;
        let request = v1::DeleteRangeRequest { header: self.write_header(), start, end, limit, token };
        let answer = self.router().delete_range(request).await?;
        Ok(DeletedPart { count: answer.count, next_token: answer.next_token })
    }

    /// Deletes part after part, to the span's end: limit and time-out are those of one part.
    ///
    /// ```no_run
    /// # async fn example(client: flotilla_router::Client) -> flotilla_proto::Result<()> {
    /// use flotilla_router::DeleteOptions;
    ///
    /// let mut parts = client.delete_parts(DeleteOptions::prefix("session/"));
    /// while let Some(part) = parts.next().await? {
    ///     println!("{} keys", part.count);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn delete_parts(&self, options: DeleteOptions) -> DeleteParts {
        DeleteParts { client: self.clone(), next: Some(options) }
    }
}

/// The parts of a delete; see [`Client::delete_parts`].
#[derive(Clone, Debug)]
pub struct DeleteParts {
    client: Client,
    /// `None`: the span is done.
    next: Option<DeleteOptions>,
}

impl DeleteParts {
    /// Deletes the next part; `None` after the last. After an error the same part can be asked for
    /// again.
    pub async fn next(&mut self) -> Result<Option<DeletedPart>> {
        let Some(options) = self.next.clone() else { return Ok(None) };
        let part = self.client.delete_range(options).await?;
        self.next = match self.next.take() {
            Some(options) if !part.next_token.is_empty() => {
                Some(DeleteOptions { token: part.next_token.clone(), ..options })
            }
            _ => None,
        };
        Ok(Some(part))
    }

    /// Where the next part begins, to go on with later; `None`: the span is done.
    pub fn position(&self) -> Option<&DeleteOptions> {
        self.next.as_ref()
    }
}
