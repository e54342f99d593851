//! When a bundle request is answered: at once, when the bundle changes, or at its deadline.

use std::{
    future::pending,
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Entry, RequestMetrics,
    bundle_api::BundleApi,
    holdout_tracker::{ClientId, WaitGuard},
    idle_connections::{HeldRequest, Slot},
    if_none_match::OwnedIfNoneMatch,
    pacer::{Admission, Body},
    prefer,
    reply::Reply,
    request_head::ReadMethod,
    response,
};
use crate::{
    catalog::InUse,
    metrics::InFlight,
    publish::{ClientVersion, Handle, Seen, Selection, Snapshot, State, View, Withdrawal},
};

/// Delay before a client that runs another version gets the fallback. Withdrawing is a decision of
/// this replica, which no registry can confirm. Where another replica has decided otherwise, a
/// client that reaches both must not alternate thousands of times a second.
const FALLBACK_DELAY: Duration = Duration::from_millis(500);

/// A request for a bundle: everything that is kept of it while it is held.
pub(super) struct BundleRequest {
    /// When the request arrived. Its deadline counts from here, also if its bundle is replaced.
    pub(super) began: Instant,
    pub(super) if_none_match: OwnedIfNoneMatch,
    /// The client's `Prefer: wait`.
    pub(super) wait: Option<Duration>,
    pub(super) client: ClientId,
    pub(super) predates_long_polling: bool,
    pub(super) method: ReadMethod,
    pub(super) slot: Arc<Slot>,
}

/// A request that is being answered: what it waits for, and what it counts as meanwhile. It is kept
/// small, because a fleet has a long poll for each OPA.
struct Wait {
    view: View,
    outdated: watch::Receiver<bool>,
    _guards: (Option<InFlight>, Option<InUse<RequestMetrics>>),
    /// What [`HoldoutTracker`](super::holdout_tracker::HoldoutTracker) has recorded, if it was asked.
    tracked: Option<Option<Box<WaitGuard>>>,
    /// Whether the registry, or a change seen by this request, confirms the served version.
    is_confirmed: bool,
    hold: Option<HeldRequest>,
    admission: Admission,
}

/// What a request that is not answered yet needs besides a change of its bundle.
type Confirmation<'a> = Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>;

impl BundleApi {
    /// Replies at once, when the bundle changes, or at the deadline. If the bundle is reconfigured
    /// while the request is held, the request continues with the new `entry`. `None` if it is
    /// removed meanwhile. Cancel-safe.
    pub(super) async fn respond(
        &self,
        entry: &mut Arc<Entry>,
        request: &BundleRequest,
    ) -> Option<Reply> {
        let mut drain = self.drain.clone();
        // During the drain a request is held only for a check that confirms the version.
        let draining = drain.is_draining();
        let held = self.hold_of(request).filter(|_| !draining);
        let hold = held.unwrap_or(self.long_poll.first_wait);
        let mut deadline = pin!(sleep_until(request.began + hold));
        let mut is_released = false;
        let mut wait = Wait::new(entry, held);
        loop {
            if entry.is_outdated() {
                *entry = self.catalog.get(entry.name())?;
                wait.continue_with(entry, held);
            }
            let until = deadline.deadline();
            let (entry, mut confirmation) =
                match self.examine(entry, request, &mut wait, until, draining) {
                    ControlFlow::Break(reply) => return Some(reply),
                    ControlFlow::Continue(confirmation) => (&*entry, confirmation),
                };
            tokio::select! {
                changed = wait.view.changed() => match changed {
                    Ok(()) => wait.is_confirmed = true,
                    // The watcher has ended because another one replaces it.
                    Err(_) if entry.is_outdated() => {}
                    Err(_) => return Some(wait.last_reply(entry, request)),
                },
                _ = wait.outdated.changed() => {}
                () = confirmed(&mut confirmation) => wait.is_confirmed = true,
                () = wait.admission.granted() => {}
                () = &mut deadline => return Some(wait.last_reply(entry, request)),
                () = drain.changed() => if drain.is_released() && !is_released {
                    is_released = true;
                    let released = Instant::now() + drain.release_delay();
                    deadline.as_mut().reset(released.min(until));
                },
            }
        }
    }

    /// The reply, if there is one now, or what the request needs for one.
    fn examine<'a>(
        &self,
        entry: &'a Entry,
        request: &BundleRequest,
        wait: &mut Wait,
        deadline: Instant,
        draining: bool,
    ) -> ControlFlow<Reply, Confirmation<'a>> {
        // The state is marked as seen before it is compared: a later change wakes this task.
        let seen = wait.view.seen();
        self.track_holdout(entry, request, &seen, wait);
        let Selection { state, is_fallback } = request.select(&seen);
        let reply = immediate_reply(&state, request, entry, wait.is_confirmed);
        let body = request.body_of(reply.as_ref(), wait.hold.is_some(), deadline);
        let is_admitted = wait.admission.admits(&self.pacer, body) || draining;
        let delayed = match reply {
            Some(reply) if is_admitted => return ControlFlow::Break(reply),
            delayed => delayed,
        };
        let needs_confirmation =
            delayed.is_none() && !wait.is_confirmed && differs(&state, request);
        let handle = entry.handle();
        if draining && !needs_confirmation {
            return ControlFlow::Break(deadline_reply(&seen, request, handle));
        }
        // A request that is answered at once does not count against the limit of held requests.
        if wait.hold.is_none() {
            wait.hold = request.slot.begin_hold();
        }
        if wait.hold.is_none() {
            // There is no reason to refuse a body only because it is early.
            let refusal = || response::unavailable(Some(entry.name())).into();
            return ControlFlow::Break(delayed.unwrap_or_else(refusal));
        }
        ControlFlow::Continue(match (needs_confirmation, is_fallback) {
            (false, _) => None,
            (true, false) => Some(Box::pin(handle.confirm())),
            (true, true) => Some(Box::pin(sleep_until(request.began + FALLBACK_DELAY))),
        })
    }

    /// Records a client that still runs a withdrawn version.
    fn track_holdout(&self, entry: &Entry, request: &BundleRequest, seen: &Seen, wait: &mut Wait) {
        if let State::Withdrawn(Withdrawal {
            version: Some(lost),
            ..
        }) = seen.own()
        {
            wait.tracked.get_or_insert_with(|| {
                let if_none_match = request.if_none_match.get();
                let name = entry.name();
                let recorded = self
                    .holdouts
                    .record(name, lost, if_none_match, &request.client);
                recorded.map(Box::new)
            });
        }
    }
}

impl Wait {
    fn new(entry: &Arc<Entry>, held: Option<Duration>) -> Self {
        Self {
            view: entry.handle().view(),
            outdated: entry.subscribe_outdated(),
            _guards: (count_waiter(entry, held), entry.begin_use()),
            tracked: None,
            is_confirmed: false,
            hold: None,
            admission: Admission::default(),
        }
    }

    /// Waits for another entry of the same name. A bundle that was removed and added again has
    /// other series.
    fn continue_with(&mut self, entry: &Arc<Entry>, held: Option<Duration>) {
        self.view = entry.handle().view();
        self.outdated = entry.subscribe_outdated();
        self._guards = (count_waiter(entry, held), entry.begin_use());
    }

    /// The reply at the deadline. A body that waits for bandwidth is sent even if the client names
    /// its tag: a rollback.
    fn last_reply(&mut self, entry: &Entry, request: &BundleRequest) -> Reply {
        let seen = self.view.seen();
        let state = request.select(&seen).state;
        immediate_reply(&state, request, entry, self.is_confirmed)
            .unwrap_or_else(|| deadline_reply(&seen, request, entry.handle()))
    }
}

/// Completes with the confirmation, if one is needed.
async fn confirmed(confirmation: &mut Confirmation<'_>) {
    match confirmation {
        Some(confirmation) => confirmation.await,
        None => pending().await,
    }
}

impl BundleApi {
    /// How long a request is held; `None` if it does not ask for that.
    pub(super) fn hold_of(&self, request: &BundleRequest) -> Option<Duration> {
        let wait = request.wait?;
        Some(prefer::hold_for(wait, self.long_poll.max_wait))
    }
}

impl BundleRequest {
    /// 200 with this version.
    fn bundle(&self, snapshot: &Arc<Snapshot>) -> Reply {
        Reply::bundle(Arc::clone(snapshot), self.wait, self.predates_long_polling)
    }

    /// The body that is to be sent with a reply; `None` if there is none.
    fn body_of(&self, reply: Option<&Reply>, was_held: bool, deadline: Instant) -> Option<Body> {
        match reply? {
            Reply::Bundle { snapshot, .. } if self.method == ReadMethod::Get => Some(Body {
                bytes: snapshot.content().bytes().size(),
                is_update: !self.if_none_match.get().is_empty(),
                was_held,
                deadline,
            }),
            _ => None,
        }
    }

    fn select(&self, seen: &Seen) -> Selection {
        seen.select(crate::telemetry::now(), |fallback| {
            let if_none_match = self.if_none_match.get();
            if if_none_match.is_empty() {
                ClientVersion::None
            } else if if_none_match.is_current(fallback) {
                ClientVersion::Same
            } else {
                ClientVersion::Other
            }
        })
    }
}

/// Counts a request that may be `held` until the guard is dropped.
fn count_waiter(entry: &Entry, held: Option<Duration>) -> Option<InFlight> {
    // A bundle that gets requests has this series, though none of them is held.
    let waiters = entry.metrics().waiters()?;
    held.map(|_| InFlight::enter(waiters))
}

/// The reply that needs no waiting, if there is one.
fn immediate_reply(
    state: &State,
    request: &BundleRequest,
    entry: &Entry,
    confirmed: bool,
) -> Option<Reply> {
    let may_wait = request.wait.is_some();
    let if_none_match = request.if_none_match.get();
    match state {
        State::Serving(snapshot) if if_none_match.is_current(snapshot.etag()) => {
            (!may_wait).then(|| Reply::NotModified(Arc::clone(snapshot)))
        }
        State::Serving(snapshot) => {
            let is_decided = if_none_match.is_empty() || confirmed;
            is_decided.then(|| request.bundle(snapshot))
        }
        State::Withdrawn(withdrawal) => {
            (!may_wait).then(|| withdrawn_reply(withdrawal, entry.handle()))
        }
        State::Pending => None,
    }
}

fn withdrawn_reply(withdrawal: &Withdrawal, handle: &Handle) -> Reply {
    response::absent("withdrawn", &withdrawal.reason, handle.name()).into()
}

/// Whether the client runs another version than the served one; either may be outdated.
fn differs(state: &State, request: &BundleRequest) -> bool {
    state
        .snapshot()
        .is_some_and(|snapshot| !request.if_none_match.get().is_current(snapshot.etag()))
}

fn deadline_reply(seen: &Seen, request: &BundleRequest, handle: &Handle) -> Reply {
    match &request.select(seen).state {
        State::Serving(snapshot) if request.if_none_match.get().contains(snapshot.etag()) => {
            Reply::NotModified(Arc::clone(snapshot))
        }
        State::Serving(snapshot) => request.bundle(snapshot),
        State::Withdrawn(withdrawal) => withdrawn_reply(withdrawal, handle),
        State::Pending => {
            response::absent("pending", &pending_message(handle), handle.name()).into()
        }
    }
}

/// Why a pending bundle has no version yet.
fn pending_message(handle: &Handle) -> String {
    let status = handle.status();
    if status.suspended {
        return "it is suspended, and no version is stored; remove `suspend` to fetch it"
            .to_owned();
    }
    let failure = status.last_failure.map(|failure| failure.message);
    failure.unwrap_or_else(|| "the first attempt to fetch it has not finished yet".to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::task::yield_now;

    use super::*;
    use crate::{
        metrics::{BundleScope, Metrics},
        publish::pending,
        server::{
            Catalog, Deadlines, LiveClients, ServerMetrics,
            clients::Credential,
            drain::Phase,
            idle_connections::{IdleConnections, Limits},
            if_none_match::IfNoneMatch,
            request_head::HeaderLines,
        },
    };

    #[tokio::test(start_paused = true)]
    async fn a_held_request_is_a_waiter_of_the_bundle_that_comes_after_a_removed_one() {
        let (metrics, (_publisher, handle)) = (Metrics::new(), pending("authz"));
        let server_metrics = ServerMetrics::new(&metrics).unwrap();
        let add = || {
            let scope = BundleScope::new("authz".into());
            let requests = Arc::new(server_metrics.bundle(&scope));
            let reference = "r.example/a:live".parse().unwrap();
            (
                scope,
                Arc::new(Entry::new(handle.clone(), reference, None, requests)),
            )
        };
        let waiters = || metrics.sample(r#"bundlegate_waiters{bundle="authz"}"#);
        let ((scope, mut entry), catalog) = (add(), Catalog::default());
        catalog.insert(Arc::clone(&entry));
        let (_phase, phase) = watch::channel(Phase::Open);
        let clients = LiveClients::default();
        let api = BundleApi::fixture(catalog.clone(), clients, server_metrics.clone(), phase);
        let idle = IdleConnections::new(Limits::new(10, 10, Deadlines::default()));
        let request = BundleRequest {
            began: Instant::now(),
            if_none_match: IfNoneMatch::new(HeaderLines::single(None)).to_owned(),
            wait: Some(Duration::from_secs(60)),
            client: ClientId {
                address: Ipv4Addr::LOCALHOST.into(),
                credential: Credential::None,
                user_agent: 0,
            },
            predates_long_polling: false,
            method: ReadMethod::Get,
            slot: idle.register(),
        };
        let held = tokio::spawn(async move { drop(api.respond(&mut entry, &request).await) });
        yield_now().await;
        assert_eq!(waiters(), Some(1.0));
        // Both before the request wakes.
        catalog.replace([]);
        scope.remove();
        catalog.insert(add().1);
        assert_eq!(waiters(), None);
        yield_now().await;
        assert_eq!(waiters(), Some(1.0));
        held.abort();
        assert!(held.await.unwrap_err().is_cancelled());
        assert_eq!(waiters(), Some(0.0));
    }
}
