//! Roots of trust: what they hold, where they come from, and how they stay fresh.

mod freshness;
mod keeper;
mod live;
mod mirror;
mod narrow;
mod root;
mod shelf;
mod source;
mod tuf;

pub use freshness::RootTrouble;
pub use keeper::{Refreshed, RootKeeper};
pub use live::LiveRoots;
pub use root::{BadRoot, TrustRoot};
pub use source::{BadSource, RootSource, TufOptions};
pub use tuf::RefreshFault;
