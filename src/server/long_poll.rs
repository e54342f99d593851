//! When a bundle request is answered: at once, when the bundle changes, or at its deadline.

mod deltas;

use std::{
    future::poll_fn,
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{
    Entry, RequestMetrics,
    absence::{self, Detail},
    access_log::AccessRecord,
    bundle_api::BundleApi,
    holdout_tracker::{ClientId, WaitGuard},
    idle_connections::{HeldRequest, Slot},
    if_none_match::OwnedIfNoneMatch,
    pacer::{Admission, Body},
    pending_request::HoldStart,
    prefer,
    repeat_guard::{Delay, Download},
    reply::Reply,
    request_head::ReadMethod,
    response,
    staged::{Asked, Choice, Versions},
};
use crate::{
    catalog::InUse,
    fleet::WaitingPoll,
    metrics::InFlight,
    publish::{ClientVersion, Handle, Seen, Selection, Snapshot, State, View, Withdrawal},
    rollout::{Held, PlanWatch, Staged, Variant},
    telemetry,
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
    /// Whether the client's `Prefer: modes` has `delta`.
    pub(super) accepts_delta: bool,
    pub(super) client: ClientId,
    pub(super) predates_long_polling: bool,
    pub(super) method: ReadMethod,
    pub(super) slot: Arc<Slot>,
    pub(super) hold_start: HoldStart,
    /// What the access log has of the request, if it has something.
    pub(super) access: Option<Arc<AccessRecord>>,
    /// The client in the fleet view.
    pub(super) waiting: Option<WaitingPoll>,
}

/// The reply to a request, which was woken for it at a time.
pub(super) struct Woken {
    pub(super) reply: Reply,
    pub(super) at: Instant,
}

impl From<Reply> for Woken {
    /// A reply that is ready now.
    fn from(reply: Reply) -> Self {
        Self {
            reply,
            at: Instant::now(),
        }
    }
}

/// A request that is being answered: what it waits for, and what it counts as meanwhile. It is kept
/// small, because a fleet has a long poll for each OPA.
struct Wait {
    view: View,
    /// Whether the request counts as a waiter of its bundle.
    is_waiter: bool,
    _guards: (Option<InFlight>, Option<InUse<RequestMetrics>>),
    /// What [`HoldoutTracker`](super::holdout_tracker::HoldoutTracker) has recorded, if it was asked.
    tracked: Option<Option<Box<WaitGuard>>>,
    /// Whether the registry, or a change seen by this request, confirms the served version.
    is_confirmed: bool,
    hold: Option<HeldRequest>,
    /// The delay of a repeated download, once there is a bundle to send.
    repeat: Option<Option<Box<Delay>>>,
    /// Whether a delta may be sent, once there is one.
    may_send_delta: Option<bool>,
    /// Until when the request waits for a delta. Few requests do.
    delta_until: Option<Box<Instant>>,
    admission: Admission,
}

/// What a request that is not answered yet waits for besides a change of its bundle. Its output is whether that
/// confirms the version that is served.
type Awaited<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

/// What follows from the states that a request has seen.
struct Answer {
    /// The reply, if there is one now.
    reply: Option<Reply>,
    /// What else may lead to one.
    waits_for: WaitsFor,
}

/// What a request waits for.
enum WaitsFor {
    /// A change of its bundle.
    Change,
    /// A check of the registry.
    Registry,
    /// A reading of the plans of roll-outs.
    Plan(PlanWatch),
    /// A time.
    Time(Instant),
}

/// What ends a pause of a request that is held.
enum Event {
    /// The bundle may have changed, its entry may be outdated, or the drain may have got further.
    Woken,
    /// What the request waited for has ended, and whether that confirms the version that is served.
    Ended(bool),
    Admitted,
    Deadline,
}

impl BundleApi {
    /// Replies at once, when the bundle changes, or at the deadline. If the bundle is reconfigured
    /// while the request is held, the request continues with the new `entry`. `None` if it is
    /// removed meanwhile. Cancel-safe.
    pub(super) async fn respond(
        &self,
        entry: &mut Arc<Entry>,
        request: &BundleRequest,
    ) -> Option<Woken> {
        // During the drain a request is held only for a check that confirms the version.
        let draining = self.drain.is_draining();
        let held = self.hold_of(request).filter(|_| !draining);
        let hold = held.unwrap_or_else(|| self.long_poll().first_wait);
        let mut deadline = pin!(sleep_until(request.began + hold));
        let mut is_released = false;
        let mut wait = Wait::new(entry, held.is_some());
        let mut woken_at = request.began;
        let reply = loop {
            let current = Arc::clone(entry);
            // Before anything is examined, so that no later change is missed.
            let mut woken = pin!(current.handle().woken());
            if current.is_outdated() {
                *entry = self.catalog.get(current.name())?;
                wait.continue_with(entry);
                continue;
            }
            if self.drain.is_released() && !is_released {
                is_released = true;
                let released = Instant::now() + self.drain.release_delay();
                let released = released.min(deadline.deadline());
                deadline.as_mut().reset(released);
            }
            let until = deadline.deadline();
            let mut awaited = match self.examine(&current, request, &mut wait, until, draining) {
                ControlFlow::Break(reply) => break reply,
                ControlFlow::Continue(awaited) => awaited,
            };
            let event = poll_fn(|context| {
                if woken.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Event::Woken);
                }
                if let Some(awaited) = &mut awaited
                    && let Poll::Ready(confirms) = awaited.as_mut().poll(context)
                {
                    return Poll::Ready(Event::Ended(confirms));
                }
                if wait.admission.poll_granted(context).is_ready() {
                    return Poll::Ready(Event::Admitted);
                }
                deadline.as_mut().poll(context).map(|()| Event::Deadline)
            });
            let event = event.await;
            woken_at = Instant::now();
            match event {
                Event::Woken => match wait.view.has_changed() {
                    Ok(has_changed) => wait.is_confirmed |= has_changed,
                    // The watcher has ended because another one replaces it.
                    Err(_) if current.is_outdated() => {}
                    Err(_) => break self.last_reply(&current, request, &mut wait),
                },
                Event::Ended(confirms) => wait.is_confirmed |= confirms,
                Event::Admitted => {}
                Event::Deadline => break self.last_reply(&current, request, &mut wait),
            }
        };
        // The client's right may have been removed while its request was held.
        let (clients, caller) = (self.clients.current(), &request.client.caller);
        let address = || request.client.address;
        let denial = self.denial(&clients, caller, entry.name(), address);
        let reply = denial.map_or(reply, Reply::from);
        self.record_download(&reply, entry, request, &wait);
        Some(Woken {
            reply,
            at: woken_at,
        })
    }

    /// The reply, if there is one now, or what the request waits for.
    fn examine<'a>(
        &self,
        entry: &'a Entry,
        request: &'a BundleRequest,
        wait: &mut Wait,
        deadline: Instant,
        draining: bool,
    ) -> ControlFlow<Reply, Option<Awaited<'a>>> {
        // The state is marked as seen before it is compared: a later change wakes this task.
        let seen = wait.view.seen();
        self.track_holdout(entry, request, &seen, wait);
        let Answer { reply, waits_for } = self.answer(entry, request, wait, &seen);
        let reply = reply.map(|reply| self.with_delta(reply, entry, request, wait));
        if !draining && let Some(comparison) = self.comparison(reply.as_ref(), entry, request, wait)
        {
            // A body that is not sent must not delay others.
            wait.admission = Admission::default();
            return ControlFlow::Continue(Some(comparison));
        }
        let earliest = self.earliest(entry, request, reply.as_ref(), wait);
        let body = request.body_of(reply.as_ref(), wait.hold.is_some(), deadline, earliest);
        let is_admitted = wait.admission.admits(&self.pacer, body) || draining;
        let delayed = match reply {
            Some(reply) if is_admitted => return ControlFlow::Break(reply),
            delayed => delayed,
        };
        if draining && matches!(waits_for, WaitsFor::Change) {
            return ControlFlow::Break(self.deadline_reply(entry, &seen, request));
        }
        if !wait.begin_hold(request) {
            // There is no reason to refuse a body only because it is early.
            let refusal = || response::unavailable(Some(entry.name())).into();
            return ControlFlow::Break(delayed.unwrap_or_else(refusal));
        }
        ControlFlow::Continue(match waits_for {
            WaitsFor::Change => None,
            WaitsFor::Registry => Some(confirmed_by(entry.handle().confirm())),
            WaitsFor::Plan(plans) => Some(confirmed_by(async move { plans.confirm().await })),
            WaitsFor::Time(at) => Some(confirmed_by(sleep_until(at))),
        })
    }

    /// The answer to a request by the states that were seen.
    fn answer(&self, entry: &Entry, request: &BundleRequest, wait: &Wait, seen: &Seen) -> Answer {
        if let Some(staged) = entry.staged()
            && let Some(answer) = self.staged_answer(entry, staged, request, seen)
        {
            return answer;
        }
        let Selection { state, is_fallback } = request.select(seen);
        let reply = immediate_reply(&state, request, entry, wait.is_confirmed);
        let needs_confirmation = reply.is_none() && !wait.is_confirmed && differs(&state, request);
        let waits_for = match (needs_confirmation, is_fallback) {
            (false, _) => WaitsFor::Change,
            (true, false) => WaitsFor::Registry,
            (true, true) => WaitsFor::Time(request.began + FALLBACK_DELAY),
        };
        Answer { reply, waits_for }
    }

    /// The answer to a request for a bundle whose versions are rolled out in steps; `None` if there is nothing
    /// to serve.
    fn staged_answer(
        &self,
        entry: &Entry,
        staged: &Staged,
        request: &BundleRequest,
        seen: &Seen,
    ) -> Option<Answer> {
        let versions = Versions::seen(seen, telemetry::now());
        let choice = versions.choose(entry, staged, &self.asked(request));
        let may_wait = request.wait.is_some();
        let (reply, waits_for) = match choice {
            Choice::Version {
                is_current: true, ..
            } if may_wait => (None, WaitsFor::Change),
            Choice::Version {
                snapshot,
                variant,
                is_current,
            } => (
                Some(request.reply_with(&snapshot, variant, is_current)),
                WaitsFor::Change,
            ),
            // A client that does not long-poll need not wait: its next request comes anyway.
            Choice::Keep(why) if !may_wait && !request.if_none_match.get().is_empty() => {
                let kept = versions.keep(entry, staged, request.if_none_match.get(), why);
                (Some(kept), WaitsFor::Change)
            }
            Choice::Keep(_) => (None, WaitsFor::Change),
            Choice::Confirm => (None, WaitsFor::Plan(staged.watch.clone())),
            Choice::Delay(at) => (None, WaitsFor::Time(at)),
            Choice::Absent => return None,
        };
        Some(Answer { reply, waits_for })
    }

    /// The reply at the deadline, where no other is due.
    fn deadline_reply(&self, entry: &Entry, seen: &Seen, request: &BundleRequest) -> Reply {
        if let Some(staged) = entry.staged() {
            let versions = Versions::seen(seen, telemetry::now());
            let choice = versions.choose(entry, staged, &self.asked(request));
            match choice {
                Choice::Version {
                    snapshot,
                    variant,
                    is_current,
                } => return request.reply_with(&snapshot, variant, is_current),
                Choice::Absent => {}
                // Nothing has come in time for a client that runs nothing.
                _ if request.if_none_match.get().is_empty() => {}
                kept => {
                    let why = kept.held().unwrap_or(Held::Engine);
                    let if_none_match = request.if_none_match.get();
                    return versions.keep(entry, staged, if_none_match, why);
                }
            }
        }
        deadline_reply(seen, request, entry.handle())
    }

    fn asked<'a>(&'a self, request: &'a BundleRequest) -> Asked<'a> {
        let client = request.waiting.as_ref().map(WaitingPoll::client_bundle);
        let fleet = self.fleet.as_ref().map(|recorder| &recorder.fleet);
        Asked {
            began: Some(request.began),
            if_none_match: request.if_none_match.get(),
            client: fleet.zip(client.map(|client| &**client)),
        }
    }

    /// The last reply to a request. A body that waits for bandwidth is sent even if the client names its tag: a
    /// rollback.
    fn last_reply(&self, entry: &Entry, request: &BundleRequest, wait: &mut Wait) -> Reply {
        let seen = wait.view.seen();
        let reply = match entry.staged() {
            Some(_) => None,
            None => {
                let state = request.select(&seen).state;
                immediate_reply(&state, request, entry, wait.is_confirmed)
            }
        };
        let reply = reply.unwrap_or_else(|| self.deadline_reply(entry, &seen, request));
        self.with_delta(reply, entry, request, wait)
    }

    /// When the bundle in a reply may be sent, if that is not now: a client that long-polls and
    /// downloads it again and again is delayed.
    fn earliest(
        &self,
        entry: &Entry,
        request: &BundleRequest,
        reply: Option<&Reply>,
        wait: &mut Wait,
    ) -> Option<Instant> {
        let Reply::Bundle { snapshot, .. } = reply? else {
            return None;
        };
        request.wait?;
        let delay = wait.repeat.get_or_insert_with(|| {
            let download = Download {
                bundle: entry.name(),
                first_tag: request.if_none_match.get().first().unwrap_or_default(),
                etag: snapshot.etag(),
            };
            self.repeats.delay(download, &request.client, &request.slot)
        });
        delay.as_ref().map(|delay| delay.until)
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
    fn new(entry: &Arc<Entry>, is_waiter: bool) -> Self {
        Self {
            view: entry.view(),
            is_waiter,
            _guards: (count_waiter(entry, is_waiter), entry.begin_use()),
            tracked: None,
            is_confirmed: false,
            hold: None,
            repeat: None,
            may_send_delta: None,
            delta_until: None,
            admission: Admission::default(),
        }
    }

    /// Holds the request, unless too many are held. A request that is answered at once does not count against the
    /// limit of held requests.
    fn begin_hold(&mut self, request: &BundleRequest) -> bool {
        if self.hold.is_none() {
            self.hold = request.slot.begin_hold();
            if self.hold.is_some() {
                request.begin_hold();
            }
        }
        self.hold.is_some()
    }

    /// Waits for another entry of the same name. A bundle that was removed and added again has
    /// other series.
    fn continue_with(&mut self, entry: &Arc<Entry>) {
        self.view = entry.view();
        self._guards = (count_waiter(entry, self.is_waiter), entry.begin_use());
    }
}

impl BundleApi {
    /// How long a request is held; `None` if it does not ask for that.
    pub(super) fn hold_of(&self, request: &BundleRequest) -> Option<Duration> {
        let wait = request.wait?;
        Some(prefer::hold_for(wait, self.long_poll().max_wait))
    }
}

impl BundleRequest {
    /// Records that the request is held from now on, if it is not held already.
    pub(super) fn begin_hold(&self) {
        if self.hold_start.since(self.began).is_none() {
            let now = Instant::now();
            self.hold_start.set(now - self.began);
            if let Some(record) = &self.access {
                record.begin_hold(now);
            }
        }
    }

    /// How much the client is told about a bundle that has nothing to serve.
    pub(super) fn detail(&self) -> Detail {
        match self.client.caller.is_anonymous() {
            true => Detail::General,
            false => Detail::Full,
        }
    }

    /// 200 with this version.
    fn bundle(&self, snapshot: &Arc<Snapshot>) -> Reply {
        Reply::bundle(Arc::clone(snapshot), self.wait, self.predates_long_polling)
    }

    /// 200 or 304 with one of the two versions of a bundle that is rolled out in steps.
    fn reply_with(&self, snapshot: &Arc<Snapshot>, variant: Variant, is_current: bool) -> Reply {
        let reply = match is_current {
            true => Reply::not_modified(Arc::clone(snapshot)),
            false => self.bundle(snapshot),
        };
        reply.with_variant(variant)
    }

    /// The body that is to be sent with a reply; `None` if there is none.
    fn body_of(
        &self,
        reply: Option<&Reply>,
        was_held: bool,
        deadline: Instant,
        earliest: Option<Instant>,
    ) -> Option<Body> {
        let bytes = reply?.bytes().filter(|_| self.method == ReadMethod::Get)?;
        Some(Body {
            bytes: bytes.size(),
            is_update: !self.if_none_match.get().is_empty(),
            was_held,
            deadline,
            earliest,
        })
    }

    /// Whether the client runs this version, or one that is the same for OPA.
    fn runs(&self, snapshot: &Snapshot) -> bool {
        let if_none_match = self.if_none_match.get();
        if_none_match.is_current(snapshot.etag())
            || if_none_match
                .first()
                .is_some_and(|tag| snapshot.is_same_as(tag))
    }

    /// 304 with the tag that the client has sent.
    fn not_modified(&self, snapshot: &Arc<Snapshot>) -> Reply {
        let if_none_match = self.if_none_match.get();
        if if_none_match.contains(snapshot.etag()) {
            Reply::not_modified(Arc::clone(snapshot))
        } else {
            response::same_version(snapshot, if_none_match.first()).into()
        }
    }

    fn select(&self, seen: &Seen) -> Selection {
        seen.select(telemetry::now(), |fallback| {
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

/// Counts a waiter until the guard is dropped.
fn count_waiter(entry: &Entry, is_waiter: bool) -> Option<InFlight> {
    // A bundle that gets requests has this series, though none of them is held.
    let waiters = entry.metrics().waiters()?;
    is_waiter.then(|| InFlight::enter(waiters))
}

/// The reply that needs no waiting, if there is one.
fn immediate_reply(
    state: &State,
    request: &BundleRequest,
    entry: &Entry,
    confirmed: bool,
) -> Option<Reply> {
    let may_wait = request.wait.is_some();
    match state {
        State::Serving(snapshot) if request.runs(snapshot) => {
            (!may_wait).then(|| request.not_modified(snapshot))
        }
        State::Serving(snapshot) => {
            let is_decided = request.if_none_match.get().is_empty() || confirmed;
            is_decided.then(|| request.bundle(snapshot))
        }
        State::Withdrawn(withdrawal) => {
            (!may_wait).then(|| absence::withdrawn(entry.handle(), withdrawal, request.detail()))
        }
        State::Pending => None,
    }
}

fn confirmed_by<'a>(confirmation: impl Future<Output = ()> + Send + 'a) -> Awaited<'a> {
    Box::pin(async move {
        confirmation.await;
        true
    })
}

/// Whether the client runs another version than the served one; either may be outdated.
fn differs(state: &State, request: &BundleRequest) -> bool {
    state
        .snapshot()
        .is_some_and(|snapshot| !request.runs(snapshot))
}

fn deadline_reply(seen: &Seen, request: &BundleRequest, handle: &Handle) -> Reply {
    match &request.select(seen).state {
        State::Serving(snapshot)
            if request.runs(snapshot) || request.if_none_match.get().contains(snapshot.etag()) =>
        {
            request.not_modified(snapshot)
        }
        State::Serving(snapshot) => request.bundle(snapshot),
        State::Withdrawn(withdrawal) => absence::withdrawn(handle, withdrawal, request.detail()),
        State::Pending => absence::pending(handle, request.detail()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hyper::{StatusCode, Version};
    use tokio::{sync::watch, task::yield_now};

    use super::*;
    use crate::{
        access::PasswordFile,
        metrics::{BundleScope, Metrics},
        publish::pending,
        server::{
            Catalog, Clients, Deadlines, LiveClients, Requirement, ServerMetrics,
            clients::Caller,
            connection::Peer,
            drain::Phase,
            idle_connections::{IdleConnections, Limits},
            if_none_match::IfNoneMatch,
            request_head::{HeaderLines, RequestHead},
            service::Answer,
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
            accepts_delta: false,
            client: ClientId {
                address: Ipv4Addr::LOCALHOST.into(),
                caller: Caller::anonymous(),
                user_agent: 0,
            },
            predates_long_polling: false,
            method: ReadMethod::Get,
            slot: idle.register(),
            hold_start: HoldStart::default(),
            access: None,
            waiting: None,
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

    /// A request for a bundle, of a client that waits.
    const HEAD: RequestHead<'_> = RequestHead {
        version: Version::HTTP_11,
        method: ReadMethod::Get,
        path: "/bundles/authz",
        authorization: None,
        user_agent: None,
        if_none_match: HeaderLines::single(None),
        prefer: HeaderLines::single(Some("wait=60")),
        x_forwarded_for: HeaderLines::single(None),
        traceparent: None,
        identity: None,
    };

    /// An API with a bundle that has no version yet, for these clients.
    fn api_of(clients: Clients) -> Arc<BundleApi> {
        let (_publisher, handle) = pending("authz");
        let metrics = ServerMetrics::new(&Metrics::new()).unwrap();
        let requests = Arc::new(metrics.bundle(&BundleScope::new("authz".into())));
        let reference = "r.example/a:live".parse().unwrap();
        let catalog = Catalog::default();
        catalog.insert(Arc::new(Entry::new(handle, reference, None, requests)));
        let (_phase, phase) = watch::channel(Phase::Open);
        Arc::new(BundleApi::fixture(catalog, clients.into(), metrics, phase))
    }

    fn peer(idle: &IdleConnections) -> Peer {
        Peer {
            address: Ipv4Addr::LOCALHOST.into(),
            certificate: None,
            slot: idle.register(),
            is_over_limit: false,
        }
    }

    /// Each OPA of a fleet has such a request. The memory allocator has a size of exactly this.
    #[tokio::test]
    async fn a_held_request_takes_640_bytes_at_most() {
        let mut clients = Clients::default();
        clients
            .allow("anyone", &["**".into()], Requirement::Anonymous)
            .unwrap();
        let idle = IdleConnections::new(Limits::new(10, 10, Deadlines::default()));
        let Answer::Later(held) = api_of(clients).decide(&HEAD, &peer(&idle)) else {
            panic!("it is answered at once");
        };
        assert!(size_of_val(&*held) <= 640, "{}", size_of_val(&*held));
    }

    #[tokio::test]
    async fn a_request_whose_credential_is_checked_counts_as_held() {
        let hash = bcrypt::hash_with_salt("s3cret", 4, [7; 16]).unwrap();
        let users = PasswordFile::parse(&format!("edge:{hash}")).unwrap();
        let mut clients = Clients::default();
        clients
            .allow("users", &["**".into()], Requirement::Password(users))
            .unwrap();
        let api = api_of(clients);
        let idle = IdleConnections::new(Limits::new(1, 1, Deadlines::default()));
        let head = RequestHead {
            // edge:wrong
            authorization: Some(b"Basic ZWRnZTp3cm9uZw=="),
            ..HEAD
        };
        let status = async || api.decide(&head, &peer(&idle)).get().await.reply.status();
        let waiting = idle.register().begin_hold().unwrap();
        assert_eq!(status().await, StatusCode::SERVICE_UNAVAILABLE);
        drop(waiting);
        assert_eq!(status().await, StatusCode::UNAUTHORIZED);
    }
}
