//! The plans on disk, for the time after a restart.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tokio::{sync::watch, task::spawn_blocking, time::timeout};

use crate::rollout::Plan;

/// The file in the folder of the cache.
const NAME: &str = "rollouts.json";
/// The largest file: five thousand plans of 64 KiB.
const MAX_BYTES: u64 = 320 << 20;
/// How long a plan waits for the disk before it is put in force without it: a disk that hangs must not delay a halt.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

type Plans = Vec<(String, Plan)>;

/// The plans on disk, by bundle. Without a folder they are lost with the process.
#[derive(Debug, Clone)]
pub(in super::super) struct PlanFile(Option<Arc<Writer>>);

/// Makes one write at a time, so that an older write can't replace a newer one.
#[derive(Debug)]
struct Writer {
    path: PathBuf,
    queue: Mutex<Queue>,
    /// The number of the last write that has ended.
    ended: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Queue {
    /// The number of the last write that was asked for.
    newest: u64,
    /// What to write next. Newer plans replace it.
    waiting: Option<Plans>,
    is_writing: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    epoch: u64,
    plan: Box<serde_json::value::RawValue>,
}

impl PlanFile {
    /// The file in this folder.
    pub(in super::super) fn new(folder: Option<&Path>) -> Self {
        let writer = |folder: &Path| {
            Arc::new(Writer {
                path: folder.join(NAME),
                queue: Mutex::default(),
                ended: watch::Sender::new(0),
            })
        };
        Self(folder.map(writer))
    }

    /// The plans; none that can't be read, with an entry in the log.
    pub(in super::super) async fn read(&self) -> BTreeMap<String, Plan> {
        let Some(writer) = self.0.clone() else {
            return BTreeMap::new();
        };
        let read = spawn_blocking(move || read(&writer.path)).await;
        read.unwrap_or_default()
    }

    /// Writes the plans, and waits until they survive a crash, for two seconds at most. A failure is logged.
    pub(super) async fn write(&self, plans: Plans) {
        let Some(writer) = &self.0 else {
            return;
        };
        let mut ended = writer.ended.subscribe();
        let number = writer.enqueue(plans);
        let done = ended.wait_for(|&ended| ended >= number);
        if timeout(WRITE_TIMEOUT, done).await.is_err() {
            tracing::warn!(
                "the plans of roll-outs are not yet in cache.directory: the disk is slow"
            );
        }
    }
}

impl Writer {
    /// Puts the plans in the queue, and begins to write unless a write runs. Returns the number of this write.
    fn enqueue(self: &Arc<Self>, plans: Plans) -> u64 {
        let mut queue = self.queue();
        queue.newest += 1;
        queue.waiting = Some(plans);
        if !mem::replace(&mut queue.is_writing, true) {
            let writer = Arc::clone(self);
            spawn_blocking(move || writer.write_waiting());
        }
        queue.newest
    }

    /// Writes what waits, until nothing waits.
    fn write_waiting(&self) {
        while let Some((number, plans)) = self.take_waiting() {
            if let Err(error) = write(&self.path, &plans) {
                tracing::warn!(%error, "the plans of roll-outs can't be written to cache.directory");
            }
            self.ended.send_replace(number);
        }
    }

    fn take_waiting(&self) -> Option<(u64, Plans)> {
        let mut queue = self.queue();
        let plans = queue.waiting.take();
        queue.is_writing = plans.is_some();
        plans.map(|plans| (queue.newest, plans))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> BTreeMap<String, Plan> {
    let text = match fs::metadata(path) {
        Ok(metadata) if metadata.len() <= MAX_BYTES => fs::read(path),
        Ok(_) => Err(io::Error::other("it is too large")),
        Err(error) => Err(error),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the plans of roll-outs can't be read");
            return BTreeMap::new();
        }
    };
    let entries: BTreeMap<String, Entry> = serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "the plans of roll-outs can't be read");
        BTreeMap::new()
    });
    let plans = entries.into_iter().filter_map(|(bundle, entry)| {
        match Plan::from_bytes(entry.epoch, entry.plan.get().as_bytes()) {
            Ok(plan) => Some((bundle, plan)),
            Err(error) => {
                tracing::error!(bundle, %error, "the plan on disk is ignored");
                None
            }
        }
    });
    plans.collect()
}

fn write(path: &Path, plans: &[(String, Plan)]) -> io::Result<()> {
    let mut entries = BTreeMap::new();
    for (bundle, plan) in plans {
        let entry = Entry {
            epoch: plan.epoch,
            plan: serde_json::value::to_raw_value(plan)?,
        };
        entries.insert(bundle, entry);
    }
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(&entries)?)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{Phase, fixture};

    fn plans(epoch: u64) -> Plans {
        let plan = Plan {
            epoch,
            ..fixture::plan(Phase::Idle)
        };
        vec![("app".to_owned(), plan)]
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_delays_a_plan_for_two_seconds_and_gets_the_newest_one_later() {
        let folder = tempfile::tempdir().unwrap();
        let file = PlanFile::new(Some(folder.path()));
        let writer = file.0.clone().unwrap();
        // As if a write hung.
        writer.queue().is_writing = true;

        let began = tokio::time::Instant::now();
        file.write(plans(1)).await;
        assert_eq!(began.elapsed(), WRITE_TIMEOUT);
        file.write(plans(2)).await;
        assert!(!folder.path().join(NAME).exists());

        // The hanging write ends.
        writer.write_waiting();
        assert_eq!(file.read().await["app"].epoch, 2);
        assert!(!writer.queue().is_writing);
    }
}
