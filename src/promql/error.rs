//! Why a query has no result.

use std::time::Duration;

/// Why [`Options`](super::Options) are not usable.
#[derive(Debug, thiserror::Error)]
pub enum InvalidOptions {
    /// Another scheme than `http` and `https`.
    #[error("the URL is neither `http` nor `https`")]
    Scheme,
    /// A user or a password in the URL.
    #[error("the URL has a user; write it to a file")]
    User,
    /// A query or a fragment in the URL.
    #[error("the URL has a query or a fragment; remove it")]
    Query,
    /// A root that is not a certificate, or roots of the system that can't be read.
    #[error("making the HTTP client failed")]
    Client(#[source] reqwest::Error),
}

/// A query without a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {failure}")]
pub struct QueryError {
    /// The URL of the API, which has no credential.
    pub url: String,
    /// Why there is no result.
    pub failure: QueryFailure,
}

/// Why a query has no result. No text has a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryFailure {
    /// rustls panics outside of this range.
    #[error("the system's clock is before 1970 or after 9999; set it")]
    Clock,
    /// The file of the credential is not usable.
    #[error("{0}")]
    Credential(String),
    /// No complete answer in time.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// Connecting, TLS or reading failed.
    #[error("{0}")]
    Request(String),
    /// Another status than 200.
    #[error("HTTP {status}{}{detail}", if .detail.is_empty() { "" } else { ": " })]
    Status {
        /// The status.
        status: u16,
        /// What Prometheus says, cut, or what the status means; may be empty.
        detail: String,
    },
    /// The answer is larger than the limit, in bytes.
    #[error("the answer is larger than {limit} bytes; aggregate the series in the query")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The answer is not one of the API.
    #[error("not an answer of Prometheus' API: {0}")]
    Malformed(String),
}
