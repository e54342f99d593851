//! The members of a tar archive as Go's `archive/tar`, and therefore OPA, reads them.
//!
//! Tar readers disagree about unusual archives, and a gateway that reads other files than OPA does
//! would verify something else than OPA enforces. This reader follows Go step by step, including
//! its limit of 1 MiB on everything that describes a member.

mod block;
mod header;
mod pax;
mod reader;
mod sparse;

pub(super) use reader::TarReader;
