//! The reply to a request for a bundle, before it is written in the form of a protocol.

use std::{sync::Arc, time::Duration};

use hyper::{
    Response, StatusCode,
    header::{HeaderName, HeaderValue},
};

use super::{response, response_body::ResponseBody};
use crate::{
    oci::Blob,
    publish::{Delta, Snapshot},
    rollout::Variant,
};

/// The header that says which version of a bundle a response has, where versions are rolled out in steps.
pub(super) const ROLLOUT: HeaderName = HeaderName::from_static("bundlegate-rollout");

/// The reply to a request for a bundle.
pub(super) enum Reply {
    /// 304 with the entity tag that was compared.
    NotModified {
        snapshot: Arc<Snapshot>,
        /// Which version it is, where versions are rolled out in steps.
        variant: Option<Variant>,
    },
    /// 200.
    Bundle {
        snapshot: Arc<Snapshot>,
        /// Whether the content type is that of a bundle service, which promises long polling.
        promises_long_polling: bool,
        /// As above.
        variant: Option<Variant>,
        /// What is sent instead of the whole bundle.
        delta: Option<Arc<Delta>>,
    },
    Other(Response<ResponseBody>),
}

impl Reply {
    /// The reply with status 200. The content type does not promise long polling to an OPA that would take it for a
    /// reason to poll without pause.
    pub(super) fn bundle(
        snapshot: Arc<Snapshot>,
        wait: Option<Duration>,
        predates_long_polling: bool,
    ) -> Self {
        Self::Bundle {
            snapshot,
            promises_long_polling: wait.is_some() || !predates_long_polling,
            variant: None,
            delta: None,
        }
    }

    /// 304 with this version.
    pub(super) fn not_modified(snapshot: Arc<Snapshot>) -> Self {
        Self::NotModified {
            snapshot,
            variant: None,
        }
    }

    /// The same reply, with the header that says which version it is.
    pub(super) fn with_variant(mut self, of_reply: Variant) -> Self {
        if let Self::NotModified { variant, .. } | Self::Bundle { variant, .. } = &mut self {
            *variant = Some(of_reply);
        }
        self
    }

    /// The same reply, with a delta instead of the whole bundle.
    pub(super) fn with_delta(mut self, of_reply: Arc<Delta>) -> Self {
        if let Self::Bundle { delta, .. } = &mut self {
            *delta = Some(of_reply);
        }
        self
    }

    /// The bytes of a bundle that are sent, if there are any.
    pub(super) fn bytes(&self) -> Option<&Blob> {
        match self {
            Self::Bundle {
                delta: Some(delta), ..
            } => Some(delta.bytes()),
            Self::Bundle { snapshot, .. } => Some(snapshot.content().bytes()),
            Self::NotModified { .. } | Self::Other(_) => None,
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NotModified { .. } => StatusCode::NOT_MODIFIED,
            Self::Bundle { .. } => StatusCode::OK,
            Self::Other(response) => response.status(),
        }
    }

    pub(super) fn into_response(self) -> Response<ResponseBody> {
        let (mut response, variant) = match self {
            Self::NotModified { snapshot, variant } => (response::not_modified(&snapshot), variant),
            Self::Bundle {
                snapshot,
                promises_long_polling,
                variant,
                delta,
            } => {
                let content_type = HeaderValue::from_static("application/gzip");
                let content_type = (!promises_long_polling).then_some(content_type);
                let response = response::bundle(&snapshot, delta.as_deref(), content_type);
                (response, variant)
            }
            Self::Other(response) => (response, None),
        };
        if let Some(variant) = variant {
            let value = HeaderValue::from_static(variant.label());
            response.headers_mut().insert(ROLLOUT, value);
        }
        response
    }
}

impl From<Response<ResponseBody>> for Reply {
    fn from(response: Response<ResponseBody>) -> Self {
        Self::Other(response)
    }
}
