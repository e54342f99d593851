//! The calls, their deadline, and when a connection is opened.

use std::{
    fmt,
    sync::{Arc, MutexGuard, PoisonError},
};

use redis::{Pipeline, ServerError, Value};
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
    plan::{
        Lease, MAX_NOTE_BYTES, MAX_PLAN_BYTES, PlanRead, PlanVersion, PlanWrite, PlansRead,
        StoredPlan,
    },
    plan_commands::{
        self, CONTENTS_PER_REPLY, LeaseRequest, PlanKeys, PlanLookup, PlanUpdate,
        VERSIONS_PER_REPLY,
    },
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
    plan_keys: PlanKeys,
    /// The holder of the lease whose last call succeeded.
    leader: std::sync::Mutex<Option<u64>>,
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
    ReadPlans,
    ReplacePlan,
    RestorePlan,
    Lease,
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
            plan_keys: PlanKeys::new(&options.prefix),
            leader: std::sync::Mutex::default(),
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

    /// Reads plans by their names. Of a plan whose version the caller knows, the content is read only
    /// if the plan has another version now.
    ///
    /// Every plan is read after the call began. Its epoch, rank and content belong together; between
    /// two plans there is no such relation. The versions of 4 096 plans are one reply, then the
    /// contents of 128 changed ones, all within [`Options::timeout`]; other calls wait for the current
    /// reply only. A reply has at most 64 MiB, which a plan of this module never exceeds.
    ///
    /// A broken plan is reported as such at each call until it is repaired, and is no error. A content
    /// that another program has changed without the digest is noticed only by callers that read it.
    ///
    /// # Errors
    /// See [`SharedError`].
    pub async fn read_plans(
        &self,
        plans: &[(&str, Option<PlanVersion>)],
    ) -> Result<PlansRead, SharedError> {
        let lookups = plans.iter().map(|(name, known)| PlanLookup {
            key: self.0.plan_keys.plan(name),
            known: *known,
        });
        let lookups: Vec<_> = lookups.collect();
        self.call(Operation::ReadPlans, async {
            let (mut reads, engine_time) = self.plan_versions(&lookups).await?;
            self.read_changed(&lookups, &mut reads).await?;
            let plans = reads.into_iter().flatten().collect();
            Ok(PlansRead { plans, engine_time })
        })
        .await
    }

    /// Compares the versions of plans; `None` for those whose content must be read.
    async fn plan_versions(
        &self,
        lookups: &[PlanLookup],
    ) -> Result<(Vec<Option<PlanRead>>, Duration), Failure> {
        let (mut reads, mut rest) = (Vec::with_capacity(lookups.len()), lookups);
        loop {
            let part;
            (part, rest) = rest.split_at(rest.len().min(VERSIONS_PER_REPLY));
            let replies = self.query(&plan_commands::read_versions(part)).await?;
            let (versions, engine_time) = reply(replies.plan_versions(part))?;
            reads.extend(versions);
            if rest.is_empty() {
                return Ok((reads, engine_time));
            }
        }
    }

    /// Reads the plans that have no result yet.
    async fn read_changed(
        &self,
        lookups: &[PlanLookup],
        reads: &mut [Option<PlanRead>],
    ) -> Result<(), Failure> {
        let changed = lookups.iter().zip(reads);
        let mut changed: Vec<_> = changed.filter(|(_, read)| read.is_none()).collect();
        for part in changed.chunks_mut(CONTENTS_PER_REPLY) {
            let keys: Vec<_> = part.iter().map(|(lookup, _)| &*lookup.key).collect();
            let replies = self.query(&plan_commands::read(&keys)).await?;
            let plans = reply(replies.plans(&keys))?;
            for ((_, read), plan) in part.iter_mut().zip(plans) {
                **read = Some(plan);
            }
        }
        Ok(())
    }

    /// Replaces a plan if its epoch is still `expected`, which is 0 for a plan that does not exist.
    /// The new one gets `expected + 1`.
    ///
    /// Of several such calls with one epoch, on any replicas, one writes. After an error, and when
    /// this future is dropped, the plan may have been written, or may be written a moment later: the
    /// next [`SharedState::read_plans`] tells, or the same call again, which returns `Superseded` with
    /// this very content.
    ///
    /// # Errors
    /// See [`SharedError`]; `TooLarge` beyond [`MAX_PLAN_BYTES`].
    pub async fn replace_plan(
        &self,
        name: &str,
        expected: u64,
        rank: u8,
        content: &[u8],
    ) -> Result<PlanWrite, SharedError> {
        let key = &*self.0.plan_keys.plan(name);
        let epoch = expected;
        let update = PlanUpdate {
            key,
            epoch,
            rank,
            content,
        };
        self.write_plan(Operation::ReplacePlan, update, PlanUpdate::replace)
            .await
    }

    /// Writes a plan that the engine may have lost: only if the engine has none, one with a lower
    /// epoch, or one with this epoch and a lower rank. The plan gets the next epoch, so that a
    /// replica that has seen this epoch with another content sees a change.
    ///
    /// After an error the plan may have been written, as with [`SharedState::replace_plan`].
    ///
    /// # Errors
    /// See [`SharedError`]; `TooLarge` beyond [`MAX_PLAN_BYTES`].
    pub async fn restore_plan(
        &self,
        name: &str,
        plan: &StoredPlan,
    ) -> Result<PlanWrite, SharedError> {
        let key = &*self.0.plan_keys.plan(name);
        let update = PlanUpdate {
            key,
            epoch: plan.epoch,
            rank: plan.rank,
            content: &plan.content,
        };
        self.write_plan(Operation::RestorePlan, update, PlanUpdate::restore)
            .await
    }

    async fn write_plan<'a>(
        &self,
        operation: Operation,
        update: PlanUpdate<'a>,
        commands: impl FnOnce(PlanUpdate<'a>) -> Pipeline,
    ) -> Result<PlanWrite, SharedError> {
        SharedError::check_size("a plan", update.content.len(), MAX_PLAN_BYTES)?;
        let commands = commands(update);
        self.call(operation, async {
            let written = self.query(&commands).await?.plan_write(update);
            written.map_err(Failure::Plan)
        })
        .await
    }

    /// Takes the lease of the leader for `ttl`, of at least 1 ms, or renews it. The clock is that of
    /// the engine.
    ///
    /// `note` is what the holder wants the next holder to know, of at most [`MAX_NOTE_BYTES`]. It is
    /// stored when the lease is renewed, and stays for a day. A holder that takes the lease gets the
    /// note and stores none. After an error, and when this future is dropped, the lease may be taken
    /// or renewed; the next call then returns `Taken`, with the note, and not `Renewed`.
    ///
    /// Two replicas may act as leader for a moment: after a failover, which can lose the lease, and
    /// while a holder has not noticed that its lease has ended. The epochs of plans are the safeguard.
    ///
    /// # Errors
    /// See [`SharedError`]; `TooLarge` for a larger note.
    pub async fn lease(
        &self,
        holder: u64,
        ttl: Duration,
        note: &[u8],
    ) -> Result<Lease, SharedError> {
        SharedError::check_size("the note of the leader", note.len(), MAX_NOTE_BYTES)?;
        let keys = &self.0.plan_keys;
        let is_known = self.0.leader().take_if(|last| *last == holder).is_some();
        let commands = keys.lease(LeaseRequest {
            holder,
            ttl,
            note,
            is_known,
        });
        let lease = self
            .call(Operation::Lease, async {
                reply(self.query(&commands).await?.lease(keys))
            })
            .await?;
        if lease != Lease::Held {
            *self.0.leader() = Some(holder);
        }
        Ok(lease)
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
        if let Some(error) = values.iter().find_map(fatal_error) {
            let error = SharedError::of_reply(connection.server(), error);
            return Err(Failure::of_command(error));
        }
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
    fn leader(&self) -> MutexGuard<'_, Option<u64>> {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
            Self::ReadPlans => "read_plans",
            Self::ReplacePlan => "replace_plan",
            Self::RestorePlan => "restore_plan",
            Self::Lease => "lease",
        }
    }

    fn access(self) -> Access {
        match self {
            Self::Write => Access::Write,
            Self::ReadLog | Self::EndOfLog | Self::Scan | Self::Time => Access::Read,
            Self::ReadPlans => Access::ReadPlans,
            Self::ReplacePlan | Self::RestorePlan | Self::Lease => Access::Script,
        }
    }
}

/// An error among the replies to commands that fail one by one, unless it is that of a key alone,
/// which the reader of the replies reports.
fn fatal_error(value: &Value) -> Option<&ServerError> {
    match value {
        Value::ServerError(error) if !plan_commands::is_wrong_type(error) => Some(error),
        _ => None,
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
