//! The use of [`Expect`](super::Expect) in the pipeline and the watcher, with the history of the
//! versions served.

use std::sync::Arc;

use super::{
    expect::{Facts, OnOlder, Unmet},
    history::History,
    persist::Update,
    refresh::{Pipeline, below},
    watcher::Watcher,
};
use crate::{
    oci::{Manifest, ManifestPath},
    publish::{Failure, FailureClass, Snapshot, Step},
    verify::Verified,
};

impl Pipeline {
    /// The versions that this bundle served before the process started.
    pub(super) async fn history(&self) -> History {
        let stored = self
            .store
            .history(&self.name, &self.reference.to_string(), HISTORY_LIMIT)
            .await;
        stored.map_or_else(History::default, |bytes| {
            History::from_bytes(&self.name, &bytes)
        })
    }

    /// Checks the expectations that the manifest at the end of `path` can meet or fail, before the
    /// download.
    pub(super) fn expect_manifest(
        &self,
        path: &ManifestPath,
        manifest: &Verified<Manifest>,
        past: &History,
    ) -> Result<(), Failure> {
        let facts = Facts::of(manifest, self.version_text.as_deref());
        let met = self.expect.check(&facts, past);
        met.map_err(|unmet| unexpected(Step::Verify, path, &unmet))
    }

    /// Checks that the tag of the reference, if it states a version, states that of the snapshot.
    pub(super) fn expect_tag(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        let met = self.expect.check_tag(&self.facts(snapshot));
        met.map_err(|unmet| unexpected(Step::Verify, &snapshot.record().path, &unmet))
    }

    /// Checks all expectations.
    pub(super) fn expect_snapshot(
        &self,
        snapshot: &Snapshot,
        past: &History,
    ) -> Result<(), Failure> {
        let met = self.expect.check(&self.facts(snapshot), past);
        met.map_err(|unmet| unexpected(Step::Open, &snapshot.record().path, &unmet))
    }

    fn facts<'a>(&'a self, snapshot: &'a Snapshot) -> Facts<'a> {
        Facts::of_snapshot(snapshot, self.version_text.as_deref())
    }
}

impl Watcher {
    /// The history with this version published. Where versions are rolled out in steps, only the first one
    /// counts as served by that.
    pub(super) fn history_serving(&self, snapshot: &Snapshot) -> History {
        match self.is_staged() && !self.history.is_empty() {
            true => History::clone(&self.history),
            false => self.history_after(snapshot),
        }
    }

    /// Adds a version that has become the stable one to the history, and to what the disk has of it.
    pub(super) fn record_stable(&mut self, snapshot: &Snapshot) {
        let history = Arc::new(self.history_after(snapshot));
        if *history != *self.history {
            self.history = history;
            self.persist_published();
        }
    }

    fn history_after(&self, snapshot: &Snapshot) -> History {
        let (expect, facts) = (&self.pipeline.expect, self.pipeline.facts(snapshot));
        // A version without a position in a configured order was refused.
        let position = expect.position(&facts).ok().flatten();
        let history = self
            .history
            .after_serving(facts.digest, position, expect.on_older);
        match &self.accepted_tag {
            Some(tag) => history.with_tag(tag),
            None => history,
        }
    }

    /// Adds a served or restored version to the history, and raises the alarm if it is older than
    /// one served before.
    pub(super) fn record_served(&mut self, snapshot: &Snapshot) {
        let (expect, facts) = (&self.pipeline.expect, self.pipeline.facts(snapshot));
        let older = expect.older(&facts, &self.history).ok().flatten();
        let older = older.filter(|_| expect.on_older != OnOlder::Serve);
        self.publisher
            .set_downgrade(older.map(|older| older.to_string()).as_deref());
        self.history = Arc::new(self.history_serving(snapshot));
    }

    /// Removes the withdrawn version from the disk, and records that it was withdrawn.
    pub(super) fn persist_withdrawal(&mut self) {
        self.history = Arc::new(
            self.history
                .after_showing(self.publisher.machine().published()),
        );
        self.persist_queue.enqueue(Update::Forget {
            history: self.history.to_bytes(),
        });
    }
}

/// The failure of an expectation: a defect, which is not fetched again, unless a new signature
/// could meet the expectation.
fn unexpected(step: Step, path: &ManifestPath, unmet: &Unmet) -> Failure {
    let digest = path.digest();
    let class = if unmet.changes_by_signing() {
        FailureClass::Evidence
    } else {
        FailureClass::Defect
    };
    let message = format!("{unmet} (digest {digest}); see `expect`");
    Failure {
        class,
        step,
        digest: Some(digest.clone()),
        below: below(path),
        etag: None,
        reason: unmet.label(),
        message,
    }
}

/// The maximum size of a stored history in bytes; sixty-four digests take a tenth of it.
const HISTORY_LIMIT: u64 = 64 << 10;
