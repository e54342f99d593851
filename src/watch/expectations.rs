//! Where what is served, or should be, stands among what a bundle has served before: how
//! [`Expect`](super::Expect) reaches into the pipeline and the watcher.

use std::sync::Arc;

use super::{
    expect::{Facts, OnOlder, Unmet},
    history::History,
    persist::Update,
    refresh::Pipeline,
    watcher::Watcher,
};
use crate::{
    oci::{Digest, Manifest},
    publish::{Failure, FailureClass, Snapshot, Step},
    verify::Verified,
};

impl Pipeline {
    /// What this bundle has served before the process started.
    pub(super) async fn history(&self) -> History {
        let stored = self.store.history(&self.name, &self.reference.to_string(), HISTORY_LIMIT).await;
        stored.map_or_else(History::default, |bytes| History::from_bytes(&self.name, &bytes))
    }

    /// Refuses what is not as expected, as far as the manifest tells: a manifest is all that it
    /// costs.
    pub(super) fn expect_manifest(&self, manifest: &Verified<Manifest>, past: &History) -> Result<(), Failure> {
        let met = self.expect.check(&Facts::of(manifest, self.reference.tag()), past);
        met.map_err(|unmet| unexpected(Step::Verify, manifest.pinned().digest(), &unmet))
    }

    /// Refuses what is not as expected.
    pub(super) fn expect_snapshot(&self, snapshot: &Snapshot, past: &History) -> Result<(), Failure> {
        let met = self.expect.check(&self.facts(snapshot), past);
        met.map_err(|unmet| unexpected(Step::Open, snapshot.manifest_digest(), &unmet))
    }

    fn facts<'a>(&'a self, snapshot: &'a Snapshot) -> Facts<'a> {
        Facts::of_snapshot(snapshot, self.reference.tag())
    }
}

impl Watcher {
    /// The history if this is served.
    pub(super) fn history_serving(&self, snapshot: &Snapshot) -> History {
        let (expect, facts) = (&self.pipeline.expect, self.pipeline.facts(snapshot));
        // Where there is an order, what does not say where it stands was refused.
        let position = expect.position(&facts).ok().flatten();
        self.history.after_serving(facts.digest, position, expect.on_older)
    }

    /// Notes that this is served, or restored; with an alarm if it is older than it should
    /// be.
    pub(super) fn record_served(&mut self, snapshot: &Snapshot) {
        let (expect, facts) = (&self.pipeline.expect, self.pipeline.facts(snapshot));
        let older = expect.older(&facts, &self.history).ok().flatten();
        let older = older.filter(|_| expect.on_older != OnOlder::Serve);
        self.publisher.set_downgrade(older.map(|older| older.to_string()).as_deref());
        self.history = Arc::new(self.history_serving(snapshot));
    }

    /// Removes the withdrawn version from the disk, and records that it was withdrawn.
    pub(super) fn persist_withdrawal(&mut self) {
        self.history = Arc::new(self.history.after_showing(self.publisher.machine().published()));
        self.persist_queue.enqueue(Update::Forget { history: self.history.to_bytes() });
    }
}

/// The bytes are what they are, so that they are not fetched again; a signature may follow.
fn unexpected(step: Step, digest: &Digest, unmet: &Unmet) -> Failure {
    let class = if unmet.changes_by_signing() { FailureClass::Evidence } else { FailureClass::Defect };
    let message = format!("{unmet} (digest {digest}); see `expect`");
    Failure { class, step, digest: Some(digest.clone()), etag: None, reason: unmet.label(), message }
}

/// Sixty-four digests and a few words take a tenth of it.
const HISTORY_LIMIT: u64 = 64 << 10;
