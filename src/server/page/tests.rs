use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::{
    access::CertificateExpiry,
    oci::Digest,
    publish::{FailureClass, FailureStatus, Status, Step, pending, serving},
    server::CertificateInUse,
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
    String::from_utf8(render(overview).to_vec()).unwrap()
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
