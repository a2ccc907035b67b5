//! Generates the gRPC service between nodes. Its messages are frames of our own
//! (src/transport/frame.rs), which no .proto file can describe.

use std::error::Error;

use tonic_prost_build::manual;

#[path = "../../proto/build/access.rs"]
mod access;

/// The service's name, and its methods with those of their routes.
const SERVICE: &str = "flotilla.v1.Peer";
const METHODS: [(&str, &str); 2] = [("raft", "Raft"), ("bulk", "Bulk")];

fn main() -> Result<(), Box<dyn Error>> {
    for input in ["build.rs", "../../proto/build/access.rs", "../../proto/access.txt"] {
        println!("cargo:rerun-if-changed={input}");
    }
    let table = access::parse(&std::fs::read_to_string("../../proto/access.txt")?)?;
    access::check(&table, &[SERVICE.into()], &METHODS.map(|(_, route)| format!("/{SERVICE}/{route}")))?;
    let method = |name: &str, route: &str| {
        manual::Method::builder()
            .name(name)
            .route_name(route)
            .input_type("bytes::Bytes")
            .output_type("bytes::Bytes")
            .codec_path("flotilla_proto::codec::BytesCodec")
            .client_streaming()
            .server_streaming()
            .build()
    };
    let mut service = manual::Service::builder().name("Peer").package("flotilla.v1");
    for (name, route) in METHODS {
        service = service.method(method(name, route));
    }
    manual::Builder::new().compile(&[service.build()]);
    Ok(())
}
