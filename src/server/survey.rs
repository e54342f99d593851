//! Who still runs a version that was withdrawn.
//!
//! Withdrawing stops distribution, not enforcement, so somebody wants to know how far it has
//! got. Counted are only requests that find a bundle withdrawn, by the tag that they say they
//! run: whoever is served, or told that nothing has changed, costs nothing here.
//!
//! A client is an address, its credential and its agent. Behind a proxy that
//! `server.trusted_proxies` names it is the address which that proxy forwards. An agent anybody who
//! may read could make up, to be counted as often as it likes, so only a few of them are told
//! apart. Where several look the same, those that wait at the same time are told apart.
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

use tokio::time::Instant;

use super::{clients::Credential, conditional::Tags};
use crate::watch::Lost;

/// OPA polls every two minutes at most by default.
const RECENT: Duration = Duration::from_secs(300);
/// Clients of a bundle that are told apart; a few megabytes. More count as so many.
const MOST: usize = 1 << 16;

/// Agents that are told apart behind one address with one credential.
const AGENTS: usize = 4;

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
    clients: HashMap<Key, Client>,
    /// The agents by address and credential, in the order in which they came.
    agents: HashMap<u64, Vec<u64>>,
    /// How many they are: each counts once, or as often as it waits.
    total: usize,
    /// The count at which the log was last told.
    told: usize,
}

/// A hash of address and credential, and which of its agents.
type Key = (u64, usize);

/// Who asks, as far as it can be told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    pub(super) address: IpAddr,
    pub(super) credential: Credential,
    /// A hash of what it calls itself.
    pub(super) agent: u64,
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
    client: Key,
}

impl Survey {
    /// Counts somebody who has found a bundle withdrawn, if that is what it runs.
    pub(super) fn count(&self, bundle: &str, lost: &Lost, tags: &Tags, who: &Who) -> Option<Waiting> {
        let etag = lost.etag.as_deref()?;
        let base = self.0.keys.hash_one((who.address, who.credential));
        let mut bundles = self.lock();
        if !tags.runs(etag) {
            // Somebody who looks like it has got away from it.
            let holdouts = bundles.get_mut(bundle)?;
            let client = holdouts.key(base, who.agent);
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
        let client = holdouts.key(base, who.agent);
        if holdouts.clients.len() >= MOST && !holdouts.clients.contains_key(&client) {
            return None;
        }
        holdouts.enter(client, who.agent);
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

    /// Drops what is known of bundles that are not configured any more.
    pub(super) fn retain(&self, is_configured: impl Fn(&str) -> bool) {
        self.lock().retain(|bundle, _| is_configured(bundle));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Holdouts>> {
        self.0.bundles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holdouts {
    fn of(etag: &str) -> Self {
        Self { etag: etag.to_owned(), clients: HashMap::new(), agents: HashMap::new(), total: 0, told: 0 }
    }

    fn key(&self, base: u64, agent: u64) -> Key {
        let agents = self.agents.get(&base).map_or(&[][..], Vec::as_slice);
        let known = agents.iter().position(|known| *known == agent);
        (base, known.unwrap_or(agents.len()).min(AGENTS - 1))
    }

    fn enter(&mut self, client: Key, agent: u64) {
        let agents = self.agents.entry(client.0).or_default();
        if client.1 == agents.len() {
            agents.push(agent);
        }
        let waiting = self.clients.get(&client).map(|known| known.waiting);
        // Who was here and does not wait, counts already.
        if waiting != Some(0) {
            self.total += 1;
        }
        self.clients.insert(client, Client { waiting: waiting.unwrap_or_default() + 1, last: Instant::now() });
    }

    fn leave(&mut self, client: Key) {
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
        let clients = &self.clients;
        self.agents.retain(|base, agents| (0..agents.len()).any(|agent| clients.contains_key(&(*base, agent))));
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

#[cfg(test)]
mod tests {
    use hyper::{
        HeaderMap,
        header::{HeaderValue, IF_NONE_MATCH},
    };
    use tokio::time::advance;

    use super::*;
    use crate::oci::Digest;

    fn lost(etag: &str) -> Lost {
        Lost { manifest: Digest::sha256(etag.as_bytes()), etag: Some(etag.to_owned()) }
    }

    fn ask(survey: &Survey, address: [u8; 4], agent: &'static str, runs: &'static str) -> Option<Waiting> {
        let headers = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static(runs))]);
        let agent = agent.bytes().map(u64::from).sum();
        let who = Who { address: address.into(), credential: Credential::None, agent };
        survey.count("authz", &lost("\"a\""), &Tags::of(&headers), &who)
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
        let who = Who { address: [10, 0, 0, 1].into(), credential: Credential::None, agent: 0 };
        let second = survey.count("authz", &lost("\"b\""), &Tags::of(&headers), &who);
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

    /// Anybody who may read could make them up.
    #[tokio::test(start_paused = true)]
    async fn of_the_agents_behind_one_address_a_few_are_told_apart() {
        let survey = Survey::default();
        for agent in ["a", "b", "c", "d", "e", "f", "g", "a"] {
            drop(ask(&survey, [10, 0, 0, 1], agent, "\"a\""));
        }
        assert_eq!(holdouts(&survey), AGENTS);
        assert!(ask(&survey, [10, 0, 0, 1], "a", "\"b\"").is_none());
        assert_eq!(holdouts(&survey), AGENTS - 1);
        advance(RECENT + Duration::from_secs(1)).await;
        assert_eq!(holdouts(&survey), 0);
        assert!(survey.lock()["authz"].agents.is_empty());
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
