//! What a registry host can't do, as its answers have shown. Whatever is remembered here saves
//! requests only: it is forgotten after [`MEMORY`], and no verdict depends on it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Duration, Instant};

/// How long an answer is remembered.
const MEMORY: Duration = Duration::from_secs(60 * 60);
/// The number of repositories without the referrers API after which the host has none. One host
/// may be a proxy for several registries, so that a single repository says little about the
/// others; and thousands of bundles may be in as many repositories of one host.
const REPOSITORIES_FOR_HOST: usize = 3;
/// The most repositories, and the most tags, that are remembered for one host.
const MAX_REMEMBERED: usize = 16384;

/// What is known about one host under one credential.
#[derive(Debug, Default)]
pub(super) struct Capabilities {
    referrers: Mutex<ReferrersSupport>,
    /// By repository and tag.
    head: Mutex<HashMap<(String, String), (HeadSupport, Instant)>>,
}

/// What a GET of a tag has shown about a HEAD that did not resolve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadSupport {
    /// GET resolves the tag where HEAD does not.
    Missing,
    /// GET is answered as HEAD is: the tag is missing, or the credentials may not read it.
    Confirmed,
}

/// The repositories that have answered for the referrers API.
#[derive(Debug, Default)]
struct ReferrersSupport {
    /// Repositories without it, and when that is forgotten.
    missing: HashMap<String, Instant>,
    /// Until when as many repositories lack it as count for the host.
    missing_until: Option<Instant>,
    /// Until when an answer of any repository proves that the host has it.
    present_until: Option<Instant>,
}

impl Capabilities {
    /// Whether the referrers API of `repository` need not be asked: this repository lacks it, or
    /// so many others do that the host has none.
    pub(super) fn lacks_referrers_api(&self, repository: &str) -> bool {
        let (known, now) = (self.referrers(), Instant::now());
        let later = |until: &Instant| now < *until;
        known.missing.get(repository).is_some_and(later)
            || (known.missing_until.as_ref().is_some_and(later)
                && !known.present_until.as_ref().is_some_and(later))
    }

    /// Records that `repository` has no referrers API. Only for a repository whose manifests can
    /// be read with the same credential: some registries answer 404 for a missing repository.
    pub(super) fn record_no_referrers_api(&self, repository: &str) {
        let (mut known, now) = (self.referrers(), Instant::now());
        if known.missing.len() >= MAX_REMEMBERED {
            known.missing.retain(|_, until| now < *until);
        }
        if known.missing.len() < MAX_REMEMBERED {
            known.missing.insert(repository.to_owned(), now + MEMORY);
        }
        // One answer costs a request, so a pass over all of them costs little beside it.
        let mut ends: Vec<_> = known.missing.values().copied().collect();
        known.missing_until = (ends.len() >= REPOSITORIES_FOR_HOST).then(|| {
            let last = REPOSITORIES_FOR_HOST - 1;
            *ends
                .select_nth_unstable_by(last, |one, other| other.cmp(one))
                .1
        });
    }

    /// Records a list of referrers, from whichever repository.
    pub(super) fn record_referrers_api(&self) {
        let mut known = self.referrers();
        known.missing.clear();
        known.missing_until = None;
        known.present_until = Some(Instant::now() + MEMORY);
    }

    /// What is known about HEAD of a tag: per tag, as a registry may index it on the first GET
    /// only. `None` where HEAD has to be tried.
    pub(super) fn head(&self, repository: &str, tag: &str) -> Option<HeadSupport> {
        let key = (repository.to_owned(), tag.to_owned());
        let (support, until) = *lock(&self.head).get(&key)?;
        (Instant::now() < until).then_some(support)
    }

    /// Records what a GET after a HEAD has shown; `None` forgets it.
    pub(super) fn record_head(&self, repository: &str, tag: &str, support: Option<HeadSupport>) {
        let mut known = lock(&self.head);
        let key = (repository.to_owned(), tag.to_owned());
        let Some(support) = support else {
            known.remove(&key);
            return;
        };
        let now = Instant::now();
        if known.len() >= MAX_REMEMBERED {
            known.retain(|_, (_, until)| now < *until);
        }
        if known.len() < MAX_REMEMBERED {
            known.insert(key, (support, now + MEMORY));
        }
    }

    fn referrers(&self) -> MutexGuard<'_, ReferrersSupport> {
        lock(&self.referrers)
    }
}

fn lock<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_repository_without_the_referrers_api_is_remembered_for_an_hour() {
        let known = Capabilities::default();
        assert!(!known.lacks_referrers_api("a"));
        known.record_no_referrers_api("a");
        assert!(known.lacks_referrers_api("a") && !known.lacks_referrers_api("b"));
        advance(MEMORY - Duration::from_secs(1)).await;
        assert!(known.lacks_referrers_api("a"));
        advance(Duration::from_secs(1)).await;
        assert!(!known.lacks_referrers_api("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn three_repositories_without_the_referrers_api_count_for_the_host_for_an_hour() {
        let known = Capabilities::default();
        for repository in ["a", "b"] {
            known.record_no_referrers_api(repository);
            known.record_no_referrers_api(repository);
            assert!(!known.lacks_referrers_api("other"), "{repository}");
        }
        known.record_no_referrers_api("c");
        assert!(known.lacks_referrers_api("other"));
        // One bundle that is asked about again and again does not prolong it for the others.
        advance(MEMORY / 2).await;
        known.record_no_referrers_api("a");
        advance(MEMORY / 2).await;
        assert!(known.lacks_referrers_api("a") && !known.lacks_referrers_api("other"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_list_of_referrers_ends_the_memory_of_the_whole_host() {
        let known = Capabilities::default();
        for repository in ["a", "b", "c", "d"] {
            known.record_no_referrers_api(repository);
        }
        known.record_referrers_api();
        for repository in ["a", "other"] {
            assert!(!known.lacks_referrers_api(repository), "{repository}");
        }
        // A proxy for several registries: each of its repositories counts for itself.
        for repository in ["a", "b", "c", "d"] {
            known.record_no_referrers_api(repository);
        }
        assert!(known.lacks_referrers_api("a") && !known.lacks_referrers_api("other"));
        advance(MEMORY).await;
        for repository in ["a", "b", "c"] {
            known.record_no_referrers_api(repository);
        }
        assert!(known.lacks_referrers_api("other"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bounded_number_of_repositories_is_remembered() {
        let known = Capabilities::default();
        known.record_referrers_api();
        for number in 0..MAX_REMEMBERED + 10 {
            known.record_no_referrers_api(&number.to_string());
        }
        assert_eq!(known.referrers().missing.len(), MAX_REMEMBERED);
    }

    #[tokio::test(start_paused = true)]
    async fn head_of_a_tag_is_tried_again_after_an_hour() {
        let known = Capabilities::default();
        assert_eq!(known.head("a", "live"), None);
        for support in [HeadSupport::Missing, HeadSupport::Confirmed] {
            known.record_head("a", "live", Some(support));
            assert_eq!(known.head("a", "live"), Some(support));
            assert_eq!(
                (known.head("a", "x"), known.head("b", "live")),
                (None, None)
            );
            advance(MEMORY).await;
            assert_eq!(known.head("a", "live"), None);
        }
        known.record_head("a", "live", Some(HeadSupport::Missing));
        known.record_head("a", "live", None);
        assert_eq!(known.head("a", "live"), None);
        for number in 0..MAX_REMEMBERED + 10 {
            known.record_head("a", &number.to_string(), Some(HeadSupport::Confirmed));
        }
        assert_eq!(lock(&known.head).len(), MAX_REMEMBERED);
        advance(MEMORY).await;
        known.record_head("a", "live", Some(HeadSupport::Confirmed));
        assert_eq!(lock(&known.head).len(), 1);
    }
}
