//! The table of faults in `tests/README.md`: a version is served, a fault begins, and the next
//! version is pushed. Whatever the fault, no other bytes are served than those of the two, and the
//! next one is served once the fault has ended.

use bundlegate::oci::{Digest, media_type};
use futures_util::{StreamExt as _, stream};
use serde_json::json;

use crate::{
    attacks::{keyed, policy},
    faulty::{Fault, FaultyRegistry, Ranges},
    forge::{By, Envelope, Key, Legacy, payload, statement},
    gateway::{Setup, TestGateway, bundle, eventually},
};

const PAGE: &str = include_str!("../../README.md");

/// Where the next version's signature is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signed {
    /// At the `.sig` tag.
    Legacy,
    /// In the list of the referrers API.
    Listed,
    /// In the index at the referrers tag.
    Tagged,
    Nowhere,
}

/// A fault of the requests whose method and path contain `part`.
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) part: &'static str,
    pub(crate) times: usize,
    pub(crate) fault: Fault,
    signed: Signed,
    /// `served`, or the class of the failure.
    outcome: &'static str,
}

const HEAD: &str = "HEAD /v2/acme/authz/manifests/live";
const MANIFEST: &str = "GET /v2/acme/authz/manifests/sha256:";
const TAGS: &str = "GET /v2/acme/authz/manifests/sha256-";
const SIG: &str = ".sig";
const API: &str = "/referrers/";
const BLOB: &str = "/blobs/";

fn row(
    what: &'static str,
    (part, fault): (&'static str, Fault),
    signed: Signed,
    outcome: &'static str,
) -> Row {
    Row {
        what,
        part,
        times: usize::MAX,
        fault,
        signed,
        outcome,
    }
}

fn status(status: u16) -> Fault {
    Fault::Status(status, vec![])
}

fn limited(status: u16, headers: &[(&'static str, &str)]) -> Fault {
    let headers = headers.iter();
    let owned = headers.map(|(name, value)| (*name, (*value).to_owned()));
    Fault::Status(status, owned.collect())
}

fn typed(kind: &str) -> Fault {
    Fault::With("content-type", kind.to_owned())
}

fn page() -> Fault {
    Fault::Replace("<html>Welcome</html>".into())
}

fn of_tags() -> Vec<Row> {
    use Signed::Legacy;
    let refused = [
        ("HEAD of a tag: 400", 400),
        ("HEAD of a tag: 403", 403),
        ("HEAD of a tag: 404", 404),
        ("HEAD of a tag: 405", 405),
        ("HEAD of a tag: 501", 501),
    ];
    let mut rows: Vec<_> = refused
        .map(|(what, code)| row(what, (HEAD, status(code)), Legacy, "served"))
        .into();
    rows.extend([
        row(
            "HEAD of a tag: no Docker-Content-Digest",
            (HEAD, Fault::Without("docker-content-digest")),
            Legacy,
            "served",
        ),
        row(
            "HEAD of a tag: a malformed Docker-Content-Digest",
            (
                HEAD,
                Fault::With("docker-content-digest", "sha256:12".into()),
            ),
            Legacy,
            "served",
        ),
        row("HEAD of a tag: 401", (HEAD, status(401)), Legacy, "denied"),
        row(
            "HEAD of a tag: 500",
            (HEAD, status(500)),
            Legacy,
            "transient",
        ),
        row(
            "HEAD of a tag: 429 with Retry-After",
            (HEAD, limited(429, &[("retry-after", "2")])),
            Legacy,
            "rate_limited",
        ),
        row(
            "HEAD of a tag: 429 with RateLimit-Remaining of Docker Hub",
            (HEAD, limited(429, &[("ratelimit-remaining", "0;w=2")])),
            Legacy,
            "rate_limited",
        ),
        row(
            "HEAD of a tag: 403 with X-RateLimit-Remaining: 0",
            (
                HEAD,
                limited(
                    403,
                    &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "2")],
                ),
            ),
            Legacy,
            "rate_limited",
        ),
        row(
            "HEAD and GET of a tag: 404",
            ("/manifests/live", status(404)),
            Legacy,
            "not_found",
        ),
        row(
            "HEAD and GET of a tag: 403",
            ("/manifests/live", status(403)),
            Legacy,
            "denied",
        ),
    ]);
    rows
}

fn of_manifests() -> Vec<Row> {
    use Signed::Legacy;
    vec![
        row(
            "manifest: 404",
            (MANIFEST, status(404)),
            Legacy,
            "transient",
        ),
        row(
            "manifest: 500",
            (MANIFEST, status(500)),
            Legacy,
            "transient",
        ),
        row(
            "manifest: a web page",
            (MANIFEST, page()),
            Legacy,
            "transient",
        ),
        row(
            "manifest: endless",
            (MANIFEST, Fault::Endless),
            Legacy,
            "transient",
        ),
        row(
            "manifest: cut short",
            (MANIFEST, Fault::Truncate(20)),
            Legacy,
            "transient",
        ),
    ]
}

fn of_content_types() -> Vec<Row> {
    use Signed::Legacy;
    vec![
        row(
            "manifest: Content-Type in capitals",
            (
                MANIFEST,
                typed("Application/VND.OCI.Image.Manifest.V1+JSON"),
            ),
            Legacy,
            "served",
        ),
        row(
            "manifest: Content-Type with parameters",
            (
                MANIFEST,
                typed("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
            ),
            Legacy,
            "served",
        ),
        row(
            "manifest: Content-Type application/json",
            (MANIFEST, typed("application/json")),
            Legacy,
            "served",
        ),
        row(
            "manifest: Content-Type application/octet-stream",
            (MANIFEST, typed("application/octet-stream")),
            Legacy,
            "served",
        ),
        row(
            "manifest: Content-Type text/plain",
            (MANIFEST, typed("text/plain; charset=utf-8")),
            Legacy,
            "served",
        ),
        row(
            "manifest: no Content-Type",
            (MANIFEST, Fault::Without("content-type")),
            Legacy,
            "served",
        ),
        row(
            "manifest: Content-Type of an index",
            (MANIFEST, typed(media_type::OCI_INDEX)),
            Legacy,
            "transient",
        ),
    ]
}

fn of_referrers() -> Vec<Row> {
    use Signed::{Legacy, Nowhere, Tagged};
    let elsewhere = [
        ("referrers API: 400, signature at the .sig tag", 400),
        ("referrers API: 401, signature at the .sig tag", 401),
        ("referrers API: 403, signature at the .sig tag", 403),
        ("referrers API: 404, signature at the .sig tag", 404),
        ("referrers API: 405, signature at the .sig tag", 405),
        ("referrers API: 406, signature at the .sig tag", 406),
        ("referrers API: 422, signature at the .sig tag", 422),
        ("referrers API: 500, signature at the .sig tag", 500),
        ("referrers API: 501, signature at the .sig tag", 501),
    ];
    let mut rows: Vec<_> = elsewhere
        .map(|(what, code)| row(what, (API, status(code)), Legacy, "served"))
        .into();
    rows.extend([
        row(
            "referrers API: a web page, signature at the .sig tag",
            (API, page()),
            Legacy,
            "served",
        ),
        row(
            "referrers API: endless, signature at the .sig tag",
            (API, Fault::Endless),
            Legacy,
            "served",
        ),
        row(
            "referrers API: 403, signature at the referrers tag",
            (API, status(403)),
            Tagged,
            "served",
        ),
        row(
            "referrers API: 500, signature at the referrers tag",
            (API, status(500)),
            Tagged,
            "served",
        ),
        row(
            "referrers API: 404, no signature",
            (API, status(404)),
            Nowhere,
            "evidence",
        ),
        row(
            "referrers API: 406, no signature",
            (API, status(406)),
            Nowhere,
            "evidence",
        ),
        row(
            "referrers API: 401, no signature",
            (API, status(401)),
            Nowhere,
            "denied",
        ),
        row(
            "referrers API: 403, no signature",
            (API, status(403)),
            Nowhere,
            "denied",
        ),
        row(
            "referrers API: 500, no signature",
            (API, status(500)),
            Nowhere,
            "transient",
        ),
        row(
            "referrers API: 429, signature at the .sig tag",
            (API, limited(429, &[("retry-after", "2")])),
            Legacy,
            "rate_limited",
        ),
    ]);
    rows
}

fn of_next_pages() -> Vec<Row> {
    use Signed::{Listed, Nowhere};
    let link = |to: &str| Fault::With("link", format!("<{to}>; rel=\"next\""));
    vec![
        row(
            "referrers API: a next page elsewhere, signature on this one",
            (API, link("http://127.0.0.1:1/v2/")),
            Listed,
            "served",
        ),
        row(
            "referrers API: a next page elsewhere, no signature on this one",
            (API, link("http://127.0.0.1:1/v2/")),
            Nowhere,
            "transient",
        ),
        row(
            "referrers API: a next page that is missing, signature on this one",
            (API, link("/v2/acme/authz/none")),
            Listed,
            "served",
        ),
    ]
}

fn of_tagged_signatures() -> Vec<Row> {
    use Signed::{Legacy, Listed, Nowhere, Tagged};
    vec![
        row(
            ".sig and referrers tags: 401, signature in the API",
            (TAGS, status(401)),
            Listed,
            "served",
        ),
        row(
            ".sig and referrers tags: 403, signature in the API",
            (TAGS, status(403)),
            Listed,
            "served",
        ),
        row(
            ".sig and referrers tags: 500, signature in the API",
            (TAGS, status(500)),
            Listed,
            "served",
        ),
        row(
            ".sig and referrers tags: 401, no signature",
            (TAGS, status(401)),
            Nowhere,
            "evidence",
        ),
        row(
            ".sig and referrers tags: 403, no signature",
            (TAGS, status(403)),
            Nowhere,
            "evidence",
        ),
        row(
            ".sig and referrers tags: 400, no signature",
            (TAGS, status(400)),
            Nowhere,
            "evidence",
        ),
        row(
            ".sig and referrers tags: 500, no signature",
            (TAGS, status(500)),
            Nowhere,
            "transient",
        ),
        row(
            ".sig tag: 500, signature there",
            (SIG, status(500)),
            Legacy,
            "transient",
        ),
        row(
            ".sig tag: 403, signature at the referrers tag",
            (SIG, status(403)),
            Tagged,
            "served",
        ),
        row(
            ".sig tag: a web page, signature in the API",
            (SIG, page()),
            Listed,
            "served",
        ),
    ]
}

fn of_blobs() -> Vec<Row> {
    use Signed::Listed;
    vec![
        Row {
            times: 3,
            ..row(
                "blob: three broken connections",
                (BLOB, Fault::Truncate(10)),
                Listed,
                "served",
            )
        },
        row(
            "blob: every connection breaks",
            (BLOB, Fault::Truncate(10)),
            Listed,
            "transient",
        ),
        row("blob: 404", (BLOB, status(404)), Listed, "evidence"),
        row("blob: 500", (BLOB, status(500)), Listed, "transient"),
        row("blob: endless", (BLOB, Fault::Endless), Listed, "evidence"),
        row("blob: other bytes", (BLOB, page()), Listed, "evidence"),
    ]
}

fn of_connections() -> Vec<Row> {
    use Signed::{Legacy, Listed};
    vec![
        Row {
            times: 3,
            ..row(
                "every request: three connections break before the answer",
                ("", Fault::Unanswered),
                Listed,
                "served",
            )
        },
        row(
            "every request: the connection breaks before the answer",
            ("", Fault::Unanswered),
            Listed,
            "transient",
        ),
        row(
            "every request: 429 with Retry-After",
            ("", limited(429, &[("retry-after", "2")])),
            Legacy,
            "rate_limited",
        ),
        row(
            "blob: cut short, with a Content-Length to match",
            (BLOB, Fault::Clip(10)),
            Listed,
            "evidence",
        ),
        row(
            "manifest: cut short, with a Content-Length to match",
            (MANIFEST, Fault::Clip(20)),
            Legacy,
            "transient",
        ),
    ]
}

fn of_lying_headers() -> Vec<Row> {
    use Signed::{Legacy, Listed};
    let other = Digest::sha256(b"other").to_string();
    vec![
        row(
            "HEAD of a tag: a second Docker-Content-Digest",
            (HEAD, Fault::Also("docker-content-digest", other)),
            Legacy,
            "served",
        ),
        row(
            "manifest: a second Content-Type",
            (MANIFEST, Fault::Also("content-type", "text/html".into())),
            Legacy,
            "served",
        ),
        row(
            "referrers API: a second Content-Type",
            (API, Fault::Also("content-type", "text/html".into())),
            Listed,
            "served",
        ),
    ]
}

pub(crate) fn rows() -> Vec<Row> {
    let all = [
        of_tags(),
        of_manifests(),
        of_content_types(),
        of_referrers(),
        of_next_pages(),
        of_tagged_signatures(),
        of_blobs(),
        of_connections(),
        of_lying_headers(),
    ];
    all.into_iter().flatten().collect()
}

pub(crate) fn sign(registry: &FaultyRegistry, key: &Key, digest: &Digest, signed: Signed) {
    if signed == Signed::Nowhere {
        return;
    }
    if signed == Signed::Legacy {
        let signature = Legacy::sign(key, &payload(digest, "r.example/authz"));
        registry.put_legacy(digest, &[signature]);
        return;
    }
    let envelope = Envelope::sign(key, &statement(digest));
    let bundle = envelope.bundle(By::Key(key), &[], &[]).to_string();
    let entry = registry.put_referrer(digest, bundle.as_bytes(), |_| {});
    if signed == Signed::Listed {
        registry.list_referrers(digest, &json!([entry]));
        return;
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry],
    });
    let tag = format!("manifests/sha256-{}", digest.hex());
    registry.put(&tag, media_type::OCI_INDEX, index.to_string());
}

async fn happens(row: Row) {
    let (registry, key) = (FaultyRegistry::start().await, Key::p256());
    registry.serve_ranges(Ranges::Served);
    let (first, _) = registry.put_artifact("live", &bundle("one"));
    sign(&registry, &key, &first, Signed::Listed);
    let setup = Setup {
        policy: policy([keyed(&key)]),
        ..Setup::default()
    };
    let gate = TestGateway::with(&registry, setup).await;
    let shows = |digest: &Digest| gate.status().manifest.as_ref() == Some(digest);
    eventually(row.what, || shows(&first)).await;
    let (second, _) = registry.put_artifact("two", &bundle("two"));
    sign(&registry, &key, &second, row.signed);
    // An empty list, as a registry with the API answers.
    if registry.held(&format!("referrers/{second}")).is_none() {
        registry.list_referrers(&second, &json!([]));
    }
    registry.fail(row.part, row.times, row.fault);
    let (kind, manifest) = registry.held("manifests/two").unwrap();
    registry.put("manifests/live", &kind, manifest);
    let class = || gate.last_failure().map(|failure| failure.class);
    if row.outcome == "served" {
        eventually(row.what, || shows(&second)).await;
        return;
    }
    eventually(row.what, || class().is_some()).await;
    assert_eq!(
        class(),
        Some(row.outcome),
        "{}: {:?}",
        row.what,
        gate.last_failure()
    );
    assert!(shows(&first), "{}: the next version is served", row.what);
    registry.heal();
    sign(&registry, &key, &second, Signed::Listed);
    eventually(row.what, || shows(&second)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_has_the_outcome_in_the_table_and_ends_without_a_trace() {
    let rows = rows();
    assert!(rows.len() >= 40);
    let all = stream::iter(rows).map(happens).buffer_unordered(16);
    all.collect::<()>().await;
}

#[test]
fn the_page_has_every_fault_and_its_outcome() {
    let section = PAGE.split("## Faults of registries\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = rows();
    let expected: Vec<_> = rows
        .iter()
        .map(|row| format!("| {} | {} |", row.what, row.outcome))
        .collect();
    let table: Vec<_> = section
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| fault "))
        .collect();
    assert_eq!(table, expected, "should be:\n{}", expected.join("\n"));
}
