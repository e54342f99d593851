use std::{collections::BTreeMap, sync::Arc};

use super::{
    client_list::{Clients, Row},
    *,
};
use crate::{
    access::CertificateExpiry,
    fleet::{BundleView, ClientDetails, ClientError, ClientState, Facts, OpaInstance, Version},
    oci::Digest,
    publish::{FailureClass, FailureStatus, Status, Step, pending, serving},
    rollout::{
        Cause, EngineState, Phase, Plan, Tally, Transition, Version as PlannedVersion,
        fixture::{idle, version_named as version},
    },
    server::{CertificateInUse, RolloutStatus},
    telemetry::{SENTENCE_BYTES, cut},
};

/// Text that would run a script, end an attribute, load something, or change what is around it.
const HOSTILE: &str = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\" onclick='alert(3)' \
                       \u{202e}gnisrever\u{2066}\u{0}\u{1b}[2J\r\n]]>&lt;b&gt;<!--<style>*{}</style>";

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn bundle(name: &str, status: Status) -> BundleOverview {
    BundleOverview {
        name: name.to_owned(),
        status,
        waiters: 3,
        pattern: None,
        withdrawn: None,
        lost: None,
        fallback: None,
        rollout: None,
    }
}

fn failure(class: FailureClass, message: &str) -> FailureStatus {
    FailureStatus {
        at: now(),
        class,
        step: Step::Verify,
        digest: Some(Digest::sha256(b"refused")),
        below: Arc::default(),
        message: message.to_owned(),
    }
}

fn overview(bundles: Vec<BundleOverview>) -> Overview {
    Overview {
        at: now(),
        since: now(),
        readiness: ReadinessState::Ready,
        cache_problem: None,
        reload: None,
        certificates: Arc::default(),
        trust_roots: BTreeMap::new(),
        bundles,
        webhooks: BTreeMap::new(),
    }
}

fn rendered(overview: &Overview) -> String {
    rendered_with(overview, &listing(Listing::Attention, None))
}

fn rendered_with(overview: &Overview, fleet: &FleetOverview) -> String {
    String::from_utf8(render(overview, fleet).to_vec()).unwrap()
}

fn listing(listing: Listing, clients: Option<Clients>) -> FleetOverview {
    FleetOverview { listing, clients }
}

/// A client that fails, all of whose texts are this one.
fn failing_client(text: &str, has_reported: bool) -> Row {
    let version = Version {
        etag: text.into(),
        manifest: has_reported.then(|| text.into()),
        revision: Some(text.into()),
        size: None,
    };
    let at = u64::try_from(now().as_millisecond()).unwrap();
    let error = ClientError::new(text.into(), text.into(), at);
    let opa = OpaInstance {
        id: Some(text.into()),
        version: Some(text.into()),
        labels: [(text.into(), text.into())].into(),
    };
    let facts = Facts {
        runs: None,
        since: at,
        seen: at,
        is_waiting: false,
        interval: 10_000,
        without_tag: 0,
        offered: None,
        offered_at: 0,
        error_since: 0,
        has_error: has_reported,
        is_shared: true,
    };
    let version = Arc::new(version);
    Row {
        details: Arc::new(ClientDetails {
            name: Some(text.into()),
            credential: Some(text.into()),
            address: [10, 0, 0, 7].into(),
            agent: Some(text.into()),
            opa: has_reported.then(|| Arc::new(opa)),
        }),
        view: BundleView {
            bundle: text.into(),
            state: ClientState::Failing,
            facts,
            runs: Some(Arc::clone(&version)),
            offered: (!has_reported).then_some((version, 2, at)),
            error: has_reported.then_some(error),
            waiting: 3,
        },
    }
}

/// Counts of clients in the order of [`ClientState::ALL`].
fn counted(bundle: &str, states: [u64; 7]) -> Clients {
    let counts = BundleCounts {
        states,
        shared_addresses: 2,
        versions: Vec::new(),
    };
    Clients {
        counts: [(bundle.into(), counts)].into(),
        ..Clients::default()
    }
}

/// The names of the elements of a document, in order, with their attributes.
fn elements(html: &str) -> Vec<String> {
    // What is in the style sheet and the script is no markup.
    let html = html
        .replace(STYLE.as_str(), "")
        .replace(SCRIPT.as_str(), "");
    let tags = html.split('<').skip(1);
    let names = tags.map(|tag| tag.split('>').next().unwrap_or_default());
    // Values of attributes have no `>` and no quotes.
    names
        .map(|tag| tag.split('"').step_by(2).collect::<String>())
        .collect()
}

#[test]
fn hostile_text_changes_no_element_wherever_it_stands() {
    let document = |text: &str| {
        let (_publisher, handle) = serving("authz", 1);
        let mut status = handle.status();
        status.revision = Some(text.to_owned());
        status.etag = Some(text.to_owned());
        status.older = Some(text.to_owned());
        status.policy = text.to_owned();
        status.last_failure = Some(failure(FailureClass::Evidence, text));
        for signer in &mut status.signers {
            signer.authority = text.to_owned();
            signer.identity = text.to_owned();
        }
        let mut served = bundle(text, status);
        served.pattern = Some(text.into());
        let (_publisher, handle) = pending("b");
        let mut withdrawn = bundle("b", handle.status());
        withdrawn.status.state = crate::publish::StateKind::Withdrawn;
        withdrawn.withdrawn = Some(text.into());
        let mut overview = overview(vec![served, withdrawn]);
        overview.cache_problem = Some(text.into());
        overview.reload = Some(Arc::new(ReloadOutcome {
            at: now(),
            refusal: Some(text.to_owned()),
            restart_keys: vec![text.to_owned()],
        }));
        overview.certificates = Arc::new(vec![CertificateInUse {
            key: text.to_owned(),
            expiry: CertificateExpiry {
                subject: text.to_owned(),
                not_before: now(),
                not_after: now(),
            },
        }]);
        let webhook = WebhookStatus {
            kind: "generic",
            listener: "admin",
            path: text.to_owned(),
            authentication: "none",
            events: BTreeMap::new(),
            last_event: None,
            last_refusal: Some((now(), "malformed", text.to_owned())),
        };
        overview.webhooks.insert(text.to_owned(), webhook);
        rendered(&overview)
    };
    let (plain, hostile) = (document("plain"), document(HOSTILE));
    assert!(plain.matches("plain").count() > 15, "{plain}");
    assert_eq!(elements(&plain), elements(&hostile));
    let long = document(&HOSTILE.repeat((1 << 20) / HOSTILE.len()));
    assert_eq!(elements(&plain), elements(&long));
    assert!(
        long.len() < plain.len() + 40 * 6 * SENTENCE_BYTES,
        "{}",
        long.len()
    );
    for document in [&hostile, &long] {
        let body = document
            .replace(STYLE.as_str(), "")
            .replace(SCRIPT.as_str(), "");
        for forbidden in [
            "<script>alert",
            "<img",
            "\u{202e}",
            "\u{2066}",
            "\u{0}",
            "\u{1b}",
            "\r",
        ] {
            assert!(!body.contains(forbidden), "{forbidden:?}");
        }
        assert!(body.contains(r"\u{202e}gnisrever\u{2066}"), "{body}");
    }
    // The same mark as in `/status`.
    let reason = HOSTILE.repeat((1 << 20) / HOSTILE.len());
    let mark = cut(&reason, SENTENCE_BYTES);
    let (_, mark) = mark.rsplit_once("…[").unwrap();
    assert!(long.contains(mark), "{mark}");
}

/// A roll-out whose texts are this one.
fn rollout(phase: Phase, text: &str) -> RolloutStatus {
    let candidate = PlannedVersion {
        revision: Some(text.to_owned()),
        ..version("r2")
    };
    let transition = Transition {
        at: 0,
        to: phase,
        step: 0,
        candidate: None,
        cause: Cause::Operator,
        reason: text.to_owned(),
        by: Some(text.to_owned()),
    };
    let plan = Plan {
        phase,
        candidate: Some(candidate),
        history: vec![transition],
        ..idle()
    };
    RolloutStatus {
        bundle: "authz".to_owned(),
        plan: Some(Arc::new(plan)),
        tally: Tally {
            offered: 7,
            acknowledged: 5,
            failed: 2,
            outside: 0,
        },
        criteria: None,
        checks: Vec::new(),
        is_halted: false,
        is_leader: true,
        engine: EngineState::Up,
    }
}

#[test]
fn a_rollout_has_its_phase_candidate_and_last_transition_and_no_text_makes_an_element() {
    let document = |rollout: RolloutStatus| {
        let (_publisher, handle) = serving("authz", 1);
        let mut bundle = bundle("authz", handle.status());
        bundle.rollout = Some(rollout);
        rendered(&overview(vec![bundle]))
    };
    let plain = document(rollout(Phase::Paused, "plain"));
    for text in [
        "Paused in step 1 of 1",
        "run by 5 of 7 clients that were offered it, 2 failed",
        "</bdi>, by <bdi>plain</bdi>",
        "revision <bdi>plain</bdi>",
    ] {
        assert!(plain.contains(text), "{text}: {plain}");
    }
    let hostile = document(rollout(Phase::Paused, HOSTILE));
    assert_eq!(elements(&plain), elements(&hostile));
    let halted = RolloutStatus {
        is_halted: true,
        engine: EngineState::Down,
        ..rollout(Phase::Progressing, "plain")
    };
    let unknown = RolloutStatus {
        plan: None,
        ..rollout(Phase::Idle, "plain")
    };
    for (rollout, text) in [
        (rollout(Phase::Progressing, "plain"), "Step 1 of 1"),
        (rollout(Phase::RolledBack, "plain"), "Rolled back"),
        (halted.clone(), "Halted here"),
        (halted, "the shared state does not answer"),
        (unknown, "no plan is known yet"),
    ] {
        let shown = document(rollout);
        assert!(shown.contains(text), "{text}: {shown}");
    }
    let idle = document(rollout(Phase::Idle, "plain"));
    assert!(
        !idle.contains("Step 1 of 1") && idle.contains("idle since"),
        "{idle}"
    );
}

#[test]
fn bundles_with_problems_come_first_and_are_counted() {
    let (_publisher, handle) = serving("a", 1);
    let served = |class: Option<FailureClass>| {
        let mut status = handle.status();
        status.last_failure = class.map(|class| failure(class, "the reason"));
        status
    };
    let (_publisher, handle) = pending("p");
    let mut withdrawn = handle.status();
    withdrawn.state = crate::publish::StateKind::Withdrawn;
    let mut suspended = handle.status();
    suspended.suspended = true;
    let mut older = served(None);
    older.older = Some("1.0 is older than 2.0".to_owned());
    let html = rendered(&overview(vec![
        bundle("fine", served(None)),
        bundle("older", older),
        bundle("suspended", suspended),
        bundle("pending", handle.status()),
        bundle("failing", served(Some(FailureClass::Transient))),
        bundle("gone", served(Some(FailureClass::NotFound))),
        bundle("revoked", served(Some(FailureClass::Revoked))),
        bundle("refused", served(Some(FailureClass::Defect))),
        bundle("withdrawn", withdrawn),
    ]));
    let ids = html.split("id=\"bundle:").skip(1);
    let order: Vec<_> = ids.filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(
        order,
        [
            "withdrawn",
            "revoked",
            "refused",
            "failing",
            "gone",
            "pending",
            "older",
            "suspended",
            "fine"
        ]
    );
    for count in [
        "<b>1</b>Withdrawn",
        "<b>2</b>Newer version refused",
        "<b>2</b>Check failed",
        "<b>1</b>Pending",
        "<b>1</b>Older than before",
        "<b>1</b>Suspended",
        "<b>1</b>Serving",
    ] {
        assert!(html.contains(count), "{count}: {html}");
    }
    assert!(
        html.contains("<title>6 problems · bundlegate</title>"),
        "{html}"
    );
    assert!(html.contains("<strong>Not found</strong>"), "{html}");
}

#[test]
fn what_expires_is_a_problem_of_the_gateway() {
    let certificate = |key: &str, days: i64| CertificateInUse {
        key: key.to_owned(),
        expiry: CertificateExpiry {
            subject: "CN=gate".to_owned(),
            not_before: now(),
            not_after: now() + jiff::SignedDuration::from_hours(24 * days),
        },
    };
    let mut overview = overview(Vec::new());
    overview.certificates = Arc::new(vec![
        certificate("server.tls.certificate", 400),
        certificate("server.tls.client_ca", 20),
        certificate("server.admin_tls.certificate", -3),
    ]);
    let html = rendered(&overview);
    let problems = html.split("<li class=\"").skip(1);
    let problems: Vec<_> = problems
        .filter_map(|item| item.split("</strong>").next())
        .collect();
    assert_eq!(
        problems,
        [
            "bad\"><strong><bdi>server.admin_tls.certificate expired 3 days ago</bdi>",
            "warn\"><strong><bdi>server.tls.client_ca expires in 20 days</bdi>",
        ]
    );
    assert!(html.contains("No bundle is configured."), "{html}");
}

#[test]
fn the_policy_has_the_hashes_of_what_is_sent_and_permits_nothing_else() {
    let mut response = Response::new(ResponseBody::empty());
    secure(&mut response);
    let policy = response.headers()[CONTENT_SECURITY_POLICY]
        .to_str()
        .unwrap();
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    assert!(
        !policy.contains("unsafe") && !policy.contains('*'),
        "{policy}"
    );
    let html = rendered(&overview(Vec::new()));
    for (element, directive) in [("style", "style-src"), ("script", "script-src")] {
        let (_, content) = html.split_once(&format!("<{element}>")).unwrap();
        let (content, rest) = content.split_once(&format!("</{element}>")).unwrap();
        assert!(!rest.contains(&format!("<{element}")), "there is one");
        let hash = BASE64_STANDARD.encode(Sha256::digest(content));
        assert!(
            policy.contains(&format!("{directive} 'sha256-{hash}';")),
            "{policy}"
        );
    }
    for asset in [STYLE, SCRIPT] {
        assert!(!asset.as_str().contains("</") && !asset.as_str().contains("<!--"));
    }
}

#[test]
fn hostile_text_of_a_client_changes_no_element_wherever_it_stands() {
    let document = |text: &str| {
        let (_publisher, handle) = serving("authz", 1);
        let overview = overview(vec![bundle(text, handle.status())]);
        let mut clients = counted(text, [1, 2, 3, 0, 4, 5, 6]);
        clients.rows = vec![failing_client(text, true), failing_client(text, false)];
        let selection = crate::server::fleet_selection::Selection {
            bundle: Some(text.to_owned()),
            states: Vec::new(),
            search: Some(text.to_owned()),
        };
        let fleet = listing(Listing::Selected(selection), Some(clients));
        let mut html = rendered_with(&overview, &fleet);
        let refused = listing(Listing::Invalid(text.to_owned()), Some(Clients::default()));
        html += &rendered_with(&overview, &refused);
        html
    };
    let (plain, hostile) = (document("plain"), document(HOSTILE));
    assert!(plain.matches("plain").count() > 25, "{plain}");
    assert_eq!(elements(&plain), elements(&hostile));
    let long = document(&HOSTILE.repeat((1 << 20) / HOSTILE.len()));
    assert_eq!(elements(&plain), elements(&long));
    assert!(
        long.len() < plain.len() + 60 * 6 * SENTENCE_BYTES,
        "{}",
        long.len()
    );
    for document in [&hostile, &long] {
        let body = document
            .replace(STYLE.as_str(), "")
            .replace(SCRIPT.as_str(), "");
        for forbidden in ["<script>alert", "<img", "\u{202e}", "\u{1b}", "\r"] {
            assert!(!body.contains(forbidden), "{forbidden:?}");
        }
    }
}

#[test]
fn a_bundle_has_its_clients_by_state_and_those_that_fail_make_it_a_problem() {
    let (_publisher, handle) = serving("a", 1);
    let overview = overview(vec![
        bundle("fine", handle.status()),
        bundle("team/a&b", handle.status()),
    ]);
    // In the order of `ClientState::ALL`: failing, silent, none, candidate, current, behind, changing.
    for (states, is_problem) in [
        ([1, 0, 0, 2, 40, 0, 0], true),
        ([0, 0, 0, 2, 40, 1, 0], true),
        ([0, 7, 7, 7, 40, 0, 7], false),
    ] {
        let fleet = listing(Listing::Attention, Some(counted("team/a&b", states)));
        let html = rendered_with(&overview, &fleet);
        let is_first = html.find("bundle:team/a&amp;b") < html.find("bundle:fine");
        assert_eq!(is_first, is_problem, "{states:?}");
        let count = "<b>1</b>Clients failing or behind";
        assert_eq!(html.contains(count), is_problem, "{states:?}");
        let title = "<title>1 problem · bundlegate</title>";
        assert_eq!(html.contains(title), is_problem, "{states:?}");
        let link = "href=\"/?bundle=team%2Fa%26b&amp;state=current#clients\">40 current</a>";
        assert!(html.contains(link), "{html}");
        assert!(html.contains("2 addresses are shared"), "{html}");
        for state in ClientState::ALL {
            let none = format!(">0 {}", state.label());
            assert!(!html.contains(&none), "{none}: {html}");
        }
    }
}

#[test]
fn the_section_says_whose_clients_are_listed_and_how_many() {
    let overview = overview(Vec::new());
    let section = |query: &str, clients: Option<Clients>| {
        let html = rendered_with(&overview, &listing(Listing::parse(query), clients));
        let (_, section) = html.split_once("aria-labelledby=\"clients\"").unwrap();
        section.split("</section>").next().unwrap().to_owned()
    };
    let listed = |is_complete, has_more, total| {
        Some(Clients {
            rows: vec![failing_client("opa-1", true)],
            is_complete,
            has_more,
            total,
            ..counted("authz", [250, 0, 0, 0, 0, 0, 0])
        })
    };
    let none = || Some(Clients::default());
    for (section, text) in [
        (
            section("", None),
            "fleet.enabled is false in the configuration",
        ),
        (section("", none()), "No client has asked for a bundle."),
        (
            section("", Some(counted("authz", [0, 0, 0, 0, 9, 0, 0]))),
            "No client is failing, behind or silent.",
        ),
        (
            section("search=x", Some(counted("authz", [0, 0, 0, 0, 9, 0, 0]))),
            "No client matches the search.",
        ),
        (
            section("", listed(false, true, Some(250))),
            "behind or silent: 250, counted for each bundle. 1 are shown; bundlegate fleet lists all.",
        ),
        (
            section("search=x", listed(false, true, None)),
            "match the search: the first 1 are shown; bundlegate fleet lists all.",
        ),
        (
            section("", listed(false, false, Some(1))),
            "clients of this replica",
        ),
        (
            section("", listed(true, false, Some(1))),
            "clients of all replicas",
        ),
        (
            section("state=silent", none()),
            "<option value=\"silent\" selected>",
        ),
        (section("search=a+%22b", none()), "value=\"a &quot;b\">"),
        (
            section("state=x", none()),
            "is no state; the states are failing, ",
        ),
        (section("state=x", none()), "role=\"alert\""),
    ] {
        assert!(section.contains(text), "{text}: {section}");
    }
    let off = section("", None);
    assert!(!off.contains("<form"), "{off}");
    // The browser sends the form to this listener alone, and no script of the page reads it.
    let form = "method=\"get\" action=\"/#clients\"";
    assert!(section("", none()).contains(form));
}
