//! Why the shared state could not be read or written.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerError, ServerErrorKind};

use crate::telemetry::{SENTENCE_BYTES, cut};

/// Why a call failed. Every text names the server, and none has a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SharedError {
    /// No connection, or it was closed, or the engine is not ready yet.
    #[error("{server} is unreachable: {reason}")]
    Unreachable {
        /// The server.
        server: String,
        /// Why.
        reason: String,
    },
    /// No answer in [`Options::timeout`](super::Options::timeout).
    #[error("{server} did not answer within {}", humantime::format_duration(*.timeout))]
    TimedOut {
        /// The server.
        server: String,
        /// The time that was waited.
        timeout: Duration,
    },
    /// The engine refused a command, or one of the two sides refused the connection: a wrong
    /// password, an untrusted certificate, missing permissions, a replica, a full engine.
    #[error("{server} is not usable: {reason}")]
    Refused {
        /// The server.
        server: String,
        /// Why.
        reason: String,
    },
    /// The answer is not one to the command.
    #[error("{server} answered unexpectedly: {reason}")]
    Protocol {
        /// The server.
        server: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// What should be written is too large. Nothing was sent.
    #[error("{what} has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

impl SharedError {
    pub(super) fn unreachable(server: &str, reason: &str) -> Self {
        Self::Unreachable {
            server: server.to_owned(),
            reason: cut(reason, SENTENCE_BYTES).into_owned(),
        }
    }

    pub(super) fn refused(server: &str, reason: &str) -> Self {
        Self::Refused {
            server: server.to_owned(),
            reason: cut(reason, SENTENCE_BYTES).into_owned(),
        }
    }

    pub(super) fn protocol(server: &str, reason: &str) -> Self {
        Self::Protocol {
            server: server.to_owned(),
            reason: cut(reason, SENTENCE_BYTES).into_owned(),
        }
    }

    /// Checks the size of what should be written.
    pub(super) fn check_size(what: &'static str, bytes: usize, limit: usize) -> Result<(), Self> {
        match bytes > limit {
            true => Err(Self::TooLarge { what, bytes, limit }),
            false => Ok(()),
        }
    }

    /// The error of the `redis` crate for a command to `server`.
    pub(super) fn of_command(server: &str, error: RedisError) -> Self {
        let (kind, text) = (error.kind(), error.to_string());
        match kind {
            // rustls reports here what the server says after the handshake, such as that it requires
            // a client certificate. The type of the error is not accessible through the crate.
            ErrorKind::Io if text.contains("fatal alert") => {
                Self::refused(server, &format!("TLS: {text}"))
            }
            ErrorKind::Io => Self::unreachable(server, &text),
            ErrorKind::AuthenticationFailed => Self::refused(server, WRONG_PASSWORD),
            ErrorKind::Server(_) | ErrorKind::Extension => match error.into_server_errors() {
                Some(errors) => match errors.first() {
                    Some((_, error)) => Self::of_reply(server, error),
                    None => Self::protocol(server, &text),
                },
                None => Self::refused(server, &text),
            },
            _ => Self::protocol(server, &text),
        }
    }

    /// An error that the engine answered.
    pub(super) fn of_reply(server: &str, error: &ServerError) -> Self {
        let code = error.code();
        let text = match error.details() {
            Some(details) => format!("{code} {details}"),
            None => code.to_owned(),
        };
        match error.kind() {
            // It is starting, or a replica without its primary.
            Some(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::TryAgain,
            ) => Self::unreachable(server, &text),
            Some(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::ClusterDown) => {
                let reason = format!("it is a node of a cluster, which is not supported ({text})");
                Self::refused(server, &reason)
            }
            _ if code == "NOAUTH" => Self::refused(server, &format!("{text}; set a password")),
            _ => Self::refused(server, &text),
        }
    }

    /// The outcome as a label of a metric.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::Refused { .. } => "refused",
            Self::Protocol { .. } | Self::TooLarge { .. } => "protocol",
        }
    }
}

pub(super) const WRONG_PASSWORD: &str =
    "the user or the password is wrong; correct `username` or the content of `password_file`";
