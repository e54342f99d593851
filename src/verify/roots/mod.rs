//! Trust roots: their content, their sources, and their refresh over TUF.

mod freshness;
mod http_repository;
mod limit_validity;
mod metrics;
mod refresher;
mod root;
mod source;
mod status;
mod trust_roots;
mod tuf;
mod tuf_store;

pub use freshness::UnusableRoot;
pub use metrics::TrustRootMetrics;
pub use refresher::{Refreshed, TrustRootRefresher};
pub use root::{BadRoot, TrustRoot};
pub use source::{BadSource, RootSource, TufOptions};
pub use status::{RootFailure, TrustRootStatus};
pub use trust_roots::TrustRoots;
pub use tuf::RefreshError;
