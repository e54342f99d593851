//! Roots of trust: what they hold, where they come from, and how they stay fresh.

mod freshness;
mod http_repository;
mod limit_validity;
mod refresher;
mod root;
mod source;
mod trust_roots;
mod tuf;
mod tuf_store;

pub use freshness::RootTrouble;
pub use refresher::{Refreshed, RootKeeper};
pub use root::{BadRoot, TrustRoot};
pub use source::{BadSource, RootSource, TufOptions};
pub use trust_roots::LiveRoots;
pub use tuf::RefreshFault;
