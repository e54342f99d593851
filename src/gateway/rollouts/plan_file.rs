//! The plans on disk, for the time after a restart.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tokio::task::spawn_blocking;

use crate::rollout::Plan;

/// The file in the folder of the cache.
const NAME: &str = "rollouts.json";
/// The largest file: five thousand plans of 64 KiB.
const MAX_BYTES: u64 = 320 << 20;

/// The plans on disk, by bundle. Without a folder they are lost with the process.
#[derive(Debug, Clone)]
pub(in super::super) struct PlanFile(Option<PathBuf>);

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    epoch: u64,
    plan: Box<serde_json::value::RawValue>,
}

impl PlanFile {
    /// The file in this folder.
    pub(in super::super) fn new(folder: Option<&Path>) -> Self {
        Self(folder.map(|folder| folder.join(NAME)))
    }

    /// The plans; none that can't be read, with an entry in the log.
    pub(in super::super) async fn read(&self) -> BTreeMap<String, Plan> {
        let Some(path) = self.0.clone() else {
            return BTreeMap::new();
        };
        let read = spawn_blocking(move || read(&path)).await;
        read.unwrap_or_default()
    }

    /// Writes the plans, and waits until they survive a crash. Returns whether that has succeeded; a failure is
    /// logged.
    pub(super) async fn write(&self, plans: Vec<(String, Plan)>) -> bool {
        let Some(path) = self.0.clone() else {
            return false;
        };
        let written = spawn_blocking(move || write(&path, &plans)).await;
        match written {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the plans of roll-outs can't be written to cache.directory");
                false
            }
            Err(_) => false,
        }
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
