//! The calls, their deadline, and when a connection is opened.

use std::{fmt, sync::Arc};

use redis::Pipeline;
use tokio::{
    sync::Mutex,
    time::{Duration, Instant, timeout},
};

use super::{
    batch::{Batch, Cursor, LogPosition, LogRead, Page, Written},
    commands::{self, Keys, Reply},
    connection::{Connection, Connector, retry_delay},
    error::SharedError,
    health::{Access, Failure, Health},
    metrics::SharedMetrics,
    options::Options,
};

/// The state that replicas share. Cheap to clone; the clones use one connection.
///
/// Every call returns within [`Options::timeout`]. Dropping the future of a call closes the
/// connection if the call is using it; a write may then have happened or not.
#[derive(Clone)]
pub struct SharedState(Arc<Inner>);

struct Inner {
    options: Arc<Options>,
    connector: Connector,
    keys: Keys,
    slot: Mutex<Slot>,
    health: Health,
    metrics: SharedMetrics,
}

/// The connection, and the attempts to open one.
#[derive(Debug, Default)]
struct Slot {
    connection: Option<Connection>,
    /// The attempts since the last successful command.
    attempts: u32,
    /// The time of the next attempt; `None` for at once.
    retry_at: Option<Instant>,
}

/// What a call does, for metrics and for [`Health`].
#[derive(Debug, Clone, Copy)]
enum Operation {
    Write,
    ReadLog,
    EndOfLog,
    Scan,
    Time,
}

impl SharedState {
    /// Prepares the access; nothing is connected yet. Blocks while the system's roots are read, if
    /// TLS is used.
    ///
    /// # Errors
    /// When the extra roots are unusable.
    pub fn new(options: Options, metrics: SharedMetrics) -> Result<Self, rustls::Error> {
        let servers = options.servers.to_string();
        Ok(Self(Arc::new(Inner {
            connector: Connector::new(&options)?,
            keys: Keys::new(&options.prefix),
            slot: Mutex::default(),
            health: Health::new(servers, metrics.up.clone()),
            metrics,
            options: Arc::new(options),
        })))
    }

    /// Whether the last calls succeeded: the last one that reads, and the last one that writes.
    pub fn is_up(&self) -> bool {
        self.0.metrics.up.get() == 1
    }

    /// Writes records, appends messages to the log, and returns the time of the engine. It is not
    /// atomic: after an error some of it may have been written. Writing the same records again does
    /// no harm; messages are appended again.
    ///
    /// # Errors
    /// See [`SharedError`]; `TooLarge` beyond [`MAX_BATCH_BYTES`](super::MAX_BATCH_BYTES) and
    /// [`MAX_MESSAGE_BYTES`](super::MAX_MESSAGE_BYTES).
    pub async fn write(&self, batch: &Batch) -> Result<Written, SharedError> {
        batch.check()?;
        let commands = self.0.keys.write(batch);
        self.call(Operation::Write, async {
            let engine_time = reply(self.query(&commands).await?.time())?;
            Ok(Written { engine_time })
        })
        .await
    }

    /// Reads at most `limit` messages after a position, up to 512.
    ///
    /// # Errors
    /// See [`SharedError`].
    pub async fn read_log(
        &self,
        after: &LogPosition,
        limit: usize,
    ) -> Result<LogRead, SharedError> {
        let commands = self.0.keys.read_log(after.entry, limit);
        self.call(Operation::ReadLog, async {
            reply(self.query(&commands).await?.log(after, limit))
        })
        .await
    }

    /// The position of the last message of the log. An empty log gets an entry without a message, so
    /// that every position is that of an entry.
    ///
    /// # Errors
    /// See [`SharedError`].
    pub async fn end_of_log(&self) -> Result<LogPosition, SharedError> {
        let keys = &self.0.keys;
        let (last_entry, mark) = (keys.last_entry(), keys.mark());
        self.call(Operation::EndOfLog, async {
            match reply(self.query(&last_entry).await?.last_entry())? {
                Some(position) => Ok(position),
                None => reply(self.query(&mark).await?.marked()),
            }
        })
        .await
    }

    /// Reads a page of records. All pages together have every record that exists from the first call
    /// to the last, some perhaps twice. A page may be empty and have a next page.
    ///
    /// # Errors
    /// See [`SharedError`].
    pub async fn scan(&self, cursor: Cursor) -> Result<Page, SharedError> {
        let keys = &self.0.keys;
        let scan = keys.scan(cursor);
        self.call(Operation::Scan, async {
            let (next, names) = reply(self.query(&scan).await?.keys())?;
            let mut records = Vec::new();
            if !names.is_empty() {
                let replies = self.query(&Keys::records(&names)).await?;
                records = reply(replies.records(keys, &names))?;
            }
            Ok(Page { records, next })
        })
        .await
    }

    /// The clock of the engine, since 1970.
    ///
    /// # Errors
    /// See [`SharedError`].
    pub async fn time(&self) -> Result<Duration, SharedError> {
        let commands = commands::time();
        self.call(Operation::Time, async {
            reply(self.query(&commands).await?.time())
        })
        .await
    }

    /// Runs a call within the timeout, and records its result.
    async fn call<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, SharedError> {
        let Inner {
            options,
            health,
            metrics,
            ..
        } = &*self.0;
        let start = Instant::now();
        let result = timeout(options.timeout, work).await.unwrap_or_else(|_| {
            Err(Failure::Connection(SharedError::TimedOut {
                server: options.servers.to_string(),
                timeout: options.timeout,
            }))
        });
        let (name, duration) = (operation.name(), start.elapsed());
        match result {
            Ok(value) => {
                metrics.record(name, "ok", duration);
                health.record_success(operation.access());
                Ok(value)
            }
            Err(failure) => {
                health.record_failure(operation.access(), &failure);
                if let Failure::Skipped(_) = failure {
                    metrics.record_skipped(name);
                    return Err(failure.into_error());
                }
                let error = failure.into_error();
                metrics.record(name, error.outcome(), duration);
                Err(error)
            }
        }
    }

    /// Sends commands over the connection, which is opened if there is none. It stays only if they
    /// succeed: after an error, or when this future is dropped, its replies are no longer known to
    /// match the commands, and another server may be the primary.
    async fn query(&self, commands: &Pipeline) -> Result<Reply, Failure> {
        let inner = &*self.0;
        let mut slot = inner.slot.lock().await;
        let connection = slot.connection.take();
        let mut connection = match connection.filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => inner.connect(&mut slot).await?,
        };
        let values = connection.query(commands).await;
        let values = values.map_err(Failure::of_command)?;
        let reply = Reply {
            values,
            run: Arc::clone(&connection.run),
            server: connection.server().to_owned(),
        };
        *slot = Slot {
            connection: Some(connection),
            ..Slot::default()
        };
        Ok(reply)
    }
}

impl Inner {
    /// Opens a connection, unless the last attempt began a moment ago.
    async fn connect(&self, slot: &mut Slot) -> Result<Connection, Failure> {
        let now = Instant::now();
        if slot.retry_at.is_some_and(|at| now < at) {
            let last = self.health.last_error();
            let unknown = || {
                let server = self.options.servers.to_string();
                SharedError::unreachable(&server, "the last attempt failed")
            };
            return Err(Failure::Skipped(last.unwrap_or_else(unknown)));
        }
        // Before the attempt, which may be cancelled.
        slot.retry_at = Some(now + retry_delay(slot.attempts));
        slot.attempts = slot.attempts.saturating_add(1);
        Connection::open(&self.connector, &self.options)
            .await
            .map_err(Failure::Connection)
    }
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::ReadLog => "read_log",
            Self::EndOfLog => "end_of_log",
            Self::Scan => "scan",
            Self::Time => "time",
        }
    }

    fn access(self) -> Access {
        match self {
            Self::Write => Access::Write,
            Self::ReadLog | Self::EndOfLog | Self::Scan | Self::Time => Access::Read,
        }
    }
}

/// The result of parsing a reply.
fn reply<T>(result: Result<T, SharedError>) -> Result<T, Failure> {
    result.map_err(Failure::Reply)
}

impl fmt::Debug for SharedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedState")
            .field("servers", &self.0.options.servers)
            .finish_non_exhaustive()
    }
}
