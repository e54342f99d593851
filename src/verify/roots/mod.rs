//! Roots of trust: what they hold, where they come from, and how they stay fresh.

mod freshness;
mod narrow;
mod root;
mod source;

pub use freshness::RootTrouble;
pub use root::{BadRoot, TrustRoot};
pub use source::{BadSource, RootSource, TufOptions};
