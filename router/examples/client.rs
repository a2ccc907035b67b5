//! The client library in a minute: put, get, compare-and-swap, scan.
//!
//! ```sh
//! cargo run --release -p flotilla-router --example client 127.0.0.1:7300
//! ```

use flotilla_proto::Error;
use flotilla_router::{Client, ClientConfig, Expect, ScanOptions};

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

    let mut pages = client.scan_pages(ScanOptions { limit: 100, ..ScanOptions::prefix("example/") });
    while let Some(page) = pages.next().await? {
        for record in page.records {
            println!("scan: {} = {}", String::from_utf8_lossy(&record.key), String::from_utf8_lossy(&record.value));
        }
    }
    Ok(())
}
