//! The program: allocator and exit code.

use std::process::ExitCode;

/// Long-lived blobs among short-lived requests fragment the system allocator, so builds for serving
/// enable this feature.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    bundlegate::cli::main()
}
