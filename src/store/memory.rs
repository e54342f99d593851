//! The memory budget: bytes count for as long as anything refers to them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use prometheus::IntGauge;

/// The memory that blobs may take, cached and published together.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Account>);

#[derive(Debug)]
struct Account {
    limit: AtomicU64,
    used: AtomicU64,
    gauge: IntGauge,
}

/// A part of the budget, released when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    account: Arc<Account>,
    size: u64,
}

impl Budget {
    pub(super) fn new(limit: u64, gauge: IntGauge) -> Self {
        Self(Arc::new(Account {
            limit: AtomicU64::new(limit),
            used: AtomicU64::new(0),
            gauge,
        }))
    }

    /// Replaces the limit. What is reserved beyond a lower one stays until it is released.
    pub(super) fn set_limit(&self, limit: u64) {
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// `None` if the rest of the budget is too small.
    pub(super) fn reserve(&self, size: u64) -> Option<Reservation> {
        let account = &self.0;
        let limit = account.limit.load(Ordering::Relaxed);
        let fits = |used: u64| used.checked_add(size).filter(|after| *after <= limit);
        account
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .ok()?;
        account.gauge.add(size.cast_signed());
        Some(Reservation {
            account: Arc::clone(account),
            size,
        })
    }
}

impl Reservation {
    /// Ties the reservation to the bytes for which it was made.
    pub(super) fn hold(self, bytes: Vec<u8>) -> Bytes {
        struct Held {
            bytes: Box<[u8]>,
            _reservation: Reservation,
        }
        impl AsRef<[u8]> for Held {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        // Boxed, because a vector that grew step by step may have twice the capacity that it needs.
        Bytes::from_owner(Held {
            bytes: bytes.into_boxed_slice(),
            _reservation: self,
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.used.fetch_sub(self.size, Ordering::AcqRel);
        self.account.gauge.sub(self.size.cast_signed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_counts_until_the_last_reference_is_gone() {
        let gauge = IntGauge::new("g", "g").unwrap();
        let budget = Budget::new(10, gauge.clone());
        let bytes = budget.reserve(8).unwrap().hold(vec![0; 8]);
        let slice = bytes.slice(2..3);
        drop(bytes);
        assert!(budget.reserve(3).is_none(), "a slice still holds the whole");
        assert_eq!(gauge.get(), 8);
        drop(slice);
        assert_eq!(gauge.get(), 0);
        assert!(budget.reserve(10).is_some());
        assert!(budget.reserve(u64::MAX).is_none());
        let held = budget.reserve(10);
        budget.set_limit(5);
        assert!(budget.reserve(1).is_none());
        drop(held);
        assert!(budget.reserve(6).is_none() && budget.reserve(5).is_some());
    }
}
