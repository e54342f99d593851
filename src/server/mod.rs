//! The HTTP server: the bundle API, the admin API, their listeners and the drain. It reads
//! published snapshots and never talks to a registry, a key or the cache.
//!
//! | file | holds |
//! |---|---|
//! | `lifecycle` | both listeners, start and drain |
//! | `options` | addresses, limits and deadlines |
//! | `live` | values that are replaced while the server runs |
//! | `listener` | accepting connections, at most `max_connections` |
//! | `connection` | one connection: TLS, protocol detection, and how it is closed |
//! | `fast_path`, `plain_request` | the requests of OPA over HTTP/1.1, which need no hyper |
//! | `http1`, `http2` | all other requests of the two protocols |
//! | `close_signal` | tells a connection to close |
//! | `idle_connections` | which connections are evicted, held requests, deadlines of each step |
//! | `write_timeout`, `unsent_response`, `response_body` | sending within time and memory limits |
//! | `socket`, `unix_socket` | sockets that accept connections |
//! | `service` | the answer to a request: at once, or later |
//! | `bundle_api` | routing, authorization and replies for bundles |
//! | `long_poll` | when a request is answered at once and when it is held |
//! | `pacer` | when bodies are sent: bandwidth and spread |
//! | `repeat_guard` | delays clients that download the same version again and again |
//! | `delta_guard` | which clients get deltas |
//! | `request_head`, `if_none_match`, `prefer`, `trusted_proxies`, `credential` | what a request says |
//! | `credential_checks`, `password_checks`, `jwt_checks` | whether a credential is genuine |
//! | `clients` | whose credential it is, and what that client may read |
//! | `refusal` | why a request is refused, in the response, the log and the metrics |
//! | `reply` | the reply to a request for a bundle, whatever the protocol |
//! | `absence` | what a client learns about a bundle that has nothing to serve |
//! | `response` | every status line, header and error body |
//! | `admin`, `renderer` | probes, `/metrics`, `/status` and `/` |
//! | `overview`, `status`, `page` | what operators see, as JSON and as HTML |
//! | `admin_access`, `admin_tokens` | who may send the requests to the admin API that change something, and which browsers may read |
//! | `refresh_api` | checks of the registry on request |
//! | `reload_api`, `config_reloads` | reloads of the configuration on request |
//! | `rollout_api`, `rollouts` | staged roll-outs as JSON, and what operators ask for |
//! | `webhook_api`, `webhooks` | notifications of registries |
//! | `request_body` | reading a body within limits |
//! | `report_limit` | how many status reports are read |
//! | `pending_request` | a request that is answered later: how long that takes, and for how long it is held |
//! | `access_log` | the access log |
//! | `delivery` | how far a response was sent, for the access log and the fleet view |
//! | `fleet_recorder` | what requests say about their clients, for the fleet view |
//! | `staged` | which of two versions a client gets during a roll-out |
//! | `status_reports`, `report_limit` | OPA's status reports |
//! | `fleet_api`, `fleet_selection` | the fleet view as JSON, and which clients a query selects |
//! | `metrics` | what the server counts |
//! | `holdout_tracker` | clients that still run a withdrawn version |
//! | `drain` | how far the shutdown has come |
//! | `readiness`, `liveness` | whether the server is ready, and whether it runs |

mod absence;
mod access_log;
mod admin;
mod admin_access;
mod admin_tokens;
#[cfg(any(test, fuzzing))]
mod both_paths;
mod bundle_api;
mod clients;
mod close_signal;
mod config_reloads;
mod connection;
mod credential;
mod credential_checks;
mod date;
mod delivery;
mod delta_guard;
mod drain;
mod fast_path;
mod fleet_api;
mod fleet_recorder;
mod fleet_selection;
#[cfg(fuzzing)]
pub mod fuzzing;
mod holdout_tracker;
mod http1;
mod http2;
mod idle_connections;
mod if_none_match;
mod jwt_checks;
mod lifecycle;
mod listener;
mod live;
mod liveness;
mod long_poll;
mod metrics;
mod options;
mod overview;
mod pacer;
mod page;
mod password_checks;
mod pending_request;
mod plain_request;
mod prefer;
mod prefixed_stream;
mod readiness;
mod refresh_api;
mod refusal;
mod reload_api;
mod renderer;
mod repeat_guard;
mod reply;
mod report_limit;
mod request_body;
mod request_head;
mod response;
mod response_body;
mod rollout_api;
mod rollouts;
mod service;
mod socket;
mod staged;
mod status;
mod status_reports;
mod trusted_proxies;
mod unix_socket;
mod unsent_response;
mod webhook_api;
mod webhooks;
mod write_timeout;

pub use self::{
    access_log::AccessLevel,
    admin_tokens::AdminTokens,
    clients::{Clients, LiveClients, Requirement, Tokens},
    config_reloads::{Began, ConfigReloads, ReloadOutcome, ReloadRequests},
    lifecycle::Server,
    live::Live,
    liveness::Liveness,
    metrics::{RequestMetrics, ServerMetrics},
    options::{
        AdminAddress, AdminOptions, AdminTls, CertificateInUse, Deadlines, Drain, LiveCertificates,
        LiveSettings, LongPoll, Options, ServerTls, Settings,
    },
    readiness::Readiness,
    rollouts::{RolloutReply, RolloutRequest, RolloutRequests, RolloutStatus, Rollouts},
    trusted_proxies::TrustedProxies,
    webhooks::LiveWebhooks,
};

/// The bundles that the server serves.
pub type Catalog = crate::catalog::Catalog<RequestMetrics>;

/// A bundle that the server serves.
pub type Entry = crate::catalog::Entry<RequestMetrics>;

/// A client's request for a bundle that is added on demand.
pub type Demand = crate::catalog::Demand<RequestMetrics>;
