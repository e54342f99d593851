//! How far a response was sent: for the access log, and for the fleet view, where a version counts once
//! its client has all of it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::{Buf, Bytes};
use hyper::Response;

use super::{access_log::AccessRecord, response_body::ResponseBody};
use crate::{fleet::Offer, telemetry};

/// The size of a response that has not begun.
const NOT_BEGUN: u64 = u64::MAX;

/// A response that is being sent. What became of it is recorded when this is dropped.
#[derive(Debug)]
pub(super) struct Delivery {
    access: Option<Arc<AccessRecord>>,
    offer: Option<Offer>,
    /// The size of the body, or [`NOT_BEGUN`].
    size: AtomicU64,
    /// Bytes of the body that the socket has taken.
    sent: AtomicU64,
}

/// Bytes of a body, which are counted as they are sent.
#[derive(Debug)]
pub(super) struct BodyBytes {
    bytes: Bytes,
    delivery: Option<Arc<Delivery>>,
}

impl Delivery {
    /// A response that has not begun: what the access log has of its request, and the version that is
    /// sent, if there are such.
    pub(super) fn new(access: Option<Arc<AccessRecord>>, offer: Option<Offer>) -> Self {
        Self {
            access,
            offer,
            size: AtomicU64::new(NOT_BEGUN),
            sent: AtomicU64::new(0),
        }
    }

    /// Records that it begins, with a body of this size.
    pub(super) fn begin(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// Records that the socket has taken bytes of the body.
    pub(super) fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// For several owners; `None` if nothing is to be recorded.
    pub(super) fn shared(self) -> Option<Arc<Self>> {
        self.is_recorded().then(|| Arc::new(self))
    }

    /// Attaches it to a response.
    pub(super) fn attach(self, response: &mut Response<ResponseBody>) {
        if let Some(delivery) = self.shared() {
            response.extensions_mut().insert(delivery);
        }
    }

    /// Takes it out of a response whose headers are complete, and which is sent next.
    pub(super) fn take(response: &mut Response<ResponseBody>) -> Option<Arc<Self>> {
        let delivery = response.extensions_mut().remove::<Arc<Self>>()?;
        delivery.begin(response.body().size());
        Some(delivery)
    }

    fn is_recorded(&self) -> bool {
        self.access.is_some() || self.offer.is_some()
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.is_recorded() {
            return;
        }
        let (size, sent) = (*self.size.get_mut(), *self.sent.get_mut());
        if size == NOT_BEGUN {
            return;
        }
        if let Some(access) = &self.access {
            access.set_sent(sent, size);
        }
        if let Some(offer) = &self.offer
            && sent >= size
        {
            offer.complete(telemetry::now_millis());
        }
    }
}

impl BodyBytes {
    pub(super) fn new(bytes: Bytes, delivery: Option<Arc<Delivery>>) -> Self {
        Self { bytes, delivery }
    }
}

impl Buf for BodyBytes {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(delivery) = &self.delivery {
            delivery.add_sent(count);
        }
    }
}
