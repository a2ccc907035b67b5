//! Compiles the .proto files with protox, a compiler in Rust: no protoc is needed. Checks that the table of who may
//! call what has a line for each RPC, and generates it; and what each message takes in memory (src/memory.rs).

use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;

use prost::Message;

#[path = "build/access.rs"]
mod access;
#[path = "build/shapes.rs"]
mod shapes;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["common", "kv", "admin", "peer", "engine", "placement", "recovery"]
        .map(|name| format!("flotilla/v1/{name}.proto"));
    for input in ["proto", "build", "access.txt"] {
        println!("cargo:rerun-if-changed={input}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let table = access::parse(&std::fs::read_to_string("access.txt")?)?;
    let (mut services, mut rpcs) = (Vec::new(), Vec::new());
    for file in &descriptors.file {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            rpcs.extend(service.method.iter().map(|method| format!("/{name}/{}", method.name())));
            services.push(name);
        }
    }
    access::check(&table, &services, &rpcs)?;
    let mut lines = String::from("[\n");
    for (path, who) in &table {
        writeln!(lines, "    (\"{path}\", Who::{who}),")?;
    }
    std::fs::write(out.join("access.rs"), lines + "]\n")?;
    std::fs::write(out.join("shapes.rs"), shapes::generate(&descriptors)?)?;
    // Served by gRPC reflection.
    std::fs::write(out.join("flotilla_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::BoundedCodec")
        // Rare, and large: not a part of every message between nodes.
        .boxed(".flotilla.v1.PeerMessage.merge_ask")
        .boxed(".flotilla.v1.Command.change.merge")
        .compile_fds(descriptors)?;
    Ok(())
}
