//! The program: an allocator and an exit code.

use std::process::ExitCode;

/// Long-lived blobs among short-lived requests fragment the system's allocator: builds that
/// serve have the feature.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    bundlegate::cli::main()
}
