//! Compiles the .proto files with protox, a compiler in Rust: no protoc is needed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["common", "kv", "admin", "peer", "engine", "placement", "recovery"]
        .map(|name| format!("flotilla/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Served by gRPC reflection.
    std::fs::write(out.join("flotilla_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        // Rare, and large: not a part of every message between nodes.
        .boxed(".flotilla.v1.PeerMessage.merge_ask")
        .boxed(".flotilla.v1.Command.change.merge")
        .compile_fds(descriptors)?;
    Ok(())
}
