//! The client library: keys and values.
//!
//! Every method says what its errors allow ([`Error::action`]): retry, refresh the route, fail, or
//! treat the outcome as unknown. The client itself has repeated a request as long as that was safe
//! and its time lasted, so that only these come out of it:
//! - *retry*: [`Error::Timeout`]: surely nothing was applied; its text names the last obstacle;
//! - *fail*: [`Error::InvalidArgument`], [`Error::BatchSpansRanges`], [`Error::KeyspaceNotFound`],
//!   [`Error::Corruption`], [`Error::ClusterMismatch`]: surely nothing was applied;
//! - *ambiguous*, writes only: [`Error::Ambiguous`]: the write may have been applied, or may yet
//!   be. A compare-and-swap on the version makes a repetition safe.
//!
//! Refreshing routes is the client's own business; such an error never reaches the caller.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::limits::{TIMEOUT_MS_DEFAULT, TIMEOUT_MS_MAX};
#[allow(unused_imports, reason = "for the documentation")]
use flotilla_proto::{Error, Result, v1};
use flotilla_tls::Tls;

use super::endpoints::Endpoints;
use super::grpc::{GrpcConfig, GrpcTransport};
use super::router::{Router, RouterConfig};
use super::types::{Consistency, Expect, Record, WriteOp, WriteResult, outcome, swap, ttl_ms, with_key, written};

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// How long a call may take, repetitions included; at most 60 s.
    pub timeout: Duration,
    /// How long to wait for a connection to one node.
    pub connect_timeout: Duration,
    /// Most requests under way to one node; more wait in the client.
    pub in_flight_max: usize,
    /// The id of the cluster to speak to; 0: the one that answers first. Nodes of another one refuse, and are not asked again.
    pub cluster_id: u64,
    /// Start of the random numbers for pauses; `None`: another one for each client.
    pub seed: Option<u64>,
    /// Certificates for TLS; `None`: plain text.
    pub tls: Option<Arc<Tls>>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        let grpc = GrpcConfig::default();
        Self {
            timeout: Duration::from_millis(TIMEOUT_MS_DEFAULT),
            connect_timeout: grpc.connect_timeout,
            in_flight_max: grpc.in_flight_max,
            cluster_id: 0,
            seed: None,
            tls: None,
        }
    }
}

/// A connection to a cluster; cheap to clone, all clones share it.
///
/// ```no_run
/// # async fn example() -> flotilla_proto::Result<()> {
/// use flotilla_router::{Client, ClientConfig, Expect};
///
/// let client = Client::connect(["127.0.0.1:7300", "127.0.0.1:7400"], ClientConfig::default()).await?;
/// let put = client.put("greeting", "hello").await?;
/// let swap = client.compare_and_swap("greeting", Expect::Version(put.version), Some("hi".into())).await?;
/// assert!(swap.applied);
/// let record = client.get("greeting").await?;
/// assert_eq!(record.map(|record| record.value), Some("hi".into()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    timeout: Duration,
    consistency: Consistency,
    /// Empty: the default one.
    keyspace: String,
}

struct Inner {
    router: Router<GrpcTransport, Endpoints>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("timeout", &self.timeout)
            .field("consistency", &self.consistency)
            .field("keyspace", &self.keyspace)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to a cluster by the addresses (host:port) of any of its nodes; the others are
    /// learned from it.
    ///
    /// Errors: *retry*: [`Error::Unavailable`]: no node answers, with the reason for each address;
    /// *fail*: [`Error::InvalidArgument`]: an address or the configuration is not a valid one.
    pub async fn connect<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        config: ClientConfig,
    ) -> Result<Self> {
        if config.in_flight_max == 0 || config.connect_timeout.is_zero() {
            return Err(Error::invalid("in_flight_max or connect_timeout is 0", "both must be above 0"));
        }
        let given = addresses.into_iter().map(Into::into).collect();
        let endpoints = Endpoints::new(given, config.connect_timeout, config.cluster_id, config.tls.clone())?;
        let transport = GrpcTransport::new(GrpcConfig {
            connect_timeout: config.connect_timeout,
            in_flight_max: config.in_flight_max,
            tls: config.tls,
        });
        let seed = config.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        // Who answers, which cluster that is of, and its nodes.
        let routes = endpoints.route_of(SYSTEM_RANGE).await?;
        let router =
            Router::new(transport, endpoints, RouterConfig { local: None, cluster_id: config.cluster_id, seed });
        router.merge_found(&routes)?;
        Ok(Self {
            inner: Arc::new(Inner { router }),
            timeout: config.timeout,
            consistency: Consistency::default(),
            keyspace: String::new(),
        })
    }

    /// The same client with another time-out for its calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same client with another consistency of its reads.
    #[must_use]
    pub fn with_consistency(&self, consistency: Consistency) -> Self {
        Self { consistency, ..self.clone() }
    }

    /// The same client for the keys of another keyspace; empty: the default one. Whether there is one
    /// of this name is found out by each call: *fail*: [`Error::KeyspaceNotFound`].
    #[must_use]
    pub fn keyspace(&self, name: impl Into<String>) -> Self {
        Self { keyspace: name.into(), ..self.clone() }
    }

    /// The keyspace that the client is bound to; empty: the default one.
    pub fn keyspace_name(&self) -> &str {
        &self.keyspace
    }

    /// Reads a key; `None` if it is not there.
    ///
    /// Errors: *retry*: [`Error::Timeout`]; *fail*: [`Error::InvalidArgument`] (the key),
    /// [`Error::Corruption`]. A read may be repeated at will.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Record>> {
        let key = key.into();
        let request = v1::GetRequest { header: self.read_header(), key: key.clone() };
        let answer = self.inner.router.get(request).await?;
        Ok(answer.record.map(|record| with_key(&key, record)))
    }

    /// Reads several keys, each by itself: the answer is not one point in time. One entry per key,
    /// in the order given. At most 1,024 keys, and 3 MiB of values.
    ///
    /// Errors: as [`Client::get`]; one key that cannot be read fails the whole.
    pub async fn multi_get<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Option<Record>>> {
        let keys: Vec<Bytes> = keys.into_iter().map(Into::into).collect();
        let request = v1::MultiGetRequest { header: self.read_header(), keys: keys.clone() };
        let answer = self.inner.router.multi_get(request).await?;
        let records = keys.iter().zip(answer.results);
        Ok(records.map(|(key, result)| result.record.map(|record| with_key(key, record))).collect())
    }

    /// Writes a key.
    ///
    /// Errors: *retry*: [`Error::Timeout`]; *fail*: [`Error::InvalidArgument`] (key or value);
    /// *ambiguous*: [`Error::Ambiguous`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<WriteResult> {
        self.put_with(key.into(), value.into(), false, 0).await
    }

    /// Writes a key that ends by itself after `ttl` (a millisecond to ten years): never earlier,
    /// normally within a second. A later write without a ttl takes it away.
    ///
    /// Errors: as [`Client::put`].
    pub async fn put_with_ttl(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> Result<WriteResult> {
        self.put_with(key.into(), value.into(), false, ttl_ms(ttl)).await
    }

    /// Writes a key if it is not there; `applied` says whether it was written.
    ///
    /// Errors: as [`Client::put`].
    pub async fn put_if_absent(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<WriteResult> {
        self.put_with(key.into(), value.into(), true, 0).await
    }

    /// Deletes a key; `existed` says whether it was there.
    ///
    /// Errors: as [`Client::put`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<WriteResult> {
        let key = key.into();
        let request = v1::DeleteRequest { header: self.write_header(), key: key.clone() };
        written(&key, self.inner.router.delete(request).await?.result)
    }

    /// Writes a key, or deletes it (`new_value` is `None`), if `expect` holds. If it does not,
    /// `applied` is false and `current` tells what is there.
    ///
    /// Errors: as [`Client::put`]. With [`Expect::Version`] an ambiguous one may simply be repeated:
    /// versions never repeat, so it cannot be applied twice.
    pub async fn compare_and_swap(
        &self,
        key: impl Into<Bytes>,
        expect: Expect,
        new_value: Option<Bytes>,
    ) -> Result<WriteResult> {
        self.swap_with(key.into(), expect, new_value, 0).await
    }

    /// Writes a key, to end by itself after `ttl`, if `expect` holds. See [`Client::put_with_ttl`] and
    /// [`Client::compare_and_swap`]: so a key's life is prolonged only by whoever knows it.
    ///
    /// Errors: as [`Client::compare_and_swap`].
    pub async fn compare_and_swap_with_ttl(
        &self,
        key: impl Into<Bytes>,
        expect: Expect,
        new_value: impl Into<Bytes>,
        ttl: Duration,
    ) -> Result<WriteResult> {
        self.swap_with(key.into(), expect, Some(new_value.into()), ttl_ms(ttl)).await
    }

    async fn swap_with(
        &self,
        key: Bytes,
        expect: Expect,
        new_value: Option<Bytes>,
        ttl_ms: u64,
    ) -> Result<WriteResult> {
        let op = Some(swap(key.clone(), expect, new_value, ttl_ms));
        let request = v1::CompareAndSwapRequest { header: self.write_header(), op };
        written(&key, self.inner.router.compare_and_swap(request).await?.result)
    }

    /// Carries several writes out: at most 1,024, and 1.5 MiB. `atomic`: all or nothing, within one
    /// range. Otherwise each stands for itself and has its own result, in the order given; writes of
    /// the same key are carried out in the order given as long as none of them fails.
    ///
    /// Errors of an atomic batch, or one of a single operation: as [`Client::put`], for the whole,
    /// and *fail*: [`Error::BatchSpansRanges`] with the borders. Otherwise the outer error is only
    /// *fail* ([`Error::InvalidArgument`], nothing was sent), and each operation's as
    /// [`Client::put`].
    pub async fn batch(&self, ops: Vec<WriteOp>, atomic: bool) -> Result<Vec<Result<WriteResult>>> {
        let keys: Vec<Bytes> = ops.iter().map(|op| op.key().clone()).collect();
        let ops = ops.into_iter().map(WriteOp::into_wire).collect();
        let answer = self.inner.router.batch(v1::BatchRequest { header: self.write_header(), ops, atomic }).await?;
        Ok(keys.iter().zip(answer.results).map(|(key, result)| outcome(key, result)).collect())
    }

    async fn put_with(&self, key: Bytes, value: Bytes, if_absent: bool, ttl_ms: u64) -> Result<WriteResult> {
        let request = v1::PutRequest { header: self.write_header(), key: key.clone(), value, if_absent, ttl_ms };
        written(&key, self.inner.router.put(request).await?.result)
    }

    pub(super) fn router(&self) -> &Router<GrpcTransport, Endpoints> {
        &self.inner.router
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout.min(Duration::from_millis(TIMEOUT_MS_MAX))
    }

    pub(super) fn timeout_ms(&self) -> u64 {
        // 0 would mean the default.
        u64::try_from(self.timeout().as_millis()).unwrap_or(TIMEOUT_MS_MAX).max(1)
    }

    pub(super) fn read_header(&self) -> Option<v1::RequestHeader> {
        let consistency = self.consistency.to_wire();
        let keyspace = self.keyspace.clone();
        Some(v1::RequestHeader { timeout_ms: self.timeout_ms(), consistency, keyspace, ..Default::default() })
    }

    pub(super) fn write_header(&self) -> Option<v1::RequestHeader> {
        let keyspace = self.keyspace.clone();
        Some(v1::RequestHeader { timeout_ms: self.timeout_ms(), keyspace, ..Default::default() })
    }
}
