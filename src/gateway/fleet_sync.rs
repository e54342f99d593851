//! Keeps the fleet view of this replica and that of the others alike, by way of the shared state. No
//! request waits for it.

use std::{convert::Infallible, time::Duration};

use anyhow::Context as _;
use tokio::{
    task::{spawn_blocking, yield_now},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    config::Config,
    fleet::{ClockOffset, Encoded, Fleet, Replication},
    metrics::Metrics,
    shared::{
        Batch, Cursor, LogPosition, LogRead, Record, SharedError, SharedMetrics, SharedState,
    },
    telemetry::now_millis,
};

/// How often changes are written and read: what one replica sees, the others know within twice this time.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often clients are looked for that are to be reported again.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// Changes of what clients run in one write: some hundred kilobytes.
const MAX_CHANGES: usize = 4_000;
/// Writes in a row, before the log is read again.
const MAX_WRITES: usize = 8;
/// Messages that are read at once.
const MAX_MESSAGES: usize = 256;
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
}

impl FleetSync {
    /// The part of this replica, if the configuration has a shared state and a fleet view.
    ///
    /// # Errors
    /// When the certificates for the shared state are unusable, or its metrics exist already.
    pub(super) async fn of(
        config: &Config,
        fleet: Option<&Fleet>,
        metrics: &Metrics,
    ) -> anyhow::Result<Option<Self>> {
        let Some((options, fleet)) = config.shared.clone().zip(fleet) else {
            return Ok(None);
        };
        let metrics = SharedMetrics::new(metrics).context("metrics")?;
        // Blocks while the system's certificates are read.
        let shared = spawn_blocking(move || SharedState::new(options, metrics)).await?;
        Ok(Some(Self::new(
            fleet.clone(),
            shared.context("shared.ca_file")?,
        )))
    }

    fn new(fleet: Fleet, shared: SharedState) -> Self {
        Self {
            replication: Replication::new(fleet.table.clone(), fastrand::u64(..)),
            fleet,
            shared,
            offset: ClockOffset::default(),
            next_heartbeat: Instant::now() + HEARTBEAT_INTERVAL,
        }
    }

    /// Runs until the future is dropped.
    pub(super) async fn run(mut self) -> Infallible {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut position = None;
        loop {
            ticks.tick().await;
            // The shared state logs and counts its errors.
            let is_complete = self.exchange(&mut position).await.is_ok();
            self.fleet.set_complete(is_complete);
        }
    }

    /// Reads what others have written, and writes what has changed here. `position`: how far the log was
    /// read; `None` before all records were read.
    async fn exchange(&mut self, position: &mut Option<LogPosition>) -> Result<(), SharedError> {
        if position.is_none() {
            *position = Some(self.read_records().await?);
        }
        while let Some(after) = position.take() {
            match self.shared.read_log(&after, MAX_MESSAGES).await {
                Ok(LogRead::Messages {
                    messages,
                    position: next,
                    more,
                }) => {
                    self.merge(&messages).await;
                    *position = Some(next);
                    if !more {
                        break;
                    }
                }
                Ok(LogRead::Missed) => {
                    tracing::info!(
                        "the shared state was lost or is ahead; the clients are exchanged anew"
                    );
                    // The engine may have lost what this replica has written.
                    self.replication.add_everything();
                    *position = Some(self.read_records().await?);
                }
                Err(error) => {
                    *position = Some(after);
                    return Err(error);
                }
            }
        }
        self.write().await
    }

    /// Reads all records. Returns the position from which on the log has what they lack.
    async fn read_records(&mut self) -> Result<LogPosition, SharedError> {
        self.set_offset(self.shared.time().await?);
        let position = self.shared.end_of_log().await?;
        let mut cursor = Some(Cursor::default());
        while let Some(at) = cursor {
            let page = self.shared.scan(at).await?;
            for Record { key, fields } in &page.records {
                self.replication.merge_record(key, fields, self.offset);
            }
            cursor = page.next;
            yield_now().await;
        }
        Ok(position)
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
            let outgoing = self.replication.take(MAX_CHANGES);
            let encoded = self.replication.encode(&outgoing, self.offset);
            if encoded.is_empty() {
                break;
            }
            match self.shared.write(&batch(encoded, self.ttl())).await {
                Ok(written) => self.set_offset(written.engine_time),
                Err(error) => {
                    self.replication.put_back(outgoing);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn set_offset(&mut self, engine_time: Duration) {
        let engine = u64::try_from(engine_time.as_millis()).unwrap_or(u64::MAX);
        self.offset = ClockOffset::new(engine, now_millis());
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
