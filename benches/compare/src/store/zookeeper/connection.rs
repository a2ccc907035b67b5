//! One connection to a server of ZooKeeper, which is one session: any number of clients ask, and none waits for another's
//! answer before its own request goes out. What is asked together leaves together.
//!
//! The crates that there are do not disable Nagle's algorithm, by which a second small request waits until the first one
//! was answered: that would be measured, not ZooKeeper.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flotilla_benches::cluster::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::wire::{self, PING_XID, Reply, Request};
use crate::store::{Done, Failed};

/// A session that is not heard of for so long ends.
const SESSION_TIMEOUT: Duration = Duration::from_secs(30);
/// Sessions may have nothing to do.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Requests that leave by one write, at most.
const TOGETHER_MAX: usize = 128;

/// A request on its way.
struct Asked {
    xid: i32,
    frame: Bytes,
    answer: oneshot::Sender<Reply>,
}

/// It ends with the last of its clones.
#[derive(Clone)]
pub struct Connection {
    asked: mpsc::UnboundedSender<Asked>,
    next_xid: Arc<AtomicI32>,
}

impl Connection {
    pub async fn open(address: &str) -> Result<Self> {
        let mut socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        socket.write_all(&wire::connect(i32::try_from(SESSION_TIMEOUT.as_millis())?)).await?;
        let mut read = BytesMut::new();
        let frame = loop {
            if let Some(frame) = wire::take_frame(&mut read)? {
                break frame;
            }
            if socket.read_buf(&mut read).await? == 0 {
                return Err(format!("{address} gives no session: it has closed the connection").into());
            }
        };
        if !wire::connected(&frame) {
            return Err(format!("{address} gives no session").into());
        }
        let (asked, to_ask) = mpsc::unbounded_channel();
        tokio::spawn(serve(socket, read, to_ask));
        Ok(Self { asked, next_xid: Arc::new(AtomicI32::new(1)) })
    }

    /// The request is on its way when this returns; those of one caller are carried out in the order in which they were
    /// made.
    pub fn ask(&self, request: Request<'_>) -> impl Future<Output = Done<Reply>> + Send + use<> {
        let xid = self.next_xid.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        // If nobody takes it, the answer is dropped with it.
        let _ = self.asked.send(Asked { xid, frame: request.frame(xid), answer });
        async { answered.await.map_err(|_| Failed("the connection is lost".into())) }
    }
}

/// Writes what is asked and hands out what is answered, until nobody asks any more or the connection is lost: then those
/// that still wait hear of it, as their answers are dropped.
async fn serve(mut socket: TcpStream, mut read: BytesMut, mut asked: mpsc::UnboundedReceiver<Asked>) {
    let mut awaited = VecDeque::new();
    let (mut together, mut out) = (Vec::new(), BytesMut::new());
    let mut ping = tokio::time::interval(PING_EVERY);
    loop {
        tokio::select! {
            count = socket.read_buf(&mut read) => {
                if !matches!(count, Ok(1..)) || hand_out(&mut read, &mut awaited).is_none() {
                    return;
                }
                continue;
            }
            count = asked.recv_many(&mut together, TOGETHER_MAX) => {
                if count == 0 {
                    return close(socket).await;
                }
                for one in together.drain(..) {
                    out.extend_from_slice(&one.frame);
                    awaited.push_back((one.xid, one.answer));
                }
            }
            _ = ping.tick() => out.extend_from_slice(&Request::Ping.frame(PING_XID)),
        }
        // Nothing is read meanwhile: a server reads on whether its answers are taken or not, as long as they fit into the
        // socket's buffers; what a few dozen clients wait for does.
        if socket.write_all(&out).await.is_err() {
            return;
        }
        out.clear();
    }
}

/// `None`: this is no answer to what was asked.
fn hand_out(read: &mut BytesMut, awaited: &mut VecDeque<(i32, oneshot::Sender<Reply>)>) -> Option<()> {
    while let Some(frame) = wire::take_frame(read).ok()? {
        let reply = Reply::read(frame)?;
        if reply.xid == PING_XID {
            continue;
        }
        let (xid, answer) = awaited.pop_front()?;
        if xid != reply.xid {
            return None;
        }
        // Whoever asked may have gone.
        let _ = answer.send(reply);
    }
    Some(())
}

/// The server closes the connection when it has ended the session.
async fn close(mut socket: TcpStream) {
    if socket.write_all(&Request::CloseSession.frame(0)).await.is_err() {
        return;
    }
    let mut rest = BytesMut::new();
    while matches!(socket.read_buf(&mut rest).await, Ok(1..)) {
        rest.clear();
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use tokio::net::TcpListener;

    use super::*;

    /// The first connection, past its greeting, and what has accepted it.
    async fn accepted() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound").to_string();
        let server = async {
            let (mut socket, _) = listener.accept().await.expect("accepted");
            assert_eq!(frame(&mut socket).await, wire::connect(30_000)[4..]);
            let mut greeting = BytesMut::new();
            greeting.put_i32(37);
            greeting.put_slice(&[1; 37]);
            socket.write_all(&greeting).await.expect("written");
            socket
        };
        let (connection, socket) = tokio::join!(Connection::open(&address), server);
        (connection.expect("opened"), socket)
    }

    /// The next frame, pings left out.
    async fn frame(socket: &mut TcpStream) -> Bytes {
        loop {
            let length = socket.read_u32().await.expect("a length");
            let mut frame = vec![0; length as usize];
            socket.read_exact(&mut frame).await.expect("a frame");
            if frame[..4] != PING_XID.to_be_bytes() {
                return frame.into();
            }
        }
    }

    fn reply(xid: i32, error: i32) -> Bytes {
        let mut reply = BytesMut::new();
        reply.put_i32(16);
        reply.put_i32(xid);
        reply.put_i64(1);
        reply.put_i32(error);
        reply.freeze()
    }

    #[tokio::test]
    async fn requests_go_out_before_earlier_ones_are_answered() {
        let (connection, mut server) = accepted().await;
        let sync = connection.ask(Request::Sync { path: "/a" });
        let get = connection.ask(Request::GetData { path: "/a" });
        assert_eq!(frame(&mut server).await, Request::Sync { path: "/a" }.frame(1)[4..]);
        assert_eq!(frame(&mut server).await, Request::GetData { path: "/a" }.frame(2)[4..]);
        for (xid, error) in [(1, wire::OK), (PING_XID, wire::OK), (2, wire::NO_NODE)] {
            server.write_all(&reply(xid, error)).await.expect("written");
        }
        assert_eq!(sync.await.expect("answered").error, wire::OK);
        assert_eq!(get.await.expect("answered").error, wire::NO_NODE);
    }

    #[tokio::test]
    async fn a_connection_that_nobody_has_any_more_ends_its_session() {
        let (connection, mut server) = accepted().await;
        drop(connection);
        assert_eq!(frame(&mut server).await, Request::CloseSession.frame(0)[4..]);
    }

    #[tokio::test]
    async fn who_waits_hears_that_the_connection_is_lost() {
        let (connection, mut server) = accepted().await;
        let get = connection.ask(Request::GetData { path: "/a" });
        // An answer to something else is as bad as none.
        server.write_all(&reply(99, wire::OK)).await.expect("written");
        assert!(get.await.is_err());
        assert!(connection.ask(Request::GetData { path: "/a" }).await.is_err());
    }
}
