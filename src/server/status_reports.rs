//! OPA's Status API: `POST /status` and `POST /status/PARTITION` of the data listener.
//!
//! A report is answered at once, and nothing else waits for it: OPA 0.70 polls its bundles late while it
//! waits for an answer. It is a hint about a client, which never changes what the client gets.

use std::{net::IpAddr, sync::Arc, time::Duration};

use hyper::{Request, Response, StatusCode};

use super::{
    bundle_api::BundleApi,
    clients::{AccessDecision, Caller, Clients},
    connection::Peer,
    credential_checks::Identification,
    fleet_recorder::identity_of,
    report_limit::ReportLimit,
    request_body::{BodyError, RequestBody},
    request_head::{ReadMethod, RequestHead},
    response,
    response_body::ResponseBody,
};
use crate::{
    fleet::{
        Client, ClientBundle, ClientError, ClientKey, Fleet, Polled, Report, ReportError,
        ReportedError, match_bundles,
    },
    telemetry::now_millis,
};

/// The path, which may have a partition below it.
const PATH: &str = "/status";
/// The bytes of a report that are kept: those before the metrics, which are most of it.
const KEPT_BYTES: usize = 128 << 10;
/// For a report to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest report that is read though its client may not send one, and the time for it.
const DISCARDED_BYTES: usize = 128 << 10;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Receives status reports.
#[derive(Debug)]
pub(super) struct StatusReports {
    fleet: Fleet,
    limit: ReportLimit,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReportOutcome {
    /// Its client, and one of its bundles, is known.
    Accepted,
    /// Its client has not asked for a bundle here, or for none that the report is about.
    Unmatched,
    /// It exceeds `fleet.status.limit`, or its part before the metrics the bytes that are kept.
    Oversized,
    /// It is not what OPA sends.
    Malformed,
    /// It did not arrive in time, or the connection broke.
    Incomplete,
    /// It was not read, because there were too many.
    Dropped,
}

/// The client of a report.
struct Reporter {
    caller: Caller,
    key: ClientKey,
}

impl ReportOutcome {
    pub(super) const ALL: [Self; 6] = [
        Self::Accepted,
        Self::Unmatched,
        Self::Oversized,
        Self::Malformed,
        Self::Incomplete,
        Self::Dropped,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Unmatched => "unmatched",
            Self::Oversized => "oversized",
            Self::Malformed => "malformed",
            Self::Incomplete => "incomplete",
            Self::Dropped => "dropped",
        }
    }
}

impl StatusReports {
    /// `None` if the options turn them off.
    pub(super) fn new(fleet: &Fleet) -> Option<Self> {
        fleet.options.accept_status.then(|| Self {
            limit: ReportLimit::new(fleet.options.status_rate),
            fleet: fleet.clone(),
        })
    }

    /// Whether a POST to this path is a report.
    pub(super) fn is_at(path: &str) -> bool {
        path.strip_prefix(PATH)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Reads a report of a client that may send one.
    async fn receive(
        &self,
        reporter: &Reporter,
        clients: &Clients,
        body: RequestBody,
    ) -> (ReportOutcome, Response<ResponseBody>) {
        let Some(_permit) = self.limit.admit() else {
            // OPA takes this answer though its report was not read.
            return (ReportOutcome::Dropped, no_content());
        };
        let limit = usize::try_from(self.fleet.options.status_limit).unwrap_or(usize::MAX);
        let prefix = match body.read_prefix(KEPT_BYTES, limit, BODY_TIMEOUT).await {
            Ok(prefix) => prefix,
            Err(error) => {
                let outcome = match error {
                    BodyError::TooLarge => ReportOutcome::Oversized,
                    BodyError::TimedOut | BodyError::Broken => ReportOutcome::Incomplete,
                };
                return (outcome, response::unreadable_body(error, limit));
            }
        };
        match Report::parse(&prefix.bytes, prefix.is_cut) {
            Ok(report) => (self.record(reporter, clients, report), no_content()),
            Err(error) => refused(&error),
        }
    }

    /// Reads a report that is refused, so that its client gets the refusal: most clients report a closed
    /// connection instead if they are still sending.
    async fn discard(&self, body: RequestBody) {
        if let Some(_permit) = self.limit.admit() {
            // The refusal is sent in any case.
            let _ = body.read_prefix(0, DISCARDED_BYTES, DISCARD_TIMEOUT).await;
        }
    }

    /// Records a report.
    fn record(&self, reporter: &Reporter, clients: &Clients, report: Report) -> ReportOutcome {
        let Some(client) = self.fleet.table.record_opa(reporter.key, report.opa) else {
            return ReportOutcome::Unmatched;
        };
        let readable = readable_bundles(&client, clients, &reporter.caller);
        let versions: Vec<_> = readable
            .iter()
            .map(|one| {
                let runs = one.facts(0).runs;
                runs.and_then(|tag| one.bundle().get(tag))
            })
            .collect();
        let polled = readable.iter().zip(&versions).map(|(one, version)| Polled {
            name: one.bundle().name(),
            revision: version
                .as_ref()
                .and_then(|version| version.revision.as_deref()),
            size: version.as_ref().and_then(|version| version.size),
        });
        let matched = match_bundles(&report.bundles, &polled.collect::<Vec<_>>());
        let mut outcome = ReportOutcome::Unmatched;
        for (report, index) in report.bundles.iter().zip(matched) {
            let Some(client_bundle) = index.and_then(|index| readable.get(index)) else {
                continue;
            };
            outcome = ReportOutcome::Accepted;
            // A response with an error is no version that can't be activated.
            if let (Some(error), None) = (&report.error, &report.http_code) {
                self.record_error(client_bundle, error);
            }
        }
        outcome
    }

    fn record_error(&self, client_bundle: &Arc<ClientBundle>, error: &ReportedError) {
        let recorded = ClientError::new(error.code.clone(), error.message.clone(), now_millis());
        if self.fleet.table.record_error(client_bundle, recorded) {
            let (bundle, client) = (&**client_bundle.bundle().name(), client_bundle.client());
            let (code, message) = (&*error.code, &*error.message);
            tracing::debug!(bundle, %client, code, message, "a client reports an error");
        }
    }
}

/// What a client runs of the bundles that it may read now.
fn readable_bundles(client: &Client, clients: &Clients, caller: &Caller) -> Vec<Arc<ClientBundle>> {
    let mut bundles = client.bundles();
    bundles.retain(|one| clients.authorize(caller, one.bundle().name()) == AccessDecision::Granted);
    bundles
}

fn refused(error: &ReportError) -> (ReportOutcome, Response<ResponseBody>) {
    let (outcome, status, reason) = match error {
        ReportError::TooLong => (
            ReportOutcome::Oversized,
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
        ),
        ReportError::Malformed(_) => (
            ReportOutcome::Malformed,
            StatusCode::BAD_REQUEST,
            "malformed",
        ),
    };
    (
        outcome,
        response::error(status, reason, &error.to_string(), None),
    )
}

fn no_content() -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

impl BundleApi {
    /// Answers a status report.
    pub(super) async fn receive_report(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> Response<ResponseBody> {
        let Some(reports) = &self.reports else {
            let message = "status reports are not accepted here";
            return response::error(StatusCode::NOT_FOUND, "not_found", message, None);
        };
        let identity = self.identity_header();
        let head = RequestHead::with_method(&request, ReadMethod::Get, identity);
        let address = self.client_address(&head, &peer);
        let clients = self.clients.current();
        let credential = match self.checks.identify(&clients, head.authorization) {
            Identification::Known(credential) => credential,
            Identification::Pending(check) => {
                // A request that waits counts against the limit of held requests.
                let Some(_hold) = peer.slot.begin_hold() else {
                    return response::unavailable(None);
                };
                match self.checks.run(check, &self.clients, address).await {
                    Ok(credential) => credential,
                    Err(_) => {
                        self.refusals.too_many_attempts(address);
                        return response::too_many_attempts();
                    }
                }
            }
        };
        let caller = Caller {
            credential,
            certificate: peer.certificate.clone(),
        };
        if let Some(refused) = self.refuse_report(&clients, &caller, address) {
            reports.discard(request.into_body()).await;
            return refused;
        }
        let identity = identity_of(&clients, &caller, head.identity, address);
        let key = identity.key();
        let reporter = Reporter { caller, key };
        let body = request.into_body();
        let (outcome, response) = reports.receive(&reporter, &clients, body).await;
        self.metrics.count_report(outcome);
        response
    }

    /// The response to a client that may read no bundle.
    fn refuse_report(
        &self,
        clients: &Clients,
        caller: &Caller,
        address: IpAddr,
    ) -> Option<Response<ResponseBody>> {
        match clients.authorize_report(caller) {
            AccessDecision::Granted => None,
            AccessDecision::Hidden { .. } => Some(response::not_found()),
            AccessDecision::Unauthorized(reason) => {
                self.metrics.count_unauthorized(reason.label());
                self.refusals.unauthorized(reason, PATH, address);
                Some(response::unauthorized(reason, clients.kinds()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_a_path_of_its_own_or_a_partition() {
        for (path, is_report) in [
            ("/status", true),
            ("/status/", true),
            ("/status/eu/shop", true),
            ("/statuses", false),
            ("/", false),
            ("/bundles/status", false),
        ] {
            assert_eq!(StatusReports::is_at(path), is_report, "{path}");
        }
    }
}
