//! Who still runs a version that was withdrawn.
//!
//! Withdrawing stops distribution, not enforcement, so somebody wants to know how far it has
//! got. Counted are only requests that find a bundle withdrawn, by the tag that they say they
//! run: whoever is served, or told that nothing has changed, costs nothing here.
//!
//! A client is an address, what a proxy forwards of the one behind it, its agent and its
//! credential. Where several look the same, those that wait at the same time are told apart.
//! It counts while it waits, and for [`RECENT`] after it asked; so one that does not poll as
//! often as that is missed, as is one that has not asked since the withdrawal, and several that
//! look the same and never wait at the same time count as one.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, FORWARDED, HeaderName, USER_AGENT},
};
use tokio::time::Instant;

use super::conditional::Tags;
use crate::watch::Lost;

/// OPA polls every two minutes at most by default.
const RECENT: Duration = Duration::from_secs(300);
/// Clients of a bundle that are told apart; a few megabytes. More count as so many.
const MOST: usize = 1 << 16;

/// The withdrawn versions that somebody still runs. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Survey(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    bundles: Mutex<HashMap<String, Holdouts>>,
    keys: RandomState,
}

/// Those who run one withdrawn version.
#[derive(Debug)]
struct Holdouts {
    etag: String,
    clients: HashMap<u64, Client>,
    /// How many they are: each counts once, or as often as it waits.
    total: usize,
    /// The count at which the log was last told.
    told: usize,
}

#[derive(Debug)]
struct Client {
    waiting: u32,
    last: Instant,
}

/// A request that is counted; waiting for as long as this lives.
#[derive(Debug)]
pub(super) struct Waiting {
    survey: Survey,
    bundle: String,
    etag: String,
    client: u64,
}

impl Survey {
    /// Counts somebody who has found a bundle withdrawn, if that is what it runs.
    pub(super) fn count(
        &self,
        bundle: &str,
        lost: &Lost,
        tags: &Tags,
        address: IpAddr,
        headers: &HeaderMap,
    ) -> Option<Waiting> {
        let etag = lost.etag.as_deref()?;
        let client = self.0.keys.hash_one((address, IDENTIFYING.map(|name| headers.get(name))));
        let mut bundles = self.lock();
        if !tags.runs(etag) {
            // Somebody who looks like it has got away from it.
            let holdouts = bundles.get_mut(bundle)?;
            if holdouts.clients.get(&client).is_some_and(|client| client.waiting == 0) {
                holdouts.clients.remove(&client);
                holdouts.total -= 1;
            }
            return None;
        }
        let holdouts = bundles.entry(bundle.to_owned()).or_insert_with(|| Holdouts::of(etag));
        if holdouts.etag != etag {
            *holdouts = Holdouts::of(etag);
        }
        if holdouts.clients.len() >= MOST && !holdouts.clients.contains_key(&client) {
            return None;
        }
        holdouts.enter(client);
        holdouts.tell(bundle, lost);
        Some(Waiting { survey: self.clone(), bundle: bundle.to_owned(), etag: etag.to_owned(), client })
    }

    /// How many clients run it still, as far as they have asked; `None` where its tag is not
    /// known.
    pub(super) fn holdouts(&self, bundle: &str, lost: &Lost) -> Option<usize> {
        let etag = lost.etag.as_deref()?;
        let mut bundles = self.lock();
        let Some(holdouts) = bundles.get_mut(bundle).filter(|holdouts| holdouts.etag == etag) else { return Some(0) };
        holdouts.forget_the_silent();
        Some(holdouts.total)
    }

    /// Forgets what was known of a bundle that is not withdrawn any more.
    pub(super) fn close(&self, bundle: &str) {
        self.lock().remove(bundle);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Holdouts>> {
        self.0.bundles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holdouts {
    fn of(etag: &str) -> Self {
        Self { etag: etag.to_owned(), clients: HashMap::new(), total: 0, told: 0 }
    }

    fn enter(&mut self, client: u64) {
        let waiting = self.clients.get(&client).map(|known| known.waiting);
        // Who was here and does not wait, counts already.
        if waiting != Some(0) {
            self.total += 1;
        }
        self.clients.insert(client, Client { waiting: waiting.unwrap_or_default() + 1, last: Instant::now() });
    }

    fn leave(&mut self, client: u64) {
        let Some(known) = self.clients.get_mut(&client).filter(|known| known.waiting > 0) else { return };
        *known = Client { waiting: known.waiting - 1, last: Instant::now() };
        if known.waiting > 0 {
            self.total -= 1;
        }
    }

    fn forget_the_silent(&mut self) {
        let before = self.clients.len();
        self.clients.retain(|_, client| client.waiting > 0 || client.last.elapsed() <= RECENT);
        self.total -= before - self.clients.len();
    }

    /// Tells the log at 1, 2, 4, 8 … clients.
    fn tell(&mut self, bundle: &str, lost: &Lost) {
        let clients = self.total;
        if clients.is_power_of_two() && clients > self.told {
            self.told = clients;
            let manifest = &lost.manifest;
            tracing::warn!(bundle, %manifest, clients, "clients still run the version that was withdrawn");
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut bundles = self.survey.lock();
        if let Some(holdouts) = bundles.get_mut(&self.bundle).filter(|holdouts| holdouts.etag == self.etag) {
            holdouts.leave(self.client);
        }
    }
}

const IDENTIFYING: [HeaderName; 4] = [HeaderName::from_static("x-forwarded-for"), FORWARDED, USER_AGENT, AUTHORIZATION];

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderValue, IF_NONE_MATCH};
    use tokio::time::advance;

    use super::*;
    use crate::oci::Digest;

    fn lost(etag: &str) -> Lost {
        Lost { manifest: Digest::sha256(etag.as_bytes()), etag: Some(etag.to_owned()) }
    }

    fn ask(survey: &Survey, address: [u8; 4], agent: &'static str, runs: &'static str) -> Option<Waiting> {
        let headers = HeaderMap::from_iter([
            (USER_AGENT, HeaderValue::from_static(agent)),
            (IF_NONE_MATCH, HeaderValue::from_static(runs)),
        ]);
        survey.count("authz", &lost("\"a\""), &Tags::of(&headers), address.into(), &headers)
    }

    fn holdouts(survey: &Survey) -> usize {
        survey.holdouts("authz", &lost("\"a\"")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn clients_count_once_however_often_they_ask_and_until_they_are_silent() {
        let survey = Survey::default();
        for _ in 0..3 {
            drop(ask(&survey, [10, 0, 0, 1], "opa", "\"a\""));
            drop(ask(&survey, [10, 0, 0, 2], "opa", "\"a\", \"b\""));
            drop(ask(&survey, [10, 0, 0, 2], "another opa", "\"a\""));
        }
        assert_eq!(holdouts(&survey), 3);
        advance(RECENT / 2).await;
        drop(ask(&survey, [10, 0, 0, 1], "opa", "\"a\""));
        advance(RECENT / 2 + Duration::from_secs(1)).await;
        assert_eq!(holdouts(&survey), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_look_the_same_are_told_apart_while_they_wait() {
        let survey = Survey::default();
        let waiting: Vec<_> = (0..5).map(|_| ask(&survey, [10, 0, 0, 1], "opa", "\"a\"").unwrap()).collect();
        advance(RECENT * 3).await;
        assert_eq!(holdouts(&survey), 5, "waiting is asking");
        drop(waiting);
        assert_eq!(holdouts(&survey), 1);
        advance(RECENT + Duration::from_secs(1)).await;
        assert_eq!(holdouts(&survey), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_runs_something_else_or_nothing_does_not_count_and_counts_no_more() {
        let survey = Survey::default();
        for other in ["", "\"b\"", "\"b\", \"a\""] {
            assert!(ask(&survey, [10, 0, 0, 1], "opa", other).is_none(), "{other}");
            drop(ask(&survey, [10, 0, 0, 1], "opa", "\"a\""));
            assert_eq!(holdouts(&survey), 1);
            assert!(ask(&survey, [10, 0, 0, 1], "opa", other).is_none(), "{other}");
            assert_eq!(holdouts(&survey), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_bundle_and_each_withdrawal_is_counted_by_itself() {
        let survey = Survey::default();
        let first = ask(&survey, [10, 0, 0, 1], "opa", "\"a\"");
        let headers = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static("\"b\""))]);
        let second = survey.count("authz", &lost("\"b\""), &Tags::of(&headers), [10, 0, 0, 1].into(), &headers);
        assert_eq!(survey.holdouts("authz", &lost("\"b\"")), Some(1));
        drop(first);
        assert_eq!(survey.holdouts("authz", &lost("\"b\"")), Some(1), "what is over does not count down the next");
        assert_eq!(survey.holdouts("other", &lost("\"b\"")), Some(0));
        survey.close("authz");
        assert_eq!(survey.holdouts("authz", &lost("\"b\"")), Some(0));
        drop(second);
        let unknown = Lost { etag: None, ..lost("\"b\"") };
        assert_eq!(survey.holdouts("authz", &unknown), None);
    }

    #[tokio::test(start_paused = true)]
    async fn no_crowd_takes_more_than_its_memory() {
        let survey = Survey::default();
        for number in 0..u32::try_from(MOST).unwrap() + 10 {
            drop(ask(&survey, number.to_be_bytes(), "opa", "\"a\""));
        }
        assert_eq!(holdouts(&survey), MOST);
    }
}
