//! A node's certificates while it runs: taken up when their files change, and at SIGHUP.

use std::sync::Arc;
use std::time::Duration;

use flotilla_tls::{Tls, TlsError};
use tokio::sync::watch;

/// How often it is looked whether the files have changed.
const INTERVAL: Duration = Duration::from_secs(5);

/// Looks until the stop.
pub(super) async fn follow(tls: Arc<Tls>, mut stopping: watch::Receiver<bool>) {
    tell(&tls);
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = stopping.changed() => return,
        }
        take(&tls, Tls::reload_if_changed).await;
    }
}

/// Reads them again, whether they look changed or not.
pub(super) async fn reload(tls: &Arc<Tls>) {
    take(tls, |tls| tls.reload().map(|()| true)).await;
}

/// Away from the network's threads.
async fn take(tls: &Arc<Tls>, how: impl FnOnce(&Tls) -> Result<bool, TlsError> + Send + 'static) {
    let reading = Arc::clone(tls);
    match tokio::task::spawn_blocking(move || how(&reading)).await {
        Ok(Ok(false)) => {}
        Ok(Ok(true)) => tell(tls),
        Ok(Err(error)) => tracing::error!("the certificates were not reloaded, the old ones stay: {error}"),
        Err(error) => tracing::error!("the certificates were not reloaded, the old ones stay: {error}"),
    }
}

fn tell(tls: &Tls) {
    if let Some((identity, ends)) = tls.identity().zip(tls.ends()) {
        tracing::info!("new connections use the certificate of {}, valid until {ends}", identity.words());
    }
}
