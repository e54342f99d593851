//! How a version differs from earlier ones: the deltas that OPAs get which run one of those.

use std::sync::{Arc, Mutex, PoisonError};

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
    base: String,
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
/// what an OPA needs that runs it.
#[derive(Debug, Default)]
pub(super) struct Differences(Mutex<Vec<(String, FromBase)>>);

impl Differences {
    fn get(&self, base: &str) -> Option<FromBase> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|(tag, _)| opaque_tag(tag) == base);
        found.map(|(_, difference)| difference.clone())
    }

    fn add(&self, base: &str, difference: FromBase) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(tag, _)| tag != base);
        known.push((base.to_owned(), difference));
    }
}

impl Snapshot {
    /// What is kept of this version for later ones to be compared with it.
    pub fn base_version(&self) -> BaseVersion {
        BaseVersion {
            bundle: self.bundle().without_copy(),
            etag: self.etag().into(),
        }
    }

    /// Whether it was compared with an earlier version, and how it differs is known.
    pub fn was_compared_with(&self, base: &BaseVersion) -> bool {
        self.from_base(opaque_tag(base.etag())).is_some()
    }

    /// Compares this version with an earlier one, so that [`Self::from_base`] knows the difference. Blocks; see
    /// [`Difference::between`].
    ///
    /// # Errors
    /// Why OPAs that run the earlier version need the whole bundle.
    pub fn compare_with(
        &self,
        base: &BaseVersion,
        limits: &DeltaLimits,
        space: Arc<dyn BlobSpace>,
    ) -> Result<FromBase, NoDelta> {
        let base_tag = base.etag().to_owned();
        let difference = Difference::between(&base.bundle, self.bundle(), limits, space)?;
        let difference = match difference {
            Difference::None => FromBase::Nothing,
            Difference::Delta(blob) => FromBase::Delta(Arc::new(Delta {
                blob,
                base: base_tag.clone(),
            })),
        };
        self.differences().add(&base_tag, difference.clone());
        Ok(difference)
    }

    /// What an OPA needs that runs the version with this entity tag, without quotes and `W/`; `None` if that is the
    /// whole bundle.
    pub fn from_base(&self, base: &str) -> Option<FromBase> {
        self.differences().get(base)
    }

    /// Whether an OPA that runs the version with this entity tag has what this version has.
    pub fn is_same_as(&self, base: &str) -> bool {
        matches!(self.from_base(base), Some(FromBase::Nothing))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

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
        // A later verification of the same bytes knows it, too.
        let reverified = base.reverified(base.manifest().clone(), base.record().clone());
        assert!(reverified.unwrap().is_same_as(bare));
    }
}
