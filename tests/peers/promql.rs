//! The queries of checks, in a real Prometheus.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bundlegate::{
    promql::{Credential, Options, PromqlClient, QueryError, QueryFailure},
    rollout::{QueryTemplate, Sample, Variables, VersionText},
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    Ca, Clients, HTPASSWD, PASSWORD, PATIENCE, Process, Prometheus, TlsFront, USER, nginx,
    poll_until, run,
};

/// Revisions that change a query if they are not escaped.
const REVISIONS: [&str; 12] = [
    "1.2",
    "1x2",
    ".*",
    "a\"} or vector(0) #",
    "a'} or vector(0) #",
    "a`b",
    "a\\",
    "\\\\\"",
    "a\nb",
    "{{step}}",
    "ä€𝄞\u{fffd}",
    "a|b(c)[d]{2}^$+?-&~ #",
];

fn options(url: &str) -> Options {
    Options {
        url: url.parse().unwrap(),
        credential: None,
        extra_roots: Vec::new(),
        timeout: PATIENCE,
    }
}

async fn query(options: Options, query: &str) -> Result<Sample, QueryError> {
    PromqlClient::new(options).unwrap().query(query).await
}

/// The series `revisions` with a number for each of [`REVISIONS`], from 1.
async fn store_revisions(folder: &Path) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut text = "# TYPE revisions gauge\n".to_owned();
    for (index, revision) in REVISIONS.iter().enumerate() {
        let label = revision.replace('\\', "\\\\").replace('"', "\\\"");
        let (label, value) = (label.replace('\n', "\\n"), index + 1);
        let now = now.as_secs();
        writeln!(text, "revisions{{revision=\"{label}\"}} {value} {now}").unwrap();
    }
    text.push_str("# EOF\n");
    fs::write(folder.join("revisions"), text).unwrap();
    let arguments = [
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        "revisions",
        "data",
    ];
    run("promtool", folder, &arguments).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_result_and_error_is_told_apart() {
    let folder = TempDir::new().unwrap();
    store_revisions(folder.path()).await;
    let prometheus = Prometheus::serving(folder, &[]).await;
    let url = format!("http://{}", prometheus.address);
    let ambiguous = |reason: &str| Sample::Ambiguous(reason.to_owned());
    let instant = "instead of a number; write an instant vector";
    for (text, sample) in [
        ("vector(0.25)", Sample::Number(0.25)),
        ("sum(revisions)", Sample::Number(78.0)),
        ("-1e-3", Sample::Number(-0.001)),
        ("absent_metric", Sample::NoData),
        ("sum(absent_metric)", Sample::NoData),
        ("vector(0) / 0", Sample::NoData),
        ("0 / 0", Sample::NoData),
        ("vector(1) / 0", ambiguous("an infinite number")),
        ("-1 / 0", ambiguous("an infinite number")),
        (
            "revisions",
            ambiguous("12 series instead of one; aggregate them, as with sum()"),
        ),
        ("\"x\"", ambiguous(&format!("a string {instant}"))),
        ("revisions[5m]", ambiguous(&format!("a matrix {instant}"))),
    ] {
        assert_eq!(query(options(&url), text).await, Ok(sample), "{text}");
    }

    for (text, error) in [
        ("1 +", "HTTP 400: invalid parameter \"query\""),
        ("sum(", "HTTP 400: invalid parameter \"query\""),
        (
            "vector(1) + on() group_left() (revisions)",
            "HTTP 422: found duplicate series",
        ),
        // 2 MB.
        (
            "vector(1)[30h:1s]",
            "the answer is larger than 1048576 bytes; aggregate the series in the query",
        ),
    ] {
        let refused = query(options(&url), text).await.unwrap_err();
        assert_eq!(refused.url, format!("{url}/api/v1/query"));
        let shown = refused.to_string();
        let begins = format!("{url}/api/v1/query: {error}");
        assert!(shown.starts_with(&begins), "{text}: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_matches_itself_only_whatever_it_contains() {
    let folder = TempDir::new().unwrap();
    store_revisions(folder.path()).await;
    let prometheus = Prometheus::serving(folder, &[]).await;
    let client = PromqlClient::new(options(&format!("http://{}", prometheus.address))).unwrap();
    for template in [
        r#"revisions{revision="{{candidate.revision}}"}"#,
        "revisions{revision='{{ candidate.revision }}'}",
        r#"revisions{revision=~"{{candidate.revision}}"}"#,
        "revisions{revision =~ '{{candidate.revision}}'}",
        r#"revisions unless revisions{revision!~"|{{candidate.revision}}"}"#,
    ] {
        let template = QueryTemplate::parse(template).unwrap();
        for (index, revision) in REVISIONS.into_iter().enumerate() {
            let version = VersionText {
                revision,
                manifest: "sha256:0000",
            };
            let text = template.render(&Variables {
                bundle: "authz",
                stable: version,
                candidate: version,
                step: 1,
                percent: 10.0,
            });
            let value = f64::from(u32::try_from(index).unwrap() + 1);
            assert_eq!(
                client.query(&text).await,
                Ok(Sample::Number(value)),
                "{text}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_costs_the_timeout() {
    let mut prometheus = Prometheus::serving(TempDir::new().unwrap(), &[]).await;
    let timeout = Duration::from_secs(1);
    let client = PromqlClient::new(Options {
        timeout,
        ..options(&format!("http://{}", prometheus.address))
    });
    let client = client.unwrap();
    let answered = async || client.query("1").await.ok();
    poll_until("an answer", answered).await;

    prometheus.signal("STOP");
    // The process stops a moment after the signal.
    let failed = async || client.query("1").await.err();
    let (error, _) = poll_until("an error", failed).await;
    assert_eq!(error.failure, QueryFailure::TimedOut(timeout));
    assert!(
        error.to_string().ends_with(": no answer within 1s"),
        "{error}"
    );
    prometheus.signal("CONT");
    let (sample, _) = poll_until("an answer", answered).await;
    assert_eq!(sample, Sample::Number(1.0));

    prometheus.kill();
    let error = client.query("1").await.unwrap_err();
    assert!(
        matches!(&error.failure, QueryFailure::Request(text) if text.contains("refused")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_and_a_path_prefix_are_those_of_prometheus() {
    let folder = TempDir::new().unwrap();
    let (_, hash) = HTPASSWD.split_once(':').unwrap();
    let web = json!({ "basic_auth_users": { USER: hash } });
    fs::write(folder.path().join("web.yml"), web.to_string()).unwrap();
    let arguments = [
        "--web.config.file=web.yml",
        "--web.external-url=http://prometheus.example/prefix/",
    ];
    let prometheus = Prometheus::serving(folder, &arguments).await;
    let files = TempDir::new().unwrap();
    let file = files.path().join("basic");
    let address = &prometheus.address;
    let basic = |path: &str| Options {
        credential: Some(Credential::BasicFile(file.clone())),
        ..options(&format!("http://{address}{path}"))
    };
    let client = PromqlClient::new(basic("/prefix")).unwrap();
    let error = client.query("1").await.unwrap_err().failure;
    assert!(
        matches!(&error, QueryFailure::Credential(text) if text.contains("can't be read")),
        "{error}"
    );
    // The file is read for each query.
    fs::write(&file, format!("{USER}:wrong")).unwrap();
    let error = client.query("1").await.unwrap_err();
    let shown = format!("http://{address}/prefix/api/v1/query: HTTP 401");
    assert_eq!(error.to_string(), shown);
    fs::write(&file, format!("{USER}:{PASSWORD}\n")).unwrap();
    assert_eq!(client.query("1").await, Ok(Sample::Number(1.0)));

    assert_eq!(query(basic("/prefix/"), "1").await, Ok(Sample::Number(1.0)));
    let error = query(basic(""), "1").await.unwrap_err();
    assert!(error.to_string().ends_with(": HTTP 404"), "{error}");
    let without = options(&format!("http://{address}/prefix"));
    let error = query(without, "1").await.unwrap_err();
    assert!(error.to_string().ends_with(": HTTP 401"), "{error}");
}

/// nginx before Prometheus: one path requires a token, the others answer by themselves.
async fn token_front(prometheus: &str, folder: &Path) -> (String, Process) {
    nginx(folder, |address| {
        format!(
            r#"daemon off; master_process off; pid pid; events {{}}
            http {{
              access_log off;
              client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
              server {{
                listen {address};
                location /token/ {{
                  if ($http_authorization != "Bearer s3cret") {{ return 403; }}
                  proxy_pass http://{prometheus}/;
                }}
                location /moved/ {{ return 307 http://{prometheus}/api/v1/query; }}
                location /page/ {{ return 200 "<html>"; }}
                location /down/ {{ return 502; }}
              }}
            }}"#
        )
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_sent_to_the_configured_url_only() {
    let prometheus = Prometheus::serving(TempDir::new().unwrap(), &[]).await;
    let folder = TempDir::new().unwrap();
    let (address, _front) = token_front(&prometheus.address, folder.path()).await;
    let file = folder.path().join("token");
    fs::write(&file, "s3cret\n").unwrap();
    let bearer = |path: &str| Options {
        credential: Some(Credential::BearerFile(file.clone())),
        ..options(&format!("http://{address}{path}"))
    };
    assert_eq!(query(bearer("/token"), "1").await, Ok(Sample::Number(1.0)));
    for (path, error) in [
        ("/moved", "HTTP 307: redirects are not followed"),
        (
            "/page",
            "not an answer of Prometheus' API: expected value at line 1 column 1",
        ),
        ("/down", "HTTP 502"),
    ] {
        let refused = query(bearer(path), "1").await.unwrap_err();
        assert_eq!(refused.failure.to_string(), error, "{path}");
    }
    fs::write(&file, "another").unwrap();
    let refused = query(bearer("/token"), "1").await.unwrap_err();
    assert_eq!(refused.failure.to_string(), "HTTP 403");
    let shown = format!("{:?} {refused:?} {refused}", bearer("/token"));
    assert!(
        !shown.contains("another") && !shown.contains("s3cret"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_is_trusted_only_if_it_is_configured() {
    let prometheus = Prometheus::serving(TempDir::new().unwrap(), &[]).await;
    let (ca, other) = (Ca::new(), Ca::new());
    let front = TlsFront::before(&prometheus.address, "localhost", &ca, Clients::Anyone).await;
    let trusting = |cas: &[&Ca]| Options {
        extra_roots: cas
            .iter()
            .map(|ca| CertificateDer::from_pem_file(ca.file()).unwrap())
            .collect(),
        ..options(&format!("https://{}", front.host))
    };
    assert_eq!(
        query(trusting(&[&other, &ca]), "1").await,
        Ok(Sample::Number(1.0))
    );
    for options in [trusting(&[]), trusting(&[&other])] {
        let error = query(options, "1").await.unwrap_err();
        assert!(
            matches!(&error.failure, QueryFailure::Request(text) if text.contains("certificate")),
            "{error}"
        );
    }
    let plain = options(&format!("http://{}", front.host));
    let error = query(plain, "1").await.unwrap_err();
    assert_eq!(error.failure.to_string(), "HTTP 400");
}
