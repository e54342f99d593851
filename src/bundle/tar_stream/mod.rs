//! The members of a tar archive as Go's `archive/tar`, and therefore OPA, reads them.
//!
//! Tar readers disagree about odd archives, and a gateway that read another file than the OPA
//! behind it would verify something else than OPA enforces. This reader follows Go step by step,
//! including its limit of 1 MiB on everything that describes a member.

mod block;
mod header;
mod pax;
mod reader;
mod sparse;

pub(super) use reader::TarReader;
