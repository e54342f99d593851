//! The state machine of one bundle: what is published, and how a restart, a check of the registry,
//! a verification and the passing of time change it. A version that was accepted under an outdated
//! policy is not published.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::{Duration, Instant};

use super::{
    Snapshot, freshness,
    state::{Failure, FailureClass, OnMissing, Outcome, State, Withdrawal, next},
};
use crate::verify::PolicyRevision;

/// Everything that decides what clients see of one bundle. It does no I/O, and only
/// [`Self::apply`] changes it.
#[derive(Debug)]
pub struct StateMachine {
    on_missing: OnMissing,
    max_stale: Option<Duration>,
    published: State,
    /// State restored from disk; published after the first check of the registry, or after
    /// `first_wait`. Set only while `published` is pending.
    restored: Option<State>,
    /// The version that was withdrawn because its verification failed, until another one is
    /// accepted: if the policy changes back, it is served again without the registry.
    distrusted: Option<Arc<Snapshot>>,
    /// The last defect of a digest, which is not fetched again.
    known_defect: Option<Failure>,
    /// When the registry last confirmed the version being served, as the disk has it.
    last_confirmed: Option<Timestamp>,
    /// When `max_stale` ends.
    stale_at: Option<Instant>,
    /// Whether this replica has ever served the bundle.
    was_served: bool,
    /// While it is set, `max_stale` does not end.
    is_suspended: bool,
}

/// Something that may change the state of a bundle.
#[derive(Debug, Clone)]
pub enum Event {
    /// The disk holds a version that the policy accepts. Nothing is published yet.
    Restored {
        /// The version.
        snapshot: Arc<Snapshot>,
        /// When the registry last confirmed it, according to the disk.
        confirmed: Option<Timestamp>,
    },
    /// The disk holds a version that may not be served.
    RestoreFailed(Failure),
    /// The disk holds no version.
    NothingRestored {
        /// The withdrawal, if the bundle was withdrawn before the restart.
        withdrawal: Option<Withdrawal>,
        /// Whether this replica has served the bundle before.
        was_served: bool,
    },
    /// `first_wait` has passed without an answer of the registry.
    FirstWaitElapsed,
    /// A check of the registry has ended.
    Checked {
        /// How the check has ended.
        outcome: Outcome,
        /// When the check has ended.
        at: Timestamp,
    },
    /// `max_stale` has passed without a successful check. The event is ignored before
    /// [`StateMachine::stale_at`].
    MaxStaleElapsed,
    /// The policy has changed, or a verification has expired.
    ReverificationDue,
    /// The version being served, or restored, was verified again. The event is ignored for another
    /// version.
    Reverified(Arc<Snapshot>),
    /// The verification of the version being served, or restored, has failed.
    ReverificationFailed(Failure),
    /// The policy accepts the version that was withdrawn because its verification had failed.
    /// The event is ignored for another version.
    TrustRestored(Arc<Snapshot>),
    /// The registry is not checked from now on (`suspend`).
    Suspended,
    /// The registry is checked again. `max_stale` starts now.
    Resumed,
}

/// When an event is applied, and the policy that decides then.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// The monotonic time, for deadlines.
    pub instant: Instant,
    /// The time of the clock, for verifications.
    pub time: Timestamp,
    /// A version that another policy accepted is not published.
    pub policy: &'a PolicyRevision,
}

/// What follows from an event.
#[derive(Debug, Default)]
pub struct Effects {
    /// How [`StateMachine::published`] has changed.
    pub change: Change,
    /// A version to add to the history: it is served from now on, or restored.
    pub served: Option<Arc<Snapshot>>,
    /// What the disk has to record.
    pub persist: Option<Persist>,
}

/// How the published state has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Change {
    /// The published state is the same.
    #[default]
    None,
    /// Clients get the same bytes, so no waiter wakes.
    SameBytes,
    /// Clients get other bytes, or another answer.
    Visible,
}

/// A change of what the disk records.
#[derive(Debug, Clone)]
pub enum Persist {
    /// The version is verified, and the registry last confirmed it then.
    Confirm {
        /// The version.
        snapshot: Arc<Snapshot>,
        /// `None` without `max_stale`.
        confirmed: Option<Timestamp>,
    },
    /// The bundle is withdrawn; only its history stays.
    Remove,
}

/// The policy has changed since a version was verified, or the verification has expired; the
/// version has to be verified again before it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outdated;

impl StateMachine {
    /// The machine of a bundle about which nothing is known yet.
    pub fn new(on_missing: OnMissing, max_stale: Option<Duration>) -> Self {
        Self {
            on_missing,
            max_stale,
            published: State::Pending,
            restored: None,
            distrusted: None,
            known_defect: None,
            last_confirmed: None,
            stale_at: None,
            was_served: false,
            is_suspended: false,
        }
    }

    /// Applies an event. This is what a check of the registry makes of the published state, or of
    /// the restored one, which counts as published:
    ///
    /// | outcome | Pending | Serving | Withdrawn |
    /// |---|---|---|---|
    /// | accepted | Serving | Serving | Serving |
    /// | unchanged | stay | stay | stay |
    /// | transient, rate-limited, denied | stay | stay | stay |
    /// | not found | Withdrawn | stay, or Withdrawn where configured | stay |
    /// | evidence, revoked, defect | Withdrawn | stay | stay |
    /// | distrusted | Withdrawn | Withdrawn | stay |
    ///
    /// # Errors
    /// When the event would publish a version by an outdated verification. Then nothing has
    /// changed.
    pub fn apply(&mut self, event: &Event, now: &Now<'_>) -> Result<Effects, Outdated> {
        match event {
            Event::Restored {
                snapshot,
                confirmed,
            } => Ok(self.restore(snapshot, *confirmed, now)),
            Event::RestoreFailed(failure) => Ok(self.refuse_restored(failure)),
            Event::NothingRestored {
                withdrawal,
                was_served,
            } => {
                self.was_served |= was_served;
                if self.is_new() {
                    self.restored = withdrawal.clone().map(State::Withdrawn);
                }
                Ok(Effects::default())
            }
            Event::FirstWaitElapsed => self.publish_restored(now),
            Event::Checked { outcome, at } => self.conclude_check(outcome, *at, now),
            Event::MaxStaleElapsed => Ok(self.expire(now)),
            Event::ReverificationDue => {
                // Another policy may need other evidence of what was refused, or none.
                self.known_defect = None;
                Ok(Effects::default())
            }
            Event::Reverified(snapshot) => self.keep_serving(snapshot, now),
            Event::ReverificationFailed(failure) => Ok(self.withdraw_untrusted(failure)),
            Event::TrustRestored(snapshot) => self.restore_trust(snapshot, now),
            Event::Suspended => {
                self.is_suspended = true;
                Ok(Effects::default())
            }
            Event::Resumed => {
                self.is_suspended = false;
                if self.stale_at.is_some() {
                    self.stale_at = self.max_stale.and_then(|age| now.instant.checked_add(age));
                }
                Ok(Effects::default())
            }
        }
    }

    /// The state that clients see.
    pub fn published(&self) -> &State {
        &self.published
    }

    /// The version that is being served, or restored and about to be: it need not be fetched.
    pub fn current(&self) -> Option<&Arc<Snapshot>> {
        self.published
            .snapshot()
            .or_else(|| self.restored.as_ref()?.snapshot())
    }

    /// Whether a restored state waits to be published.
    pub fn has_restored(&self) -> bool {
        self.restored.is_some()
    }

    /// The version that was withdrawn because its verification failed.
    pub fn distrusted(&self) -> Option<&Arc<Snapshot>> {
        self.distrusted.as_ref()
    }

    /// The last defect of a digest.
    pub fn known_defect(&self) -> Option<&Failure> {
        self.known_defect.as_ref()
    }

    /// When the registry last confirmed the version being served, as the disk has it.
    pub fn last_confirmed(&self) -> Option<Timestamp> {
        self.last_confirmed
    }

    /// When `max_stale` ends, if nothing is confirmed until then. `None` while the bundle is
    /// suspended.
    pub fn stale_at(&self) -> Option<Instant> {
        self.stale_at.filter(|_| !self.is_suspended)
    }

    fn is_new(&self) -> bool {
        matches!(self.published, State::Pending) && self.restored.is_none()
    }

    /// Starts `max_stale` for a version from the disk at the time of its last confirmation, not
    /// now.
    fn restore(
        &mut self,
        snapshot: &Arc<Snapshot>,
        confirmed: Option<Timestamp>,
        now: &Now<'_>,
    ) -> Effects {
        if !self.is_new() {
            return Effects::default();
        }
        self.was_served = true;
        self.restored = Some(State::Serving(Arc::clone(snapshot)));
        let mut effects = Effects {
            served: Some(Arc::clone(snapshot)),
            ..Effects::default()
        };
        let confirm = |confirmed| {
            Some(Persist::Confirm {
                snapshot: Arc::clone(snapshot),
                confirmed,
            })
        };
        let Some(max_stale) = self.max_stale else {
            // Without `max_stale` the recorded time is not updated, so it must not be believed
            // once `max_stale` is configured again.
            if confirmed.is_some() {
                effects.persist = confirm(None);
            }
            return effects;
        };
        self.last_confirmed = freshness::believable(confirmed, now.time);
        if self.last_confirmed.is_none() {
            self.last_confirmed = Some(now.time);
            effects.persist = confirm(self.last_confirmed);
        }
        let left = freshness::left(max_stale, self.last_confirmed, now.time);
        self.stale_at = now.instant.checked_add(left);
        if left.is_zero() {
            self.expire(now);
        }
        effects
    }

    fn refuse_restored(&mut self, failure: &Failure) -> Effects {
        if !self.is_new() {
            return Effects::default();
        }
        self.was_served = true;
        let after = next(
            &State::Pending,
            &Outcome::Failed(failure.clone()),
            self.on_missing,
        );
        Effects {
            change: self.publish(after.served_before()),
            ..Effects::default()
        }
    }

    fn publish_restored(&mut self, now: &Now<'_>) -> Result<Effects, Outdated> {
        let Some(restored) = self.restored.clone() else {
            return Ok(Effects::default());
        };
        admit(&restored, now)?;
        Ok(Effects {
            change: self.publish(restored),
            ..Effects::default()
        })
    }

    fn conclude_check(
        &mut self,
        outcome: &Outcome,
        at: Timestamp,
        now: &Now<'_>,
    ) -> Result<Effects, Outdated> {
        let before = self.restored.as_ref().unwrap_or(&self.published);
        let mut after = next(before, outcome, self.on_missing);
        if self.was_served {
            after = after.served_before();
        }
        let is_withdrawn = matches!((before, &after), (State::Serving(_), State::Withdrawn(_)));
        admit(&after, now)?;
        let mut effects = Effects {
            change: self.publish(after),
            ..Effects::default()
        };
        match outcome {
            Outcome::Accepted(snapshot) => {
                self.was_served = true;
                self.distrusted = None;
                self.last_confirmed = self.max_stale.map(|_| at);
                effects.served = Some(Arc::clone(snapshot));
            }
            Outcome::Unchanged => effects.persist = self.confirm(now),
            // A defect stays known through failures of other kinds: the same bytes have it again.
            Outcome::Failed(failure) if failure.class == FailureClass::Defect => {
                self.known_defect = Some(failure.clone());
            }
            Outcome::Failed(failure) if failure.class == FailureClass::NotFound => {
                self.distrusted = None
            }
            Outcome::Failed(_) => {}
        }
        if !matches!(outcome, Outcome::Failed(_)) {
            self.known_defect = None;
            // `max_stale` starts now, not when the check began: otherwise a check that takes longer
            // than `max_stale` would end with a stale version.
            self.stale_at = self.max_stale.and_then(|age| now.instant.checked_add(age));
        }
        if is_withdrawn {
            effects.persist = Some(Persist::Remove);
        }
        Ok(effects)
    }

    /// Whether the disk should record that the registry has confirmed the current version.
    fn confirm(&mut self, now: &Now<'_>) -> Option<Persist> {
        let snapshot = Arc::clone(self.current()?);
        if !freshness::is_due(self.max_stale?, self.last_confirmed, now.time) {
            return None;
        }
        // The time counts as recorded even if the write fails, so that a failing disk is not
        // written to at each poll.
        self.last_confirmed = Some(now.time);
        Some(Persist::Confirm {
            snapshot,
            confirmed: self.last_confirmed,
        })
    }

    /// The disk keeps the bytes: a check that finds them current again need not fetch them.
    fn expire(&mut self, now: &Now<'_>) -> Effects {
        if self
            .stale_at()
            .is_none_or(|stale_at| now.instant < stale_at)
        {
            return Effects::default();
        }
        (self.stale_at, self.distrusted) = (None, None);
        let before = self.restored.as_ref().unwrap_or(&self.published);
        if before.snapshot().is_none() {
            return Effects::default();
        }
        let age = humantime::format_duration(self.max_stale.unwrap_or_default());
        let reason = format!("no successful check for {age} (max_stale)").into();
        let after = State::Withdrawn(Withdrawal {
            reason,
            version: before.withdrawn_version(),
            was_served: true,
        });
        if let Some(restored) = &mut self.restored {
            *restored = after;
            return Effects::default();
        }
        Effects {
            change: self.publish(after),
            ..Effects::default()
        }
    }

    fn keep_serving(
        &mut self,
        snapshot: &Arc<Snapshot>,
        now: &Now<'_>,
    ) -> Result<Effects, Outdated> {
        if !self
            .current()
            .is_some_and(|current| is_same_version(current, snapshot))
        {
            return Ok(Effects::default());
        }
        let after = State::Serving(Arc::clone(snapshot));
        let change = if let Some(restored) = &mut self.restored {
            *restored = after;
            Change::None
        } else {
            admit(&after, now)?;
            self.publish(after)
        };
        let persist = Persist::Confirm {
            snapshot: Arc::clone(snapshot),
            confirmed: self.last_confirmed,
        };
        Ok(Effects {
            change,
            persist: Some(persist),
            ..Effects::default()
        })
    }

    /// Withdraws a version that only an earlier policy accepted, for whatever reason it failed.
    fn withdraw_untrusted(&mut self, failure: &Failure) -> Effects {
        let Some(current) = self.current().cloned() else {
            return Effects::default();
        };
        let failure = Failure {
            class: FailureClass::Distrusted,
            ..failure.clone()
        };
        let before = self.restored.as_ref().unwrap_or(&self.published);
        let after = next(before, &Outcome::Failed(failure), self.on_missing);
        self.distrusted = Some(current);
        Effects {
            change: self.publish(after),
            persist: Some(Persist::Remove),
            ..Effects::default()
        }
    }

    fn restore_trust(
        &mut self,
        snapshot: &Arc<Snapshot>,
        now: &Now<'_>,
    ) -> Result<Effects, Outdated> {
        let is_distrusted = self
            .distrusted
            .as_ref()
            .is_some_and(|distrusted| is_same_version(distrusted, snapshot));
        if !is_distrusted || self.current().is_some() {
            return Ok(Effects::default());
        }
        let after = State::Serving(Arc::clone(snapshot));
        admit(&after, now)?;
        self.distrusted = None;
        Ok(Effects {
            change: self.publish(after),
            served: Some(Arc::clone(snapshot)),
            persist: None,
        })
    }

    fn publish(&mut self, after: State) -> Change {
        self.restored = None;
        let change = match (&self.published, &after) {
            (State::Serving(before), State::Serving(after)) if Arc::ptr_eq(before, after) => {
                Change::None
            }
            (State::Serving(before), State::Serving(after)) if before.etag() == after.etag() => {
                Change::SameBytes
            }
            (State::Pending, State::Pending) => Change::None,
            (State::Withdrawn(before), State::Withdrawn(after)) if before == after => Change::None,
            _ => Change::Visible,
        };
        if change != Change::None {
            self.published = after;
        }
        change
    }
}

impl Event {
    /// Why a version was not accepted, if that is what the event is about.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::RestoreFailed(failure)
            | Self::ReverificationFailed(failure)
            | Self::Checked {
                outcome: Outcome::Failed(failure),
                ..
            } => Some(failure),
            Self::Restored { .. }
            | Self::NothingRestored { .. }
            | Self::FirstWaitElapsed
            | Self::Checked { .. }
            | Self::MaxStaleElapsed
            | Self::ReverificationDue
            | Self::Reverified(_)
            | Self::TrustRestored(_)
            | Self::Suspended
            | Self::Resumed => None,
        }
    }
}

/// Checks that the policy that decides now has accepted the version, and that its verification has
/// not expired. A state without a version passes.
fn admit(state: &State, now: &Now<'_>) -> Result<(), Outdated> {
    match state.snapshot() {
        Some(snapshot) if snapshot.manifest().revision() != now.policy => Err(Outdated),
        Some(snapshot) if !snapshot.is_valid_at(now.time) => Err(Outdated),
        Some(_) | None => Ok(()),
    }
}

fn is_same_version(one: &Snapshot, other: &Snapshot) -> bool {
    one.manifest_digest() == other.manifest_digest()
}

#[cfg(test)]
mod tests;
