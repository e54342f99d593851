//! Which reply has a delta instead of the whole bundle, and which request waits for one.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    super::{
        Entry, bundle_api::BundleApi, delta_guard::DeltaRequest, metrics::DeltaOutcome,
        reply::Reply,
    },
    Awaited, BundleRequest, Wait,
};
use crate::{
    fleet::{TagHash, WaitingPoll},
    publish::FromBase,
};

/// How long a request waits for the delta from an earlier version, which is computed once a client runs that. Other
/// bundles may be compared at the same time; then the client gets the whole bundle.
const DELTA_WAIT: Duration = Duration::from_secs(2);

impl BundleApi {
    /// The same reply, with a delta if there is one for what the client runs, and it may be sent.
    pub(super) fn with_delta(
        &self,
        reply: Reply,
        entry: &Entry,
        request: &BundleRequest,
        wait: &mut Wait,
    ) -> Reply {
        let if_none_match = request.if_none_match.get();
        let (Reply::Bundle { snapshot, .. }, true, Some(runs)) =
            (&reply, request.accepts_delta, if_none_match.first())
        else {
            return reply;
        };
        let Some(FromBase::Delta(delta)) = snapshot.from_base(runs) else {
            return reply;
        };
        let may_send = wait.may_send_delta.get_or_insert_with(|| {
            self.deltas
                .may_send(request.delta_request(entry, Some(runs)))
        });
        match may_send {
            true => reply.with_delta(delta),
            false => reply,
        }
    }

    /// What a request waits for whose client runs an earlier version that the one in its reply can be compared with.
    pub(super) fn comparison<'a>(
        &self,
        reply: Option<&Reply>,
        entry: &Entry,
        request: &'a BundleRequest,
        wait: &mut Wait,
    ) -> Option<Awaited<'a>> {
        let Reply::Bundle { snapshot, .. } = reply? else {
            return None;
        };
        let runs = request.if_none_match.get().first()?;
        if !request.accepts_delta || !snapshot.can_be_compared(runs) {
            // Another version may be compared later.
            wait.delta_until = None;
            return None;
        }
        let until = || Box::new(Instant::now() + DELTA_WAIT);
        let until = **wait.delta_until.get_or_insert_with(until);
        let may_send = *wait.may_send_delta.get_or_insert_with(|| {
            self.deltas
                .may_send(request.delta_request(entry, Some(runs)))
        });
        if Instant::now() >= until || !may_send || !wait.begin_hold(request) {
            return None;
        }
        let snapshot = Arc::clone(snapshot);
        Some(Box::pin(async move {
            let _ = timeout_at(until, snapshot.request_comparison(runs)).await;
            false
        }))
    }

    /// Records that a version is sent, for the decision whether its client gets deltas.
    pub(super) fn record_download(
        &self,
        reply: &Reply,
        entry: &Entry,
        request: &BundleRequest,
        wait: &Wait,
    ) {
        let (
            Reply::Bundle {
                snapshot, delta, ..
            },
            true,
        ) = (reply, request.accepts_delta)
        else {
            return;
        };
        let delta_request = request.delta_request(entry, request.if_none_match.get().first());
        let is_delta = delta.is_some();
        self.deltas
            .record(delta_request, snapshot.tag_hash(), is_delta);
        let outcome = match (is_delta, wait.may_send_delta) {
            (true, _) => DeltaOutcome::Sent,
            (false, Some(false)) => DeltaOutcome::Refused,
            (false, _) => return,
        };
        entry.metrics().count_delta(outcome);
    }
}

impl BundleRequest {
    fn delta_request<'a>(&'a self, entry: &'a Entry, runs: Option<&str>) -> DeltaRequest<'a> {
        let client_bundle = self.waiting.as_ref().map(WaitingPoll::client_bundle);
        let named = client_bundle.filter(|client_bundle| !client_bundle.is_by_address());
        DeltaRequest {
            bundle: entry.name(),
            began: self.began,
            runs: runs.map(TagHash::of),
            client: &self.client,
            name: named.map(|client_bundle| client_bundle.client()),
            slot: &self.slot,
        }
    }
}
