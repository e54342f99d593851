//! What one client runs of one bundle.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use super::{BundleVersions, ClientKey, ClientTable, Facts, Millis, Moves, Sending, TagHash};

/// Requests of one address for one bundle that are held at a time. With more, several clients share it.
const MAX_WAITING: u16 = 8;
/// Requests of one address for one bundle within [`WINDOW`] that need no new version. With more, several
/// clients share it: OPA waits for at least ten seconds by default. Downloads don't count, because an
/// OPA that can't activate a version downloads it many times a second.
const MAX_POLLS: u16 = 30;
const WINDOW: Millis = 60 * 1000;
/// How long an address counts as shared after that was noticed.
const SHARED_FOR: Millis = 60 * 60 * 1000;
/// Requests without a tag, in a row, that are counted.
const MAX_WITHOUT_TAG: u8 = 8;
/// A shorter gap between two requests is none between two polls.
const MIN_GAP: Millis = 1000;
/// A longer interval counts as this.
const MAX_INTERVAL: Millis = 60 * 60 * 1000;
/// The weight of earlier intervals in the average.
const INTERVAL_WEIGHT: Millis = 7;

/// What one client runs of one bundle.
#[derive(Debug)]
pub struct ClientBundle {
    client: ClientKey,
    bundle: Arc<BundleVersions>,
    /// Whether the client is known by its address alone, which several clients may share.
    is_by_address: bool,
    /// The last group of clients that was asked about, and whether the client is in it.
    membership: AtomicU64,
    record: Mutex<Record>,
}

/// A request for a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Poll {
    /// The version that the client names first.
    pub tag: Option<TagHash>,
    /// Whether that is the one that the server would send.
    pub is_current: bool,
}

/// Why a client does not activate a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientError {
    /// A code of OPA's.
    pub code: Box<str>,
    /// OPA's message, cut.
    pub message: Box<str>,
    /// When it was last reported.
    pub at: Millis,
    /// When it was first reported.
    pub since: Millis,
}

/// A version that is being sent to a client.
#[derive(Debug)]
pub struct Offer {
    table: ClientTable,
    client_bundle: Arc<ClientBundle>,
    tag: TagHash,
}

/// A request that is held, until this is dropped.
#[derive(Debug)]
pub struct WaitingPoll(Arc<ClientBundle>);

/// It is kept small, because a fleet has one for each client and bundle.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) seen: Millis,
    pub(super) since: Millis,
    pub(super) runs: Option<TagHash>,
    pub(super) offered: Option<Box<Offered>>,
    pub(super) error: Option<Box<ClientError>>,
    /// How often it was moved, where versions are rolled out in steps.
    moves: Option<Box<Moves>>,
    /// When an error was reported or was over.
    pub(super) error_changed: Millis,
    /// The time of the last change, or later: it increases with each change, whatever the clock says, so
    /// that replicas agree which change is the last one.
    pub(super) stamp: Millis,
    /// When it was last reported to other replicas, or by one of them.
    reported: Millis,
    shared_until: Millis,
    /// When the current [`WINDOW`] began.
    window: Millis,
    /// In milliseconds.
    pub(super) interval: u32,
    polls: u16,
    waiting: u16,
    pub(super) without_tag: u8,
    /// Whether the table does not have it any more.
    is_detached: bool,
    /// Whether it is to be sent to other replicas.
    pub(super) is_changed: bool,
}

/// A version that a client has downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offered {
    pub(super) tag: TagHash,
    /// When it was last downloaded completely.
    pub(super) at: Millis,
    pub(super) times: u32,
}

/// What another replica reports.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) stamp: Millis,
    pub(super) seen: Millis,
    pub(super) since: Millis,
    pub(super) runs: Option<TagHash>,
    pub(super) without_tag: u8,
    pub(super) interval: u32,
    pub(super) shared_until: Millis,
    pub(super) offered: Option<(TagHash, Millis, u32)>,
    pub(super) error_changed: Millis,
    /// Code, message, and when it was first reported.
    pub(super) error: Option<(Box<str>, Box<str>, Millis)>,
}

/// What became of a request that was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    /// Nothing is new but the time.
    Unchanged,
    Changed,
    /// The table does not have it any more.
    Detached,
}

impl ClientBundle {
    pub(super) fn new(client: ClientKey, bundle: Arc<BundleVersions>, is_by_address: bool) -> Self {
        Self {
            client,
            bundle,
            is_by_address,
            membership: AtomicU64::new(0),
            record: Mutex::default(),
        }
    }

    /// The key of the client.
    pub fn client(&self) -> ClientKey {
        self.client
    }

    /// The bundle.
    pub fn bundle(&self) -> &Arc<BundleVersions> {
        &self.bundle
    }

    /// Whether the client is known by its address alone.
    pub fn is_by_address(&self) -> bool {
        self.is_by_address
    }

    pub(super) fn record_poll(&self, poll: Poll, now: Millis) -> Recorded {
        let mut record = self.lock();
        if record.is_detached {
            return Recorded::Detached;
        }
        record.count_poll(poll, now, self.is_by_address);
        if record.runs == poll.tag && record.since != 0 && !record.is_affected_by(poll) {
            return Recorded::Unchanged;
        }
        record.apply(poll, now);
        Recorded::Changed
    }

    pub(super) fn begin_waiting(self: &Arc<Self>, now: Millis) -> WaitingPoll {
        let mut record = self.lock();
        record.waiting = record.waiting.saturating_add(1);
        if self.is_by_address && record.waiting > MAX_WAITING {
            record.shared_until = now + SHARED_FOR;
        }
        WaitingPoll(Arc::clone(self))
    }

    pub(super) fn record_offer(&self, tag: TagHash, now: Millis) {
        let mut record = self.lock();
        let runs = record.runs;
        match record.offered.as_deref_mut() {
            Some(offered) if offered.tag == tag => {
                // A client that names no version may have restarted before it could name this one, so its
                // repeated downloads say nothing.
                if runs.is_some() {
                    offered.times = offered.times.saturating_add(1);
                }
                offered.at = now;
            }
            _ => {
                let (at, times) = (now, 1);
                record.offered = Some(Box::new(Offered { tag, at, times }));
            }
        }
        record.advance_stamp(now);
    }

    /// Records an error that its OPA reports. Returns whether it is a new one.
    pub(super) fn record_error(&self, mut error: ClientError) -> bool {
        let mut record = self.lock();
        let known = record.error.as_deref();
        let known =
            known.filter(|known| (&known.code, &known.message) == (&error.code, &error.message));
        let is_new = known.is_none();
        error.since = known.map_or(error.at, |known| known.since);
        record.error_changed = error.at;
        record.error = Some(Box::new(error));
        is_new
    }

    /// Whether the client is in the group with this number, which `contains` computes: at its first request,
    /// and again when the number differs. `is_shared` is passed to it: whether several clients share the
    /// address by which the client is known.
    pub fn is_member(
        &self,
        number: u64,
        now: impl FnOnce() -> Millis,
        contains: impl FnOnce(bool) -> bool,
    ) -> bool {
        let is_shared = self.is_by_address && now() < self.lock().shared_until;
        let group = (number & !0b11) | (u64::from(is_shared) << 1);
        let known = self.membership.load(Ordering::Relaxed);
        if known & !1 == group {
            return known & 1 == 1;
        }
        let is_member = contains(is_shared);
        let known = group | u64::from(is_member);
        self.membership.store(known, Ordering::Relaxed);
        is_member
    }

    /// Whether the client may be sent a version now; see [`Moves::allowed_at`]. The clients that share an
    /// address can't be told apart, so they are not limited together.
    pub fn may_be_sent(&self, sending: Sending, now: Millis) -> bool {
        let record = self.lock();
        let moves = record.moves.as_deref();
        let is_shared = self.is_by_address && now < record.shared_until;
        is_shared || moves.is_none_or(|moves| moves.allowed_at(sending) <= now)
    }

    /// Records that the client is being sent a version; see [`Moves::record`].
    pub fn record_move(&self, sending: Sending, now: Millis) {
        if sending.is_candidate || sending.is_move {
            let mut record = self.lock();
            record.moves.get_or_insert_default().record(sending, now);
        }
    }

    /// What its state follows from.
    pub fn facts(&self, now: Millis) -> Facts {
        self.lock().facts(now)
    }

    /// Whether the client named a version in its last request.
    pub fn runs_any(&self) -> bool {
        self.lock().runs.is_some()
    }

    /// The version that it has downloaded, how often and when last.
    pub fn offered(&self) -> Option<(TagHash, u32, Millis)> {
        let offered = self.lock().offered.as_deref().copied()?;
        Some((offered.tag, offered.times, offered.at))
    }

    /// What its OPA has reported, unless it has run the served version since.
    pub fn error(&self) -> Option<ClientError> {
        self.lock().error.as_deref().cloned()
    }

    /// Its requests that are held.
    pub fn waiting(&self) -> u16 {
        self.lock().waiting
    }

    pub(super) fn last_seen(&self) -> (Millis, bool) {
        let record = self.lock();
        (record.seen, record.waiting > 0)
    }

    /// Whether this replica has seen the client and not reported that for an interval.
    pub(super) fn is_heartbeat_due(&self, now: Millis, interval: Millis) -> bool {
        let mut record = self.lock();
        if record.waiting > 0 {
            record.seen = record.seen.max(now);
        }
        record.seen >= record.reported.saturating_add(interval)
    }

    /// Records that it is being reported to other replicas.
    pub(super) fn set_reported(&self) {
        let mut record = self.lock();
        record.is_changed = false;
        record.reported = record.seen;
    }

    pub(super) fn detach(&self) {
        self.lock().is_detached = true;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    /// Counts a request, which says nothing about versions yet.
    fn count_poll(&mut self, poll: Poll, now: Millis, is_by_address: bool) {
        let gap = now.saturating_sub(self.seen);
        if gap >= MIN_GAP {
            self.average(gap);
        }
        self.seen = self.seen.max(now);
        if !is_by_address || !poll.is_current {
            return;
        }
        if now.saturating_sub(self.window) >= WINDOW {
            (self.window, self.polls) = (now, 0);
        }
        self.polls = self.polls.saturating_add(1);
        if self.polls > MAX_POLLS {
            self.shared_until = now + SHARED_FOR;
        }
    }

    /// Counts the time between two requests.
    fn average(&mut self, gap: Millis) {
        if self.seen != 0 {
            let interval = Millis::from(self.interval);
            // It follows a longer gap at once, so that no client is silent because it was quick before.
            let average = (interval * INTERVAL_WEIGHT + gap) / (INTERVAL_WEIGHT + 1);
            let interval = average.max(gap.min(MAX_INTERVAL));
            self.interval = u32::try_from(interval).unwrap_or(u32::MAX);
        }
    }

    /// Whether a request changes more than the times, though it names the same version as the one before.
    fn is_affected_by(&self, poll: Poll) -> bool {
        let has_activated = |offered: &Offered| Some(offered.tag) == poll.tag;
        (poll.tag.is_none() && self.without_tag < MAX_WITHOUT_TAG)
            || (poll.is_current && self.error.is_some())
            || self.offered.as_deref().is_some_and(has_activated)
    }

    fn advance_stamp(&mut self, now: Millis) {
        self.stamp = now.max(self.stamp + 1);
    }

    fn apply(&mut self, poll: Poll, now: Millis) {
        self.advance_stamp(now);
        if self.runs != poll.tag || self.since == 0 {
            (self.runs, self.since) = (poll.tag, now);
        }
        self.without_tag = match poll.tag {
            Some(_) => 0,
            None => self.without_tag.saturating_add(1),
        };
        if self.offered.as_deref().map(|offered| offered.tag) == poll.tag {
            self.offered = None;
        }
        // Only this proves that the error is over: OPA drops it from its reports after any 304.
        if poll.is_current && self.error.take().is_some() {
            self.error_changed = now;
        }
    }

    /// Takes what another replica reports, as far as it is later than what is known.
    pub(super) fn merge(&mut self, entered: Entered) {
        // The same change again says that the client was seen since.
        if entered.stamp >= self.stamp {
            self.stamp = entered.stamp;
            self.seen = self.seen.max(entered.seen);
            self.reported = self.seen;
            (self.since, self.runs) = (entered.since, entered.runs);
            (self.without_tag, self.interval) = (entered.without_tag, entered.interval);
            self.shared_until = self.shared_until.max(entered.shared_until);
            let offered = entered.offered;
            self.offered = offered.map(|(tag, at, times)| Box::new(Offered { tag, at, times }));
        }
        if entered.error_changed > self.error_changed {
            let at = entered.error_changed;
            self.error_changed = at;
            self.error = entered.error.map(|(code, message, since)| {
                Box::new(ClientError {
                    since,
                    ..ClientError::new(code, message, at)
                })
            });
        }
    }

    pub(super) fn shared_until(&self) -> Millis {
        self.shared_until
    }

    fn facts(&self, now: Millis) -> Facts {
        Facts {
            runs: self.runs,
            since: self.since,
            seen: self.seen,
            is_waiting: self.waiting > 0,
            interval: self.interval.into(),
            without_tag: self.without_tag.into(),
            offered: self
                .offered
                .as_deref()
                .map(|offered| (offered.tag, offered.times)),
            offered_at: self.offered.as_deref().map_or(0, |offered| offered.at),
            error_since: self.error.as_deref().map_or(0, |error| error.since),
            has_error: self.error.is_some(),
            is_shared: now < self.shared_until,
        }
    }
}

impl ClientError {
    /// An error that is reported for the first time.
    pub fn new(code: Box<str>, message: Box<str>, at: Millis) -> Self {
        Self {
            code,
            message,
            at,
            since: at,
        }
    }
}

impl Offer {
    pub(super) fn new(table: ClientTable, client_bundle: Arc<ClientBundle>, tag: TagHash) -> Self {
        Self {
            table,
            client_bundle,
            tag,
        }
    }

    /// Records that the client has all of it.
    pub fn complete(&self, now: Millis) {
        self.client_bundle.record_offer(self.tag, now);
        self.table.change_bundle(&self.client_bundle);
    }
}

impl WaitingPoll {
    /// The client whose request it is.
    pub fn client_bundle(&self) -> &Arc<ClientBundle> {
        &self.0
    }

    /// Records that the client was connected at this time.
    pub fn record_seen(&self, now: Millis) {
        let mut record = self.0.lock();
        record.seen = record.seen.max(now);
    }
}

impl Drop for WaitingPoll {
    fn drop(&mut self) {
        let mut record = self.0.lock();
        record.waiting = record.waiting.saturating_sub(1);
    }
}
