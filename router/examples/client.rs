//! The client library in a minute: put, get, compare-and-swap, scan, delete.
//!
//! ```sh
//! cargo run --release -p flotilla-router --example client 127.0.0.1:7300
//! ```

use std::time::Duration;

use flotilla_proto::Error;
use flotilla_router::{Client, ClientConfig, DeleteOptions, Expect, ScanOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let addresses: Vec<String> = std::env::args().skip(1).collect();
    let client = Client::connect(addresses, ClientConfig::default()).await?;

    let put = client.put("example/greeting", "hello").await?;
    println!("put: version {}", put.version);

    if let Some(record) = client.get("example/greeting").await? {
        println!("get: {} (version {})", String::from_utf8_lossy(&record.value), record.version);
    }

    // Only if nobody has written it since: a version never comes back.
    let swap = client.compare_and_swap("example/greeting", Expect::Version(put.version), Some("hi".into())).await?;
    println!("compare-and-swap: {}", if swap.applied { "written" } else { "somebody was faster" });

    // What to do about a failed write is in the error itself.
    match client.put("example/other", "world").await {
        Ok(_) => {}
        Err(Error::Ambiguous { reason }) => println!("it may have been written: {reason}"),
        Err(error) => return Err(error),
    }

    // It ends by itself.
    client.put_with_ttl("example/session", "42", Duration::from_secs(60)).await?;

    let mut pages = client.scan_pages(ScanOptions { limit: 100, ..ScanOptions::prefix("example/") });
    while let Some(page) = pages.next().await? {
        for record in page.records {
            println!("scan: {} = {}", String::from_utf8_lossy(&record.key), String::from_utf8_lossy(&record.value));
        }
    }

    let mut parts = client.delete_parts(DeleteOptions::prefix("example/"));
    while let Some(part) = parts.next().await? {
        println!("delete: {} keys", part.count);
    }
    Ok(())
}
