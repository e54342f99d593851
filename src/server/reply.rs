//! The reply to a request for a bundle, before it is written in the form of a protocol.

use std::{sync::Arc, time::Duration};

use hyper::{Response, StatusCode, header::HeaderValue};

use super::{response, response_body::ResponseBody};
use crate::publish::Snapshot;

/// The reply to a request for a bundle.
pub(super) enum Reply {
    /// 304 with the entity tag that was compared.
    NotModified(Arc<Snapshot>),
    /// 200.
    Bundle {
        snapshot: Arc<Snapshot>,
        /// Whether the content type is that of a bundle service, which promises long polling.
        promises_long_polling: bool,
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
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NotModified(_) => StatusCode::NOT_MODIFIED,
            Self::Bundle { .. } => StatusCode::OK,
            Self::Other(response) => response.status(),
        }
    }

    pub(super) fn into_response(self) -> Response<ResponseBody> {
        match self {
            Self::NotModified(snapshot) => response::not_modified(&snapshot),
            Self::Bundle {
                snapshot,
                promises_long_polling,
            } => {
                let content_type = HeaderValue::from_static("application/gzip");
                response::bundle(&snapshot, (!promises_long_polling).then_some(content_type))
            }
            Self::Other(response) => response,
        }
    }
}

impl From<Response<ResponseBody>> for Reply {
    fn from(response: Response<ResponseBody>) -> Self {
        Self::Other(response)
    }
}
