//! The bundle API: which answer, and when.

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{ALLOW, AUTHORIZATION, HeaderValue, USER_AGENT, WWW_AUTHENTICATE},
};
use percent_encoding::percent_decode_str;
use tokio::time::{Instant, sleep_until};

use super::{
    LongPoll,
    clients::{Access, Credential, LiveClients},
    conditional::Tags,
    connection::Caller,
    content::Content,
    drain::Leaving,
    idle::Seat,
    prefer,
    proxies::TrustedProxies,
    respond,
    survey::{Survey, Who},
};
use crate::{
    catalog::{self, Catalog, Entry},
    metrics::{InFlight, Metrics},
    watch::{Handle, Offer, Runs, Seen, Snapshot, State, Withdrawal},
};

/// Before somebody who runs something else gets the fallback. That the bundle is withdrawn is a
/// decision of this replica, about which no registry can be asked; where another one has decided
/// otherwise, a client that comes by both must not go back and forth thousands of times a second.
const HESITATION: Duration = Duration::from_millis(500);

/// Everything that a bundle request needs.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) catalog: Catalog,
    pub(super) clients: LiveClients,
    pub(super) proxies: TrustedProxies,
    pub(super) metrics: Metrics,
    pub(super) long_poll: LongPoll,
    pub(super) leaving: Leaving,
    pub(super) survey: Survey,
}

/// What a client wants to know: all that is kept of its request while it is held.
struct Question {
    tags: Tags,
    wait: Option<Duration>,
    who: Who,
    predates_long_polling: bool,
    is_head: bool,
    seat: Arc<Seat>,
}

/// What a request is about.
enum Route {
    /// It can be answered as it is.
    Answered(Response<Content>),
    Bundle(Arc<Entry>, Question),
}

enum Answer {
    Bundle(Arc<Snapshot>),
    NotModified(Arc<Snapshot>),
    Absent {
        reason: &'static str,
        message: String,
    },
    /// It would have to be held, and too many are.
    Unavailable,
    /// The bundle was removed while the request was held.
    Removed,
}

impl Api {
    /// Answers a request of the data listener.
    pub(super) async fn answer(&self, request: Request<()>, caller: Caller) -> Response<Content> {
        let (response, entry) = match self.route(request, caller) {
            Route::Answered(response) => (response, None),
            Route::Bundle(mut entry, question) => match self.serve(&mut entry, question).await {
                Some(response) => (response, Some(entry)),
                None => (not_found(), None),
            },
        };
        // Nothing is told of a bundle to whom it is hidden, and nothing counted for it.
        let is_hidden = response.status() == StatusCode::UNAUTHORIZED;
        let bundle = entry.as_ref().filter(|_| !is_hidden).map_or("other", |entry| entry.name());
        self.metrics.http_requests.with_label_values(&[bundle, response.status().as_str()]).inc();
        response
    }

    /// The request itself ends here: its headers are not kept while it is held.
    fn route(&self, request: Request<()>, caller: Caller) -> Route {
        if caller.is_too_many {
            return Route::Answered(respond::unavailable(None));
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let message = "bundles are read with GET or HEAD";
            let mut response = respond::error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message, None);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Route::Answered(response);
        }
        let Some(resource) = resource(request.uri().path()) else {
            let message = "the path is not percent-encoded UTF-8";
            return Route::Answered(respond::error(StatusCode::BAD_REQUEST, "bad_request", message, None));
        };
        let found = self.catalog.find(&resource);
        let name = found.as_ref().map_or_else(|| catalog::bundle_name(&resource), |entry| entry.name());
        let headers = request.headers();
        let credential = Credential::of(headers.get(AUTHORIZATION).map(HeaderValue::as_bytes));
        match (self.refusal(credential, name), found) {
            (Some(refusal), _) => Route::Answered(refusal),
            (None, None) => Route::Answered(not_found()),
            (None, Some(entry)) => {
                let question = Question {
                    tags: Tags::of(headers),
                    wait: prefer::wait(headers),
                    who: Who {
                        address: self.proxies.client(caller.address, headers),
                        credential,
                        agent: agent(headers),
                    },
                    predates_long_polling: predates_long_polling(headers),
                    is_head: request.method() == Method::HEAD,
                    seat: caller.seat,
                };
                Route::Bundle(entry, question)
            }
        }
    }

    /// What whoever may not have a bundle gets instead.
    fn refusal(&self, credential: Credential, name: &str) -> Option<Response<Content>> {
        match self.clients.now().access(credential, name) {
            Access::Granted => None,
            Access::Hidden => Some(not_found()),
            Access::Unauthorized => Some(unauthorized()),
        }
    }

    /// `None` when the bundle has been removed; `entry` is then the last one.
    async fn serve(&self, entry: &mut Arc<Entry>, question: Question) -> Option<Response<Content>> {
        let answer = self.settle(entry, &question).await;
        // A token may have been taken away while its request was held.
        if let Some(refusal) = self.refusal(question.who.credential, entry.name()) {
            return Some(refusal);
        }
        Some(match answer {
            Answer::NotModified(snapshot) => respond::not_modified(&snapshot),
            Answer::Absent { reason, message } => {
                respond::error(StatusCode::NOT_FOUND, reason, &message, Some(entry.name()))
            }
            Answer::Unavailable => respond::unavailable(Some(entry.name())),
            Answer::Removed => return None,
            Answer::Bundle(snapshot) => {
                let plain = question.wait.is_none() && question.predates_long_polling;
                let content_type = plain.then(|| HeaderValue::from_static("application/gzip"));
                let response = respond::bundle(&snapshot, content_type);
                // HEAD has the same answer at the same time, but for the body.
                if !question.is_head {
                    let sent = self.metrics.sent_bytes.with_label_values(&[entry.name()]);
                    sent.inc_by(snapshot.bundle().blob().size());
                }
                response
            }
        })
    }

    /// Answers at once, or when something changes, or at the deadline. A request that is held while
    /// its bundle is configured anew goes on with the new entry. Cancel-safe.
    async fn settle(&self, entry: &mut Arc<Entry>, question: &Question) -> Answer {
        // During the drain nothing new is held; only a confirming check may take its time.
        let leaving = self.leaving.has_begun();
        let held = question.wait.filter(|_| !leaving).map(|wait| prefer::hold_for(wait, self.long_poll.max_wait));
        let began = Instant::now();
        let deadline = began + held.unwrap_or(self.long_poll.first_wait);
        let waiters = self.metrics.waiters.with_label_values(&[entry.name()]);
        let _waiting = held.map(|_| InFlight::enter(&waiters));
        let let_go = self.leaving.clone().let_go();
        tokio::pin!(let_go);
        let mut view = entry.handle().view();
        let mut counted = None;
        // Whether the registry, or a change just seen, speaks for what we serve.
        let mut confirmed = false;
        let mut place = None;
        loop {
            // Marked as seen before it is compared: a change after this line wakes us.
            let seen = view.seen();
            if let State::Withdrawn(Withdrawal { lost: Some(lost), .. }) = seen.own() {
                let count = || self.survey.count(entry.name(), lost, &question.tags, &question.who);
                counted.get_or_insert_with(count);
            }
            let Offer { state, is_fallback } = question.offered(&seen);
            if let Some(answer) = at_once(&state, question, confirmed) {
                return answer;
            }
            let unsure = !confirmed && disagrees(&state, question);
            if leaving && !unsure {
                return at_deadline(&seen, question, entry.handle());
            }
            // Who can be answered at once needs no place among those who wait.
            if place.is_none() {
                place = question.seat.hold();
            }
            if place.is_none() {
                return Answer::Unavailable;
            }
            let handle = entry.handle();
            tokio::select! {
                changed = view.changed() => match changed {
                    Ok(()) => confirmed = true,
                    // Its watcher has ended, because another one took its place.
                    Err(_) if entry.is_outdated() => {}
                    Err(_) => return at_deadline(&seen, question, handle),
                },
                () = entry.outdated() => {}
                () = handle.confirm(), if unsure && !is_fallback => confirmed = true,
                () = sleep_until(began + HESITATION), if unsure && is_fallback => confirmed = true,
                () = sleep_until(deadline) => return at_deadline(&seen, question, handle),
                () = &mut let_go => return at_deadline(&seen, question, handle),
            }
            if entry.is_outdated() {
                let Some(current) = self.catalog.get(entry.name()) else { return Answer::Removed };
                view = current.handle().view();
                *entry = current;
            }
        }
    }
}

impl Question {
    fn offered(&self, seen: &Seen) -> Offer {
        seen.offer(crate::telemetry::now(), |fallback| {
            if self.tags.is_empty() {
                Runs::Nothing
            } else if self.tags.runs(fallback) {
                Runs::Fallback
            } else {
                Runs::Something
            }
        })
    }
}

/// What can be said without waiting, if anything.
fn at_once(state: &State, question: &Question, confirmed: bool) -> Option<Answer> {
    let patient = question.wait.is_some();
    match state {
        State::Serving(snapshot) if question.tags.runs(snapshot.etag()) => {
            (!patient).then(|| Answer::NotModified(Arc::clone(snapshot)))
        }
        State::Serving(snapshot) => {
            let settled = question.tags.is_empty() || confirmed;
            settled.then(|| Answer::Bundle(Arc::clone(snapshot)))
        }
        State::Withdrawn(withdrawal) => {
            (!patient).then(|| Answer::Absent { reason: "withdrawn", message: withdrawal.reason.to_string() })
        }
        State::Pending => None,
    }
}

/// Whether client and gateway differ, and either may be behind.
fn disagrees(state: &State, question: &Question) -> bool {
    state.snapshot().is_some_and(|snapshot| !question.tags.runs(snapshot.etag()))
}

fn at_deadline(seen: &Seen, question: &Question, handle: &Handle) -> Answer {
    match &question.offered(seen).state {
        State::Serving(snapshot) if question.tags.knows(snapshot.etag()) => Answer::NotModified(Arc::clone(snapshot)),
        State::Serving(snapshot) => Answer::Bundle(Arc::clone(snapshot)),
        State::Withdrawn(withdrawal) => Answer::Absent { reason: "withdrawn", message: withdrawal.reason.to_string() },
        State::Pending => {
            let failure = handle.status().last_failure.map(|failure| failure.message);
            let message = failure.unwrap_or_else(|| "no attempt to fetch it has come to an end yet".to_owned());
            Answer::Absent { reason: "pending", message }
        }
    }
}

/// The path without its first slash, percent-decoded once; `None` when it can't be.
pub(super) fn resource(path: &str) -> Option<Cow<'_, str>> {
    let hex = |escape: &str| escape.len() >= 2 && escape.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    // The decoder would leave a broken escape as it is.
    if !path.split('%').skip(1).all(hex) {
        return None;
    }
    percent_decode_str(path.strip_prefix('/').unwrap_or(path)).decode_utf8().ok()
}

fn not_found() -> Response<Content> {
    respond::error(StatusCode::NOT_FOUND, "not_found", "no such bundle, or not for this client", None)
}

fn unauthorized() -> Response<Content> {
    let message = "send a bearer token that the gateway knows";
    let mut response = respond::error(StatusCode::UNAUTHORIZED, "unauthorized", message, None);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// A hash of what the client calls itself; that two are the same for one who wants it harms nobody.
fn agent(headers: &HeaderMap) -> u64 {
    let mut hasher = DefaultHasher::new();
    headers.get(USER_AGENT).hash(&mut hasher);
    hasher.finish()
}

/// OPA before 0.39 takes the bundle content type as a promise of long polling and, when it
/// did not ask for that, polls without pause.
fn predates_long_polling(headers: &HeaderMap) -> bool {
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
    let minor = agent
        .and_then(|agent| agent.strip_prefix("Open Policy Agent/0."))
        .and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    minor.is_some_and(|minor| minor < 39)
}
