//! A cluster of three nodes inside of one process: for programs that bring their own storage along, and for their
//! tests.
//!
//!     cargo run --release --example embed [DIRECTORY]

use std::error::Error;
use std::path::PathBuf;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).map_or_else(|| PathBuf::from("embedded-data"), PathBuf::from);
    let mut cluster = flotilla::Cluster::start(&directory, 3).await?;
    let client = cluster.client().await?;

    let written = client.put("greeting", "hello").await?;
    println!("put greeting: version {}", written.version);

    // Two of three nodes are a majority: everything goes on without the third.
    cluster.stop_node(3).await?;
    if let Some(record) = client.get("greeting").await? {
        println!("got {} (version {})", String::from_utf8_lossy(&record.value), record.version);
    }

    cluster.start_node(3).await?;
    cluster.stop().await?;
    Ok(())
}
