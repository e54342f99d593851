//! Instant queries of Prometheus' HTTP API (`POST /api/v1/query`), for the checks of roll-outs.
//!
//! The configuration alone decides which host is contacted: redirects are not followed, and without
//! TLS no proxy is used, which could read the credential. With TLS the proxy of the environment
//! (`HTTPS_PROXY`, `NO_PROXY`) is used as everywhere else.
//!
//! | file | holds |
//! |---|---|
//! | `client` | a query, within a time and a size |
//! | `answer` | what an answer of the API means |
//! | `options`, `error` | URL and credentials, errors |

mod answer;
mod client;
mod error;
mod options;

pub use self::{
    client::PromqlClient,
    error::{InvalidOptions, QueryError, QueryFailure},
    options::{Credential, Options},
};
