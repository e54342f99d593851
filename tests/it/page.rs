//! The page at `/` of the admin listener.

use std::{fs, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::{
    faulty::{Fault, FaultyRegistry},
    gateway::{HOUR, InProcess, PATIENCE, Setup, TestGateway, bundle, error, header, packed},
};

/// Markup, an attribute, controls and an override of the direction.
const HOSTILE: &str = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' \u{202e}gnisrever\u{7}";

type Gate = TestGateway<InProcess>;

/// The content of the only element of this name.
fn content<'a>(page: &'a str, element: &str) -> &'a str {
    let parts: Vec<_> = page.split(&format!("<{element}>")).collect();
    assert_eq!(parts.len(), 2, "{element}");
    let (content, _) = parts[1].split_once(&format!("</{element}>")).unwrap();
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_bundle_is_text_on_the_page_and_the_policy_permits_what_is_sent() {
    let registry = FaultyRegistry::start().await;
    let manifest = json!({ "revision": HOSTILE, "roots": ["authz"] }).to_string();
    let data = r#"{"allow": true}"#;
    let bytes = packed(&[(".manifest", &manifest), ("authz/data.json", data)]);
    let (digest, _) = registry.put_artifact("live", &bytes);
    let gate = Gate::before(&registry, HOUR).await;
    gate.get("", 0).await.error_for_status().unwrap();
    // The next check fails with a reason of the registry's.
    let answer = r#"{"errors":[{"code":"MANIFEST_INVALID","message":"<script>alert(3)</script>\u202e\u0007"}]}"#;
    registry.put_artifact("live", &bundle("two"));
    // By its digest, because the answer to a HEAD has no body.
    registry.fail("manifests/sha256", usize::MAX, Fault::Refuse(400, answer));
    gate.refresh().await;

    let response = gate.admin_response("/").await;
    assert_eq!(response.status(), StatusCode::OK);
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(header(&response, name), value, "{name}");
    }
    let policy = header(&response, "content-security-policy").to_owned();
    let page = response.text().await.unwrap();
    let hash = |element| BASE64_STANDARD.encode(Sha256::digest(content(&page, element)));
    let expected = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        hash("style"),
        hash("script")
    );
    assert_eq!(policy, expected);

    let main = content(&page, "main");
    for text in [
        gate.name(),
        digest.as_str(),
        "Serving",
        "live",
        "Check failed",
    ] {
        assert!(main.contains(text), "{text}: {main}");
    }
    let escaped =
        "&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(2)&gt;&quot;";
    assert!(main.contains(escaped), "{main}");
    assert!(main.contains("&lt;script&gt;alert(3)"), "{main}");
    for forbidden in ["<script", "<img", "\" onload", "\u{202e}", "\u{7}"] {
        assert!(!main.contains(forbidden), "{forbidden:?}: {main}");
    }

    let http = &gate.http;
    let url = format!("http://{}/", gate.admin);
    let head = http.head(&url).send().await.unwrap();
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(header(&head, "content-security-policy"), policy);
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let request = http
            .request(method, &url)
            .header("origin", "http://evil.example");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(header(&response, "allow"), "GET, HEAD");
    }
}

#[tokio::test]
async fn a_rebound_host_name_reads_no_page_and_another_site_nothing() {
    let folder = TempDir::new().unwrap();
    let config = json!({
        "version": 1,
        "server": { "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "admin_hosts": ["gate.internal"] },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
    });
    fs::write(folder.path().join("bundlegate.yaml"), config.to_string()).unwrap();
    let gateway = TestGateway::run(folder).await;
    let port = gateway.admin.port();
    let get = |path: &str, headers: &[(&str, &str)]| -> RequestBuilder {
        let request = gateway.http.get(format!("http://{}{path}", gateway.admin));
        let request = request.timeout(PATIENCE);
        headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        })
    };
    let status = async |path: &str, headers: &[(&str, &str)]| {
        get(path, headers).send().await.unwrap().status()
    };
    const LANGUAGE: (&str, &str) = ("accept-language", "en-US,en;q=0.9");
    for name in [
        "localhost",
        "127.0.0.1",
        "10.1.2.3",
        "gate.internal",
        "Gate.Internal",
    ] {
        let host = format!("{name}:{port}");
        for path in ["/", "/status", "/metrics"] {
            let answered = status(path, &[("host", &host), LANGUAGE]).await;
            assert_eq!(answered, StatusCode::OK, "{host}{path}");
        }
    }
    let rebound = format!("rebound.example:{port}");
    let rebound = ("host", rebound.as_str());
    let refused = get("/", &[rebound]).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let message = error(refused).await["message"].clone();
    assert!(
        message.as_str().unwrap().contains("server.admin_hosts"),
        "{message}"
    );
    for path in ["/status", "/metrics", "/readyz"] {
        assert_eq!(
            status(path, &[rebound, LANGUAGE]).await,
            StatusCode::FORBIDDEN,
            "{path}"
        );
        // Prometheus finds its targets under any name.
        let prometheus = ("user-agent", "Prometheus/3.5.0");
        assert_eq!(
            status(path, &[rebound, prometheus]).await,
            StatusCode::OK,
            "{path}"
        );
    }
    for path in ["/", "/status", "/metrics"] {
        let of_another = [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "no-cors"),
        ];
        assert_eq!(
            status(path, &of_another).await,
            StatusCode::FORBIDDEN,
            "{path}"
        );
        let link = [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        assert_eq!(status(path, &link).await, StatusCode::OK, "{path}");
    }
}

/// Sends a request for the bundle as a client with this name that runs a version.
async fn poll(gate: &Gate, name: &str, agent: &str, tag: &str) -> StatusCode {
    let url = format!("http://{}/bundles/{}", gate.data, gate.name());
    let request = gate.http.get(url).timeout(PATIENCE);
    let request = request.header("bundlegate-client", name);
    let request = request.header("if-none-match", tag);
    let response = request.header("user-agent", agent).send().await.unwrap();
    let status = response.status();
    response.bytes().await.unwrap();
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_searched_without_a_script_and_their_texts_are_cut() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let mut setup = Setup::default();
    // All clients have one address, whose repeated downloads would be delayed.
    (setup.rules.poll, setup.repeat_delay) = (HOUR, Duration::ZERO);
    let gate = Gate::with(&registry, setup).await;
    // A client that is known by its address, and names no version yet.
    gate.get("", 0).await.error_for_status().unwrap();
    for number in 0..120 {
        let name = format!("opa-{number:03}");
        let status = poll(&gate, &name, "Open Policy Agent/1.22.2", "\"old\"").await;
        assert_eq!(status, StatusCode::OK);
        // It has downloaded the version and still runs the old one.
        if number < 3 {
            poll(&gate, &name, "Open Policy Agent/1.22.2", "\"old\"").await;
        }
    }
    // All that a client can say is 128 bytes of a name, a header, and labels and errors of a report.
    let agent = "</td><script>alert(1)</script>".repeat(100);
    for _ in 0..2 {
        poll(&gate, "<b>\"bold", &agent, "\"<i>old\"").await;
    }
    let labels = json!({ "id": "x", "version": HOSTILE.repeat(100), "team": HOSTILE.repeat(100) });
    let error = json!({ "name": gate.name(), "code": HOSTILE, "message": HOSTILE.repeat(500) });
    let report = json!({ "labels": labels, "bundles": { gate.name(): error } });
    let url = format!("http://{}/status", gate.data);
    let request = gate.http.post(url).header("bundlegate-client", "<b>\"bold");
    let request = request.header("content-type", "application/json");
    let sent = request.body(report.to_string()).send().await.unwrap();
    assert_eq!(sent.status(), StatusCode::NO_CONTENT);

    let page = async |query: &str| {
        let response = gate.admin_response(&format!("/{query}")).await;
        let status = response.status();
        (status, response.text().await.unwrap())
    };
    let rows = |page: &str| {
        let (_, list) = page.split_once("id=\"client-list\"").unwrap();
        let list = list.split("</section>").next().unwrap();
        list.matches("<tr class=\"main\"").count()
    };
    for (query, listed) in [
        ("", 4),
        ("?search=&bundle=&state=", 100),
        ("?state=changing", 100),
        ("?state=failing&bundle=authz%2Fmain", 4),
        ("?search=OPA-01", 10),
        ("?search=opa-01&state=failing", 0),
        ("?search=missing", 0),
        ("?bundle=missing", 0),
    ] {
        let (status, page) = page(query).await;
        assert_eq!((status, rows(&page)), (StatusCode::OK, listed), "{query}");
        assert!(page.contains("clients of this replica"), "{query}");
    }
    let (_, all) = page("?state=changing").await;
    assert!(
        all.contains("118, counted for each bundle. 100 are shown"),
        "{all}"
    );
    let (status, invalid) = page("?state=Failing&search=x").await;
    assert_eq!((status, rows(&invalid)), (StatusCode::BAD_REQUEST, 0));
    assert!(
        invalid.contains("is no state; the states are failing, "),
        "{invalid}"
    );

    let (_, page) = page("?search=bold").await;
    let main = content(&page, "main");
    assert_eq!(rows(&page), 1);
    assert!(main.contains("&lt;b&gt;&quot;bold"));
    for forbidden in ["<script", "<img", "<i>", "\u{202e}", "\u{7}"] {
        assert!(!main.contains(forbidden), "{forbidden:?}: {main}");
    }
    assert!(page.len() < 64 << 10, "{}", page.len());
}
