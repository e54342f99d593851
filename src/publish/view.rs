//! The view that a request subscribes to: the state of a bundle, and of its fallback while it is
//! withdrawn.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::{
    Notify,
    watch::{self, error::RecvError},
};

use super::{
    Handle, Snapshot,
    state::{State, Withdrawal},
    status::Status,
};
use crate::oci::Digest;

/// What clients get while a bundle is withdrawn (`on_withdraw`).
///
/// Withdrawing stops distribution, not enforcement: OPA keeps its last policy on every error.
/// Only another bundle takes a policy out of a running fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnWithdraw {
    /// The bundle that is served instead, under the name of the withdrawn one, while that is
    /// withdrawn and this one is not. It has its own trust policy. It must be configured, must not
    /// be the bundle itself, and must not have a fallback of its own, so that there are no chains
    /// or cycles.
    ///
    /// Clients that run nothing yet, or the fallback, get it whenever the bundle is withdrawn.
    /// Clients that run another version get it where this replica has served the bundle, before or
    /// after its last start, and then withdrawn it. A replica without such a history (an empty
    /// cache) can't know whether other replicas serve a valid version: there, only clients get it
    /// whose first tag is that of a revoked version. Otherwise anyone who can move the tag to an
    /// old revoked artifact could have the fallback served to every client of the valid one.
    pub fallback: String,
}

/// The bundle that is served while another one is withdrawn.
#[derive(Debug, Clone)]
pub(super) struct Fallback {
    name: Arc<str>,
    state: watch::Receiver<State>,
    status: Arc<Mutex<Status>>,
    waiters: Arc<Notify>,
}

/// The fallback of a withdrawn bundle. All but `bundle` are `None` while the fallback itself has
/// nothing to serve.
#[derive(Debug, Clone)]
pub struct FallbackStatus {
    /// Its name in the configuration.
    pub bundle: Arc<str>,
    /// The digest of its manifest.
    pub manifest: Option<Digest>,
    /// Its entity tag.
    pub etag: Option<String>,
    /// When it began to be served in place of the withdrawn bundle.
    pub since: Option<Timestamp>,
}

/// A subscription to a bundle and its fallback. The caller marks it as seen ([`Self::seen`]) before
/// it compares, and asks for [`Self::has_changed`] afterwards, so that no change is missed.
#[derive(Debug, Clone)]
pub struct View {
    own: watch::Receiver<State>,
    /// Boxed, because few bundles have others, and each held request keeps this.
    others: Option<Box<Others>>,
}

/// What some clients of a bundle get instead.
#[derive(Debug, Clone)]
struct Others {
    fallback: Option<watch::Receiver<State>>,
    candidate: Option<watch::Receiver<State>>,
}

/// The states of a [`View`] at one moment.
#[derive(Debug, Clone)]
pub struct Seen {
    own: State,
    fallback: Option<Arc<Snapshot>>,
    candidate: Option<State>,
}

/// The version that a client runs, compared with the one asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientVersion {
    /// The client runs nothing yet.
    None,
    /// The client runs another version.
    Other,
    /// The client runs that version.
    Same,
}

/// The state to answer a client with.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The state: that of the fallback if it is selected.
    pub state: State,
    /// Whether the fallback is selected.
    pub is_fallback: bool,
}

/// Links each bundle for which `fallback_of` names another one to it.
pub fn link_fallbacks<'a>(handles: &mut [Handle], fallback_of: impl Fn(&str) -> Option<&'a str>) {
    let fallbacks: Vec<_> = handles
        .iter()
        .map(|handle| {
            let name = fallback_of(handle.name())?;
            handles
                .iter()
                .find(|other| other.name() == name)
                .map(|other| Fallback {
                    name: Arc::clone(&other.name),
                    state: other.state.clone(),
                    status: Arc::clone(&other.status),
                    waiters: Arc::clone(&other.waiters),
                })
        })
        .collect();
    for (handle, fallback) in handles.iter_mut().zip(fallbacks) {
        handle
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fallback = fallback.as_ref().map(|fallback| Arc::clone(&fallback.name));
        handle.fallback = fallback;
    }
}

impl Fallback {
    /// Completes with `own`, or when the waiters of the fallback are woken after this call.
    pub(super) fn woken_or(&self, own: impl Future<Output = ()>) -> impl Future<Output = ()> {
        let woken = self.waiters.notified();
        async move {
            tokio::select! {
                () = own => {}
                () = woken => {}
            }
        }
    }
}

impl Handle {
    /// A new subscription.
    pub fn view(&self) -> View {
        self.view_with(None)
    }

    /// As [`Self::view`], with the version that is being rolled out to some clients of the bundle. Its handle
    /// wakes the same requests.
    pub fn view_with(&self, candidate: Option<&Self>) -> View {
        let fallback = self.fallback.as_ref();
        let others = Others {
            fallback: fallback.map(|fallback| fallback.state.clone()),
            candidate: candidate.map(|candidate| candidate.state.clone()),
        };
        View {
            own: self.state.clone(),
            others: others.has_any().then(|| Box::new(others)),
        }
    }

    /// The withdrawal, while the bundle is withdrawn.
    pub fn withdrawal(&self) -> Option<Withdrawal> {
        match &*self.state.borrow() {
            State::Withdrawn(withdrawal) => Some(withdrawal.clone()),
            State::Pending | State::Serving(_) => None,
        }
    }

    /// The fallback; `None` while the bundle is not withdrawn, or without a fallback.
    pub fn fallback_status(&self) -> Option<FallbackStatus> {
        self.withdrawal()?;
        let fallback = self.fallback.as_ref()?;
        let withdrawn = self.status().since;
        let status = fallback
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Some(FallbackStatus {
            bundle: Arc::clone(&fallback.name),
            manifest: status.manifest.clone(),
            etag: status.etag.clone(),
            since: status
                .manifest
                .is_some()
                .then(|| status.since.max(withdrawn)),
        })
    }
}

impl View {
    /// The states now, marked as seen.
    pub fn seen(&mut self) -> Seen {
        let own = self.own.borrow_and_update().clone();
        let Some(Others {
            fallback,
            candidate,
        }) = self.others.as_deref_mut()
        else {
            return Seen {
                own,
                fallback: None,
                candidate: None,
            };
        };
        let fallback = fallback
            .as_mut()
            .and_then(|fallback| fallback.borrow_and_update().snapshot().cloned());
        let candidate = candidate.as_mut();
        let candidate = candidate.map(|candidate| candidate.borrow_and_update().clone());
        Seen {
            own,
            fallback,
            candidate,
        }
    }

    /// Whether one of the states has changed since it was seen. A change of the fallback counts
    /// only while the bundle is withdrawn. A [`Handle`] tells when to ask ([`Handle::woken`]).
    ///
    /// # Errors
    /// When the bundle's watcher is gone, and its last change was seen.
    pub fn has_changed(&self) -> Result<bool, RecvError> {
        match self.own.has_changed() {
            Ok(has_changed) => {
                Ok(has_changed || self.fallback_has_changed() || self.candidate_has_changed())
            }
            Err(_) if self.own.borrow().has_changed() => Ok(true),
            Err(closed) => Err(closed),
        }
    }

    fn candidate_has_changed(&self) -> bool {
        let candidate = self.others.as_ref();
        let candidate = candidate.and_then(|others| others.candidate.as_ref());
        candidate.is_some_and(|candidate| candidate.borrow().has_changed())
    }

    fn fallback_has_changed(&self) -> bool {
        let is_withdrawn = || matches!(*self.own.borrow(), State::Withdrawn(_));
        let fallback = self.others.as_ref();
        fallback
            .and_then(|others| others.fallback.as_ref())
            .is_some_and(|fallback| fallback.borrow().has_changed() && is_withdrawn())
    }
}

impl Others {
    fn has_any(&self) -> bool {
        self.fallback.is_some() || self.candidate.is_some()
    }
}

impl Seen {
    /// The bundle's own state: that of the stable version, where versions are rolled out in steps.
    pub fn own(&self) -> &State {
        &self.own
    }

    /// The state of the version that is being rolled out.
    pub fn candidate(&self) -> Option<&State> {
        self.candidate.as_ref()
    }

    /// The state to answer a client with at this time. `version_of` compares the client's version
    /// with an entity tag: the fallback's, where there is one to serve, and then perhaps that of
    /// the withdrawn version.
    pub fn select(
        &self,
        now: Timestamp,
        mut version_of: impl FnMut(&str) -> ClientVersion,
    ) -> Selection {
        let own = self.own.clone().at(now);
        let fallback = self
            .fallback
            .as_ref()
            .filter(|snapshot| snapshot.is_valid_at(now));
        // The fallback is not served in the moment between an expired verification and the next
        // one.
        if let (State::Withdrawn(withdrawal), Some(fallback)) = (&self.own, fallback) {
            let is_due = match version_of(fallback.etag()) {
                ClientVersion::None | ClientVersion::Same => true,
                ClientVersion::Other => gets_fallback(withdrawal, version_of),
            };
            if is_due {
                return Selection {
                    state: State::Serving(Arc::clone(fallback)),
                    is_fallback: true,
                };
            }
        }
        Selection {
            state: own,
            is_fallback: false,
        }
    }
}

/// Whether a client that runs another version gets the fallback.
fn gets_fallback(
    withdrawal: &Withdrawal,
    mut version_of: impl FnMut(&str) -> ClientVersion,
) -> bool {
    match &withdrawal.version {
        None => false,
        Some(_) if withdrawal.was_served => true,
        Some(version) => version
            .etag
            .as_deref()
            .is_some_and(|etag| version_of(etag) == ClientVersion::Same),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, timeout};

    use super::{
        super::{snapshot, state::WithdrawnVersion},
        *,
    };
    use crate::telemetry;

    struct Pair {
        own: watch::Sender<State>,
        fallback: watch::Sender<State>,
        view: View,
    }

    impl Pair {
        fn showing(own: State, fallback: State) -> Self {
            let ((own, own_seen), (fallback, fallback_seen)) =
                (watch::channel(own), watch::channel(fallback));
            Self {
                own,
                fallback,
                view: View {
                    own: own_seen,
                    others: Some(Box::new(Others {
                        fallback: Some(fallback_seen),
                        candidate: None,
                    })),
                },
            }
        }

        fn has_changed(&self) -> bool {
            self.view.has_changed().unwrap()
        }
    }

    fn serving(version: u8) -> State {
        State::Serving(snapshot(version))
    }

    fn withdrawn(version: u8) -> State {
        let version = Some(Arc::new(WithdrawnVersion::of(&snapshot(version))));
        State::Withdrawn(Withdrawal {
            reason: "revoked".into(),
            version,
            was_served: true,
        })
    }

    fn never() -> State {
        State::Withdrawn("no signature".into())
    }

    #[test]
    fn on_withdraw_serves_the_fallback_only_while_withdrawn_and_not_to_clients_of_other_versions() {
        const ALL: [ClientVersion; 3] = [
            ClientVersion::None,
            ClientVersion::Other,
            ClientVersion::Same,
        ];
        for (own, fallback, offered) in [
            (State::Pending, serving(2), [false, false, false]),
            (serving(1), serving(2), [false, false, false]),
            (withdrawn(1), serving(2), [true, true, true]),
            (never(), serving(2), [true, false, true]),
            // A fallback that has nothing to serve is none.
            (withdrawn(1), State::Pending, [false, false, false]),
            (withdrawn(1), withdrawn(2), [false, false, false]),
        ] {
            let seen = Pair::showing(own, fallback).view.seen();
            for (version_of, is_fallback) in ALL.into_iter().zip(offered) {
                let offer = seen.select(telemetry::now(), |_| version_of);
                assert_eq!(offer.is_fallback, is_fallback, "{version_of:?} {seen:?}");
                let own = seen.own().label();
                assert_eq!(
                    offer.state.label(),
                    if is_fallback { "serving" } else { own }
                );
            }
        }
    }

    /// A tag was moved to an old artifact of a revoked key, and this replica is new.
    #[test]
    fn a_revoked_version_that_was_never_served_here_affects_only_its_own_clients() {
        let version = Some(Arc::new(WithdrawnVersion::of(&snapshot(1))));
        let revoked = State::Withdrawn(Withdrawal {
            reason: "revoked".into(),
            version,
            was_served: false,
        });
        let seen = Pair::showing(revoked.clone(), serving(2)).view.seen();
        let of_another_replica = "\"v2\"".to_owned();
        for (first, fallback) in [
            (None, true),
            (Some(snapshot(2).etag().to_owned()), true),
            (Some(snapshot(1).etag().to_owned()), true),
            (Some(of_another_replica), false),
        ] {
            let version_of = |etag: &str| match &first {
                None => ClientVersion::None,
                Some(first) if first == etag => ClientVersion::Same,
                Some(_) => ClientVersion::Other,
            };
            assert_eq!(
                seen.select(telemetry::now(), version_of).is_fallback,
                fallback,
                "{first:?}"
            );
        }
        // Once it was served here, every client gets the fallback.
        let seen = Pair::showing(revoked.served_before(), serving(2))
            .view
            .seen();
        assert!(
            seen.select(telemetry::now(), |_| ClientVersion::Other)
                .is_fallback
        );
    }

    #[test]
    fn a_client_is_asked_about_the_fallbacks_tag() {
        let seen = Pair::showing(withdrawn(1), serving(2)).view.seen();
        let mut asked = String::new();
        seen.select(telemetry::now(), |etag| {
            asked = etag.to_owned();
            ClientVersion::Other
        });
        assert_eq!(asked, snapshot(2).etag());
    }

    #[test]
    fn a_change_of_the_fallback_counts_only_while_the_bundle_is_withdrawn() {
        let mut pair = Pair::showing(serving(1), serving(2));
        pair.view.seen();
        pair.fallback.send_replace(serving(3));
        assert!(!pair.has_changed(), "the bundle itself is served");
        pair.own.send_replace(withdrawn(1));
        assert!(pair.has_changed());
        pair.view.seen();
        pair.fallback.send_replace(serving(2));
        assert!(pair.has_changed(), "a new fallback");
        let offer = pair
            .view
            .seen()
            .select(telemetry::now(), |_| ClientVersion::Other);
        assert_eq!(offer.state.snapshot().unwrap().etag(), snapshot(2).etag());
        pair.own.send_replace(serving(1));
        assert!(pair.has_changed(), "trusted again");
        assert!(
            !pair
                .view
                .seen()
                .select(telemetry::now(), |_| ClientVersion::Same)
                .is_fallback
        );
    }

    #[test]
    fn a_fallback_whose_watcher_is_gone_changes_nothing_else() {
        let mut pair = Pair::showing(serving(1), serving(2));
        drop(pair.fallback);
        let view = &mut pair.view;
        view.seen();
        assert!(!view.has_changed().unwrap());
        pair.own.send_replace(withdrawn(1));
        // The last change counts after the end as well.
        drop(pair.own);
        assert!(view.has_changed().unwrap());
        view.seen();
        assert!(view.has_changed().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_wake_when_a_publisher_is_gone_their_own_or_that_of_the_fallback() {
        let [(own, handle), (fallback, deny)] = ["authz", "deny"].map(super::super::pending);
        let mut handles = [handle, deny];
        link_fallbacks(&mut handles, |name| (name == "authz").then_some("deny"));
        let [handle, _] = &handles;
        let mut view = handle.view();
        view.seen();
        for (publisher, is_own) in [(fallback, false), (own, true)] {
            let woken = handle.woken();
            drop(publisher);
            timeout(Duration::from_secs(1), woken).await.unwrap();
            assert_eq!(view.has_changed().is_err(), is_own);
        }
    }
}
