//! How a version differs from earlier ones: the deltas that OPAs get which run one of those.

use std::{
    pin::pin,
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{Snapshot, tag_hash::opaque_tag};
use crate::{
    bundle::{Bundle, DeltaLimits, Difference, NoDelta},
    oci::{Blob, BlobSpace},
};

/// Versions that are the same for OPA, and that clients may still name. A client with another one gets the whole bundle.
const MAX_SAME: usize = 32;

/// A delta bundle that leads from one verified version to another. Only [`Snapshot::compare_with`] makes one, and
/// only if applying it to the earlier version gives the later one.
#[derive(Debug)]
pub struct Delta {
    blob: Blob,
    base: Arc<str>,
}

impl Delta {
    /// The tarball.
    pub fn bytes(&self) -> &Blob {
        &self.blob
    }

    /// The entity tag of the earlier version, quotes included.
    pub fn base(&self) -> &str {
        &self.base
    }
}

/// A version that was served, as later ones are compared with it. Only [`Snapshot::base_version`] makes one.
#[derive(Debug, Clone)]
pub struct BaseVersion {
    bundle: Bundle,
    etag: Arc<str>,
    /// The entity tags of versions before it that are the same for OPA, and that clients keep; newest first.
    same: Vec<Arc<str>>,
}

impl BaseVersion {
    /// Its entity tag, quotes included.
    pub fn etag(&self) -> &str {
        &self.etag
    }

    /// The size of the tarball in bytes.
    pub fn size(&self) -> u64 {
        self.bundle.blob().size()
    }

    /// Its entity tag, and those of versions before it that are the same for OPA; newest first.
    fn tags(&self) -> impl DoubleEndedIterator<Item = &Arc<str>> {
        [&self.etag].into_iter().chain(&self.same)
    }

    /// Whether clients with this entity tag, quotes included, run what it has.
    pub fn has_tag(&self, etag: &str) -> bool {
        self.tags().any(|tag| **tag == *etag)
    }
}

/// What an OPA needs that runs an earlier version.
#[derive(Debug, Clone)]
pub enum FromBase {
    /// Nothing: for OPA the two versions are the same.
    Nothing,
    /// This delta, or the whole bundle.
    Delta(Arc<Delta>),
}

/// The differences of a version from earlier ones, by the entity tag of the earlier one.
#[derive(Debug, Default)]
pub(super) struct Differences {
    by_tag: Mutex<Vec<(Arc<str>, Comparison)>>,
    /// A comparison is requested.
    requested: Notify,
    /// A comparison has ended.
    ended: Notify,
}

/// What is known of the difference from an earlier version.
#[derive(Debug, Clone)]
enum Comparison {
    /// Nothing: the two versions can be compared.
    Possible,
    /// Nothing yet: a client waits for it.
    Requested,
    /// What an OPA needs that runs the earlier version; `None` for the whole bundle.
    Ended(Option<FromBase>),
}

impl Differences {
    fn get(&self, base: &str) -> Option<Comparison> {
        let by_tag = self.lock();
        let found = by_tag.iter().find(|(tag, _)| opaque_tag(tag) == base);
        found.map(|(_, comparison)| comparison.clone())
    }

    fn set(&self, base: &Arc<str>, difference: Option<FromBase>) {
        let mut by_tag = self.lock();
        by_tag.retain(|(tag, _)| tag != base);
        by_tag.push((Arc::clone(base), Comparison::Ended(difference)));
        drop(by_tag);
        self.ended.notify_waiters();
    }

    /// The tags of the last [`MAX_SAME`] versions that are the same for OPA, newest first.
    fn same(&self) -> Vec<Arc<str>> {
        let by_tag = self.lock();
        let is_same = |comparison: &Comparison| {
            matches!(comparison, Comparison::Ended(Some(FromBase::Nothing)))
        };
        let same = by_tag.iter().rev().filter(|(_, it)| is_same(it));
        let last = same.take(MAX_SAME);
        last.map(|(tag, _)| Arc::clone(tag)).collect()
    }

    /// Marks a possible comparison as requested.
    fn request(&self, base: &str) {
        for (tag, comparison) in self.lock().iter_mut() {
            if opaque_tag(tag) == base && matches!(comparison, Comparison::Possible) {
                *comparison = Comparison::Requested;
                self.requested.notify_one();
            }
        }
    }

    fn first_requested(&self) -> Option<Arc<str>> {
        let by_tag = self.lock();
        let mut requested = by_tag
            .iter()
            .filter(|(_, comparison)| matches!(comparison, Comparison::Requested));
        requested.next().map(|(tag, _)| Arc::clone(tag))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Arc<str>, Comparison)>> {
        self.by_tag.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    /// What is kept of this version for later ones to be compared with it.
    pub fn base_version(&self) -> BaseVersion {
        BaseVersion {
            bundle: self.bundle().without_copy(),
            etag: self.etag().into(),
            same: self.differences().same(),
        }
    }

    /// Whether it was compared with an earlier version. A failure is not tried again: clients would wait for it.
    pub fn was_compared_with(&self, base: &BaseVersion) -> bool {
        let comparison = self.differences().get(opaque_tag(base.etag()));
        matches!(comparison, Some(Comparison::Ended(_)))
    }

    /// Takes over the results of a version with the same bytes, which another manifest names.
    pub fn continue_comparisons_of(&self, served: &Self) {
        if served.etag() != self.etag() || self.shares_comparisons_with(served) {
            return;
        }
        let known = served.differences().lock().clone();
        let mut by_tag = self.differences().lock();
        for (tag, comparison) in known {
            let is_new = !by_tag.iter().any(|(known, _)| *known == tag);
            if is_new && matches!(comparison, Comparison::Ended(_)) {
                by_tag.push((tag, comparison));
            }
        }
    }

    /// Whether it is the same version, verified again.
    pub fn shares_comparisons_with(&self, other: &Self) -> bool {
        ptr::eq(self.differences(), other.differences())
    }

    /// Lets clients request a comparison with these versions; see [`Self::request_comparison`].
    pub fn allow_comparisons_with(&self, bases: &[BaseVersion]) {
        let mut by_tag = self.differences().lock();
        for tag in bases.iter().flat_map(BaseVersion::tags) {
            if **tag != *self.etag() && !by_tag.iter().any(|(known, _)| known == tag) {
                by_tag.push((Arc::clone(tag), Comparison::Possible));
            }
        }
    }

    /// Whether a comparison with the version that has this entity tag, without quotes and `W/`, can be requested or is.
    pub fn can_be_compared(&self, base: &str) -> bool {
        let comparison = self.differences().get(base);
        matches!(
            comparison,
            Some(Comparison::Possible | Comparison::Requested)
        )
    }

    /// Requests a comparison with the version that has this entity tag, without quotes and `W/`, and waits until it has
    /// ended. Cancel-safe.
    pub async fn request_comparison(&self, base: &str) {
        let differences = self.differences();
        loop {
            let mut ended = pin!(differences.ended.notified());
            // Before the state is read, so that no later end is missed.
            ended.as_mut().enable();
            if !self.can_be_compared(base) {
                return;
            }
            differences.request(base);
            ended.await;
        }
    }

    /// Waits until a comparison is requested. Returns the entity tag of the earlier version, quotes included; it stays
    /// requested until [`Self::compare_with`] or [`Self::end_comparison`]. Cancel-safe.
    pub async fn next_request(&self) -> Arc<str> {
        let differences = self.differences();
        loop {
            if let Some(tag) = differences.first_requested() {
                return tag;
            }
            differences.requested.notified().await;
        }
    }

    /// Ends all possible comparisons, since none of them will be made: another version takes the place of this one.
    pub fn end_comparisons(&self) {
        let differences = self.differences();
        let has_ended = |comparison: &Comparison| matches!(comparison, Comparison::Ended(_));
        differences.lock().retain(|(_, it)| has_ended(it));
        differences.ended.notify_waiters();
    }

    /// Ends a requested comparison that has no result: OPAs that run that version get the whole bundle.
    pub fn end_comparison(&self, base: &Arc<str>) {
        if self.can_be_compared(opaque_tag(base)) {
            self.differences().set(base, None);
        }
    }

    /// Compares this version with an earlier one, so that [`Self::from_base`] knows the difference, also from versions
    /// that are the same as the earlier one. Blocks; see [`Difference::between`].
    ///
    /// # Errors
    /// Why OPAs that run the earlier version need the whole bundle.
    pub fn compare_with(
        &self,
        base: &BaseVersion,
        limits: &DeltaLimits,
        space: Arc<dyn BlobSpace>,
    ) -> Result<FromBase, NoDelta> {
        let compared = Difference::between(&base.bundle, self.bundle(), limits, space);
        let from = |tag: &Arc<str>| match &compared {
            Ok(Difference::None) => Some(FromBase::Nothing),
            Ok(Difference::Delta(blob)) => Some(FromBase::Delta(Arc::new(Delta {
                blob: blob.clone(),
                base: Arc::clone(tag),
            }))),
            Err(_) => None,
        };
        // A version can be the same as one that was before the earlier one, and is served again.
        let is_earlier = |tag: &&Arc<str>| *tag == &base.etag || ***tag != *self.etag();
        for tag in base.tags().rev().filter(is_earlier) {
            self.differences().set(tag, from(tag));
        }
        match &compared {
            Err(reason) => Err(*reason),
            Ok(_) => from(&base.etag).ok_or(NoDelta::Data),
        }
    }

    /// What an OPA needs that runs the version with this entity tag, without quotes and `W/`; `None` if that is the
    /// whole bundle.
    pub fn from_base(&self, base: &str) -> Option<FromBase> {
        match self.differences().get(base)? {
            Comparison::Ended(difference) => difference,
            Comparison::Possible | Comparison::Requested => None,
        }
    }

    /// Whether an OPA that runs the version with this entity tag has what this version has.
    pub fn is_same_as(&self, base: &str) -> bool {
        matches!(self.from_base(base), Some(FromBase::Nothing))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, Instant};

    use super::{super::snapshot, *};
    use crate::oci::NewBlob;

    #[test]
    fn a_difference_is_known_for_the_version_that_was_compared() {
        let [base, target] = [1, 2].map(snapshot);
        let limits = DeltaLimits {
            memory: 1 << 20,
            deadline: Instant::now() + Duration::from_secs(60),
            ratio: 10.0,
        };
        let bare = opaque_tag(base.etag());
        assert!(target.from_base(bare).is_none());
        let compared = target.compare_with(&base.base_version(), &limits, NewBlob::system_space());
        match compared {
            Ok(FromBase::Delta(delta)) => {
                assert_eq!(delta.base(), base.etag());
                assert!(matches!(target.from_base(bare), Some(FromBase::Delta(_))));
            }
            // The fixture's versions differ in their revision alone.
            compared => assert_eq!(compared.err(), Some(NoDelta::ManifestOnly)),
        }
        assert!(base.from_base(opaque_tag(target.etag())).is_none());
        let again = base.compare_with(&base.base_version(), &limits, NewBlob::system_space());
        assert!(matches!(again, Ok(FromBase::Nothing)));
        assert!(base.is_same_as(bare) && !target.is_same_as(bare));
        // A version that is the same as one before it is known by both tags.
        let twin = BaseVersion {
            same: vec!["\"before\"".into()],
            ..base.base_version()
        };
        let compared = target.compare_with(&twin, &limits, NewBlob::system_space());
        assert!(target.was_compared_with(&twin));
        assert_eq!(target.from_base("before").is_some(), compared.is_ok());
        let of_before = base.compare_with(&twin, &limits, NewBlob::system_space());
        assert!(matches!(of_before, Ok(FromBase::Nothing)) && base.is_same_as("before"));
        assert_eq!(base.base_version().same.len(), 2);
        // A later verification of the same bytes knows it, too.
        let reverified = base.reverified(base.manifest().clone(), base.record().clone());
        let reverified = reverified.unwrap();
        assert!(reverified.is_same_as(bare) && reverified.shares_comparisons_with(&base));
        // So does the same layer of another artifact.
        let again = snapshot(1);
        assert!(!again.is_same_as(bare) && !again.shares_comparisons_with(&base));
        again.continue_comparisons_of(&target);
        assert!(!again.is_same_as("before"), "it has other bytes");
        again.continue_comparisons_of(&base);
        assert!(again.is_same_as(bare) && again.is_same_as("before"));
    }

    /// Polls a future once; `None` if it waits.
    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn a_comparison_is_requested_once_and_its_end_wakes_all_waiting_requests() {
        let [base, target] = [1, 2].map(snapshot);
        let bare = opaque_tag(base.etag());
        let mut requested = pin!(target.next_request());
        assert_eq!(poll(requested.as_mut()), None);
        // A version that is not in the history is not waited for.
        assert_eq!(poll(pin!(target.request_comparison(bare))), Some(()));
        target.allow_comparisons_with(&[base.base_version()]);
        assert!(target.can_be_compared(bare) && !target.was_compared_with(&base.base_version()));
        assert_eq!(poll(requested.as_mut()), None, "no client has requested it");
        let (mut one, mut other) = (
            pin!(target.request_comparison(bare)),
            pin!(target.request_comparison(bare)),
        );
        assert_eq!((poll(one.as_mut()), poll(other.as_mut())), (None, None));
        let tag = poll(requested.as_mut()).unwrap();
        assert_eq!(&*tag, base.etag());
        // The request stays if the worker is dropped: the clients still wait.
        assert_eq!(poll(pin!(target.next_request())), Some(Arc::clone(&tag)));
        target.end_comparison(&tag);
        assert_eq!(
            (poll(one.as_mut()), poll(other.as_mut())),
            (Some(()), Some(()))
        );
        assert!(target.from_base(bare).is_none() && !target.can_be_compared(bare));
        assert_eq!(poll(pin!(target.next_request())), None);
        target.allow_comparisons_with(&[base.base_version(), target.base_version()]);
        assert!(!target.can_be_compared(bare), "it has ended");
        assert!(!target.can_be_compared(opaque_tag(target.etag())));
    }

    #[test]
    fn of_many_versions_that_are_the_same_the_last_ones_are_known() {
        let version = snapshot(1);
        let tag = |number: usize| -> Arc<str> { format!("\"{number}\"").into() };
        let earlier = BaseVersion {
            etag: tag(99),
            same: (0..99).rev().map(tag).collect(),
            ..version.base_version()
        };
        let limits = DeltaLimits {
            memory: 1 << 20,
            deadline: Instant::now() + Duration::from_secs(60),
            ratio: 0.5,
        };
        let compared = version.compare_with(&earlier, &limits, NewBlob::system_space());
        assert!(matches!(compared, Ok(FromBase::Nothing)));
        let last: Vec<_> = (0..100).rev().take(MAX_SAME).map(tag).collect();
        assert_eq!(version.base_version().same, last);
    }

    #[test]
    fn no_client_waits_for_a_comparison_that_has_failed_before() {
        let [base, target] = [1, 2].map(snapshot);
        let base = base.base_version();
        let limits = DeltaLimits {
            memory: 1,
            deadline: Instant::now() + Duration::from_secs(60),
            ratio: 0.5,
        };
        target.allow_comparisons_with(std::slice::from_ref(&base));
        let compared = target.compare_with(&base, &limits, NewBlob::system_space());
        assert_eq!(compared.err(), Some(NoDelta::Memory));
        assert!(target.was_compared_with(&base));
        assert!(!target.can_be_compared(opaque_tag(base.etag())));
    }

    #[test]
    fn no_client_waits_for_a_comparison_that_will_not_be_made() {
        let [base, target] = [1, 2].map(snapshot);
        let bare = opaque_tag(base.etag());
        target.allow_comparisons_with(&[base.base_version()]);
        let mut waiting = pin!(target.request_comparison(bare));
        assert_eq!(poll(waiting.as_mut()), None);
        target.end_comparisons();
        assert_eq!(poll(waiting), Some(()));
        assert!(!target.can_be_compared(bare) && !target.was_compared_with(&base.base_version()));
    }

    #[test]
    fn a_client_of_a_version_that_is_the_same_as_an_earlier_one_can_request_its_comparison() {
        let [base, target] = [1, 2].map(snapshot);
        let twin = BaseVersion {
            same: vec!["\"before\"".into()],
            ..base.base_version()
        };
        target.allow_comparisons_with(std::slice::from_ref(&twin));
        assert!(target.can_be_compared("before") && twin.has_tag("\"before\""));
        assert!(!twin.has_tag("before") && !twin.has_tag(target.etag()));
    }
}
