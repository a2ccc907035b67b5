//! The one binary: node, client commands, local cluster.

mod cli;
mod processor;
mod supervisor;

use std::process::ExitCode;

// Tests count what is allocated, with an allocator of their own.
#[cfg(all(feature = "jemalloc", not(test)))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    if let Err(lacks) = processor::check() {
        eprintln!("error: {lacks}");
        return ExitCode::FAILURE;
    }
    cli::main()
}
