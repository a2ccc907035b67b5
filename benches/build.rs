//! Generates the two gRPC services of the bench `layout_rpc`: one from a .proto file (protox, no
//! protoc), one whose messages are raw bytes and which no .proto file can describe.

use std::error::Error;

use tonic_prost_build::manual;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["echo.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;

    let exchange = manual::Method::builder()
        .name("exchange")
        .route_name("Exchange")
        .input_type("bytes::Bytes")
        .output_type("bytes::Bytes")
        .codec_path("flotilla_proto::codec::BytesCodec")
        .client_streaming()
        .server_streaming()
        .build();
    let frames = manual::Service::builder().name("Frames").package("flotilla.benches.frames").method(exchange).build();
    manual::Builder::new().compile(&[frames]);
    Ok(())
}
