//! What a listener does with a request: it is answered at once, or later.

use std::{pin::Pin, sync::Arc};

use hyper::{Request, Response};

use super::{
    bundle_api::BundleApi, connection::Peer, request_body::RequestBody, response_body::ResponseBody,
};

/// An answer that is ready, or the future of one. A request that is answered at once needs no
/// allocation and no task.
pub(super) enum Answer<T> {
    Now(T),
    Later(Pin<Box<dyn Future<Output = T> + Send>>),
}

/// Answers the requests of a listener.
pub(super) trait Service: Send + Sync + 'static {
    /// Answers a request. The future is cancel-safe: it is dropped when the client leaves.
    fn answer(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        peer: &Peer,
    ) -> Answer<Response<ResponseBody>>;

    /// The bundle API, whose plain requests take the fast path.
    fn bundle_api(self: &Arc<Self>) -> Option<&Arc<BundleApi>>;
}

/// A closure that answers each request.
#[cfg(test)]
impl<F> Service for F
where
    F: Fn(Request<RequestBody>, &Peer) -> Answer<Response<ResponseBody>> + Send + Sync + 'static,
{
    fn answer(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        peer: &Peer,
    ) -> Answer<Response<ResponseBody>> {
        self(request, peer)
    }

    fn bundle_api(self: &Arc<Self>) -> Option<&Arc<BundleApi>> {
        None
    }
}

impl<T: 'static> Answer<T> {
    pub(super) fn later(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self::Later(Box::pin(future))
    }

    /// The answer, once it is ready.
    pub(super) async fn get(self) -> T {
        match self {
            Self::Now(answer) => answer,
            Self::Later(answer) => answer.await,
        }
    }

    /// Applies `map` to the answer, now or later.
    pub(super) fn map<U>(self, map: impl FnOnce(T) -> U + Send + 'static) -> Answer<U>
    where
        T: Send,
    {
        match self {
            Self::Now(answer) => Answer::Now(map(answer)),
            Self::Later(answer) => Answer::Later(Box::pin(async move { map(answer.await) })),
        }
    }
}
