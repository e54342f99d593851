//! The `bundlegate` program.

fn main() {}
