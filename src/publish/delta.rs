//! How a version differs from earlier ones: the deltas that OPAs get which run one of those.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Snapshot, tag_hash::opaque_tag};
use crate::{
    bundle::{Bundle, DeltaLimits, Difference, NoDelta},
    oci::{Blob, BlobSpace},
};

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
    /// The entity tags of versions before it that are the same for OPA, and that clients keep.
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
}

/// What an OPA needs that runs an earlier version.
#[derive(Debug, Clone)]
pub enum FromBase {
    /// Nothing: for OPA the two versions are the same.
    Nothing,
    /// This delta, or the whole bundle.
    Delta(Arc<Delta>),
}

/// The differences of a version from earlier ones, as far as they are known: the entity tag of the earlier one, and
/// what an OPA needs that runs it; `None` for the whole bundle.
#[derive(Debug, Default)]
pub(super) struct Differences(Mutex<Vec<(Arc<str>, Option<FromBase>)>>);

impl Differences {
    fn get(&self, base: &str) -> Option<Option<FromBase>> {
        let known = self.lock();
        let found = known.iter().find(|(tag, _)| opaque_tag(tag) == base);
        found.map(|(_, difference)| difference.clone())
    }

    fn set(&self, base: &Arc<str>, difference: Option<FromBase>) {
        let mut known = self.lock();
        known.retain(|(tag, _)| tag != base);
        known.push((Arc::clone(base), difference));
    }

    /// The tags of versions that are the same for OPA.
    fn same(&self) -> Vec<Arc<str>> {
        let known = self.lock();
        let same = known
            .iter()
            .filter(|(_, difference)| matches!(difference, Some(FromBase::Nothing)));
        same.map(|(tag, _)| Arc::clone(tag)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Arc<str>, Option<FromBase>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Whether it was compared with an earlier version, with a result that will not change.
    pub fn was_compared_with(&self, base: &BaseVersion) -> bool {
        self.differences().get(opaque_tag(base.etag())).is_some()
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
        if !matches!(compared, Err(reason) if reason.may_pass()) {
            let others = base.same.iter().filter(|tag| ***tag != *self.etag());
            for tag in [&base.etag].into_iter().chain(others) {
                self.differences().set(tag, from(tag));
            }
        }
        match &compared {
            Err(reason) => Err(*reason),
            Ok(_) => from(&base.etag).ok_or(NoDelta::Data),
        }
    }

    /// What an OPA needs that runs the version with this entity tag, without quotes and `W/`; `None` if that is the
    /// whole bundle.
    pub fn from_base(&self, base: &str) -> Option<FromBase> {
        self.differences().get(base).flatten()
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
        assert!(reverified.unwrap().is_same_as(bare));
    }
}
