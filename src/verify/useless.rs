//! Referrers without signature material, so that a refused version with thousands of them costs
//! their requests once and not at each check.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::oci::Digest;

/// The most digests that are remembered for one bundle.
const MAX_REMEMBERED: usize = 8192;

/// The digests of referrers whose bytes hold no signature in any format. That is a property of the
/// bytes, so it holds for every artifact, policy and time.
#[derive(Debug, Default)]
pub struct UselessReferrers {
    digests: Mutex<HashSet<Digest>>,
}

impl UselessReferrers {
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.lock().contains(digest)
    }

    /// Remembers a digest, and forgets the others where there are too many.
    pub(super) fn insert(&self, digest: Digest) {
        let mut digests = self.lock();
        if digests.len() >= MAX_REMEMBERED {
            digests.clear();
        }
        digests.insert(digest);
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_number_of_digests_is_remembered() {
        let useless = UselessReferrers::default();
        for number in 0..=MAX_REMEMBERED {
            useless.insert(Digest::sha256(number.to_string().as_bytes()));
        }
        assert_eq!(useless.lock().len(), 1);
        let last = Digest::sha256(MAX_REMEMBERED.to_string().as_bytes());
        assert!(useless.contains(&last) && !useless.contains(&Digest::sha256(b"0")));
    }
}
