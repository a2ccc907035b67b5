//! The HTTP door: /metrics for Prometheus, /healthz (the process works), /readyz (requests are
//! served).

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use flotilla_node::{Door, Doors, Node};
use tokio_stream::StreamExt;

use super::metrics;
use super::table::RouteTable;

/// The routes.
pub(super) fn app(node: Node, table: RouteTable) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(health))
        .with_state(node.clone())
        .route("/readyz", get(ready))
        .with_state((node, table))
}

async fn metrics_text(State(node): State<Node>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::render(&node))
}

async fn health(State(node): State<Node>) -> impl IntoResponse {
    match node.failure() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("the store stopped: {reason}\n")),
    }
}

async fn ready(State((node, table)): State<(Node, RouteTable)>) -> impl IntoResponse {
    if node.is_ready() && table.is_ready() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    if node.is_ready() {
        let why = "this node has not been told the cluster's ranges yet";
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    }
    let problems = node.status().problems.join("\n");
    let why = if problems.is_empty() { "not every range here has found its leader yet".to_owned() } else { problems };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
}

/// The doors, as axum takes them.
pub(super) struct Listener {
    doors: Doors,
    address: SocketAddr,
}

impl Listener {
    /// `address`: where they are.
    pub fn new(doors: Doors, address: SocketAddr) -> Self {
        Self { doors, address }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Door;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Door, SocketAddr) {
        loop {
            // What goes wrong is told and waited for by the doors themselves, which never end.
            if let Some(Ok(door)) = self.doors.next().await {
                let address = door.caller().address();
                return (door, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
