//! Keeps the fleet view of this replica and that of the others alike, by way of the shared state. No
//! request waits for it.

use std::{convert::Infallible, time::Duration};

use tokio::{
    task::yield_now,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    fleet::{ClockOffset, Encoded, Fleet, Replication},
    shared::{Batch, Cursor, LogPosition, LogRead, Record, SharedError, SharedState},
    telemetry::now_millis,
};

/// How often changes are written and read: what one replica sees, the others know within twice this time.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often clients are looked for that are to be reported again.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// Changes in one write: some hundred kilobytes. A write that takes too long is repeated with half as many,
/// because the engine may be slow or far away.
const MAX_CHANGES: usize = 2_000;
const MIN_CHANGES: usize = 20;
/// Writes in a row, before the log is read again.
const MAX_WRITES: usize = 16;
/// Messages that are read at once.
const MAX_MESSAGES: usize = 256;
/// A smaller change of the difference between the clocks is no change.
const MAX_CLOCK_ERROR: Duration = Duration::from_secs(1);
/// How long a record stays after it was last written, beyond the retention of clients.
const TTL_MARGIN: Duration = Duration::from_secs(60 * 60);

/// The part of this replica in the shared fleet view.
#[derive(Debug)]
pub(super) struct FleetSync {
    fleet: Fleet,
    replication: Replication,
    shared: SharedState,
    offset: ClockOffset,
    next_heartbeat: Instant,
    /// Changes in the next write.
    max_changes: usize,
}

/// How far this replica has read what others have written.
#[derive(Debug)]
enum Progress {
    /// The records up to the cursor. What they lack is in the log from the position on.
    Records(LogPosition, Cursor),
    /// All records, and the log up to the position.
    Log(LogPosition),
}

impl FleetSync {
    /// The part of this replica, if there are a shared state and a fleet view.
    pub(super) fn of(shared: Option<SharedState>, fleet: Option<&Fleet>) -> Option<Self> {
        let (shared, fleet) = shared.zip(fleet)?;
        Some(Self::new(fleet.clone(), shared))
    }

    fn new(fleet: Fleet, shared: SharedState) -> Self {
        Self {
            replication: Replication::new(fleet.table.clone(), fastrand::u64(..)),
            fleet,
            shared,
            offset: ClockOffset::default(),
            next_heartbeat: Instant::now() + HEARTBEAT_INTERVAL,
            max_changes: MAX_CHANGES,
        }
    }

    /// Runs until the future is dropped.
    pub(super) async fn run(mut self) -> Infallible {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut progress = None;
        loop {
            ticks.tick().await;
            // The shared state logs and counts its errors.
            let is_complete = self.exchange(&mut progress).await.is_ok();
            self.fleet.set_complete(is_complete);
        }
    }

    /// Reads what others have written, and writes what has changed here. After an error, the next call goes
    /// on with `progress`.
    async fn exchange(&mut self, progress: &mut Option<Progress>) -> Result<(), SharedError> {
        loop {
            match progress {
                None => {
                    self.set_offset(self.shared.time().await?);
                    let end = self.shared.end_of_log().await?;
                    *progress = Some(Progress::Records(end, Cursor::default()));
                }
                Some(Progress::Records(position, cursor)) => {
                    let page = self.shared.scan(*cursor).await?;
                    for Record { key, fields } in &page.records {
                        self.replication.merge_record(key, fields, self.offset);
                    }
                    match page.next {
                        Some(next) => *cursor = next,
                        None => *progress = Some(Progress::Log(position.clone())),
                    }
                    yield_now().await;
                }
                Some(Progress::Log(after)) => {
                    match self.shared.read_log(after, MAX_MESSAGES).await? {
                        LogRead::Messages {
                            messages,
                            position,
                            more,
                        } => {
                            *after = position;
                            self.merge(&messages).await;
                            // Also while there are more, so that the others need not wait for that.
                            self.write().await?;
                            if !more {
                                return Ok(());
                            }
                        }
                        LogRead::Missed => {
                            tracing::info!(
                                "the shared state has lost changes: all clients are exchanged again"
                            );
                            // It may have lost what this replica has written, too.
                            self.replication.add_everything();
                            *progress = None;
                        }
                    }
                }
            }
        }
    }

    async fn merge(&self, messages: &[Vec<u8>]) {
        for message in messages {
            self.replication.merge_message(message, self.offset);
            yield_now().await;
        }
    }

    async fn write(&mut self) -> Result<(), SharedError> {
        if self.next_heartbeat <= Instant::now() {
            self.next_heartbeat = Instant::now() + HEARTBEAT_INTERVAL;
            self.replication.add_heartbeats(now_millis());
        }
        for _ in 0..MAX_WRITES {
            let outgoing = self.replication.take(self.max_changes);
            let encoded = self.replication.encode(&outgoing, self.offset);
            if encoded.is_empty() {
                break;
            }
            match self.shared.write(&batch(encoded, self.ttl())).await {
                Ok(written) => {
                    self.set_offset(written.engine_time);
                    self.max_changes = (self.max_changes * 2).min(MAX_CHANGES);
                }
                Err(error) => {
                    if let SharedError::TimedOut { .. } = error {
                        self.max_changes = (self.max_changes / 2).max(MIN_CHANGES);
                    }
                    self.replication.put_back(outgoing);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn set_offset(&mut self, engine_time: Duration) {
        let engine = u64::try_from(engine_time.as_millis()).unwrap_or(u64::MAX);
        let offset = ClockOffset::new(engine, now_millis());
        // The answers take a while, which differs. The order of changes must not depend on that.
        if offset.differs_by(self.offset, MAX_CLOCK_ERROR) {
            self.offset = offset;
        }
    }

    fn ttl(&self) -> Duration {
        self.fleet.options.retention + TTL_MARGIN
    }
}

fn batch(encoded: Encoded, ttl: Duration) -> Batch {
    let records = encoded.records.into_iter();
    let records = records.map(|(key, fields)| Record { key, fields });
    Batch {
        records: records.collect(),
        ttl,
        messages: encoded.messages,
    }
}
