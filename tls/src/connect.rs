//! Connections to a node's port under TLS, for tonic's endpoints.
//!
//! Beyond what the handshake proves (the CA signed it, it is valid now, it is for this host) the other side must be a
//! node of the cluster that this side's own certificate names, and where one node is meant, that node. A client without
//! a certificate knows no cluster: there the CA is all that counts.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use flotilla_proto::NodeId;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

use crate::explain::explained;
use crate::identity::{Identity, Role};
use crate::tls::Tls;

/// How long a node is given to say something first: only so that a refusal has its words.
const FIRST_WORD: Duration = Duration::from_millis(300);

/// Makes connections; cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    tls: Arc<Tls>,
    expected: Option<NodeId>,
}

impl Connector {
    /// To any node of the cluster.
    pub fn new(tls: Arc<Tls>) -> Self {
        Self { tls, expected: None }
    }

    /// To one node alone.
    pub fn to_node(tls: Arc<Tls>, node: NodeId) -> Self {
        Self { tls, expected: Some(node) }
    }

    /// A connection to a port.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<Connected> {
        let name = ServerName::try_from(host.to_string())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("\"{host}\" is no host")))?;
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(self.tls.client())
            .connect(name, stream)
            .await
            .map_err(|error| explained(error, host))?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        self.check(shown).map_err(|words| io::Error::new(io::ErrorKind::PermissionDenied, words))?;
        let mut connected = Connected { stream: Box::new(stream), host: host.into(), ahead: Vec::new() };
        connected.wait_for_a_word().await?;
        Ok(connected)
    }

    /// Who is it that answered?
    fn check(&self, certificate: Option<&CertificateDer<'_>>) -> Result<(), String> {
        let shown = certificate.ok_or("the node showed no certificate")?;
        let theirs =
            Identity::of_certificate(shown).map_err(|error| format!("what answers there is no node: {error}"))?;
        let own = self.tls.identity();
        if let Some(own) = own.filter(|own| own.cluster != theirs.cluster) {
            return Err(format!("{} answers there, and this is {}: check the addresses", theirs.words(), own.words()));
        }
        match (&theirs.role, self.expected) {
            (Role::Node(node), Some(expected)) if *node != expected => Err(format!(
                "{} answers where node {} was expected: check the addresses and certificates",
                theirs.words(),
                expected.0
            )),
            (Role::Node(_), _) => Ok(()),
            _ => Err(format!("{} answers there, which is no node", theirs.words())),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connected>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            // An IPv6 address stands in brackets.
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let connected = connector.connect(host, uri.port_u16().unwrap_or(443)).await?;
            Ok(TokioIo::new(connected))
        })
    }
}

/// A connection that stands.
#[derive(Debug)]
pub struct Connected {
    stream: Box<TlsStream<TcpStream>>,
    host: String,
    /// Read already, and not yet taken.
    ahead: Vec<u8>,
}

impl Connected {
    /// Under TLS 1.3 a refusal of one's own certificate comes after the handshake, in place of what a node says first
    /// (HTTP/2's settings). Whoever has sent something by then may never read it.
    async fn wait_for_a_word(&mut self) -> io::Result<()> {
        let mut first = [0; 64];
        match timeout(FIRST_WORD, self.read(&mut first)).await {
            Ok(Ok(0)) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the node closed the connection at once")),
            Ok(Ok(length)) => {
                self.ahead = first[..length].to_vec();
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            // It waits for the caller's first word, or is far away.
            Err(_) => Ok(()),
        }
    }
}

impl AsyncRead for Connected {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..length]);
            self.ahead.drain(..length);
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        read.map_err(|error| explained(error, &self.host))
    }
}

impl AsyncWrite for Connected {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
