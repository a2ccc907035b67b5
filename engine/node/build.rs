//! Generates the gRPC service between nodes. Its messages are frames of our own
//! (src/transport/frame.rs), which no .proto file can describe.

use tonic_prost_build::manual;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
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
    let service = manual::Service::builder()
        .name("Peer")
        .package("flotilla.v1")
        .method(method("raft", "Raft"))
        .method(method("bulk", "Bulk"))
        .build();
    manual::Builder::new().compile(&[service]);
}
