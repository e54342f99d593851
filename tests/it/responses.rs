//! The responses of the data listener: statuses, headers and bodies.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};

use crate::{
    faulty::{Fault, FaultyRegistry},
    gateway::{HOUR, Setup, TestGateway, bundle, clients, error, eventually, header, tag, wishing},
    shared::poll_until,
    signing::Signer,
};

const BUNDLES: &str = "application/vnd.openpolicyagent.bundles";

#[tokio::test]
async fn a_200_and_a_304_have_their_headers_and_no_content_encoding() {
    let registry = FaultyRegistry::start().await;
    let one = bundle("one");
    let (digest, _) = registry.put_artifact("live", &one);
    let gate = TestGateway::before(&registry, HOUR).await;
    let full = gate
        .asking("", 0)
        .header("accept-encoding", "gzip, br")
        .send()
        .await
        .unwrap();
    let etag = tag(&full);
    assert_eq!(full.status(), StatusCode::OK);
    assert!(
        etag.starts_with('"') && etag.ends_with('"') && etag.len() == 45,
        "{etag}"
    );
    assert_eq!(header(&full, "content-length"), one.len().to_string());
    assert!(!header(&full, "bundlegate-revision").is_empty());
    let unchanged = gate
        .asking(&etag, 0)
        .header("accept-encoding", "gzip, br")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (unchanged.status(), tag(&unchanged)),
        (StatusCode::NOT_MODIFIED, etag)
    );
    for answer in [&full, &unchanged] {
        assert_eq!(header(answer, "content-type"), BUNDLES);
        assert_eq!(header(answer, "bundlegate-manifest"), digest.as_str());
        assert_eq!(header(answer, "content-encoding"), "");
    }
    assert_eq!(full.bytes().await.unwrap(), one);
    assert!(unchanged.bytes().await.unwrap().is_empty());
}

#[tokio::test]
async fn head_is_get_without_a_body_and_costs_no_bytes() {
    let registry = FaultyRegistry::start().await;
    let one = bundle("one");
    registry.put_artifact("live", &one);
    let gate = TestGateway::before(&registry, Duration::from_millis(100)).await;
    let asking = |tags: &str, wait| {
        wishing(
            gate.request(Method::HEAD, "/bundles/authz/main"),
            tags,
            wait,
        )
    };
    // HEAD waits for the first version too.
    let head = asking("", 0).send().await.unwrap();
    assert_eq!(
        (head.status(), header(&head, "content-length")),
        (StatusCode::OK, &*one.len().to_string())
    );
    let etag = tag(&head);
    assert!(head.bytes().await.unwrap().is_empty());
    assert_eq!(gate.sent_bytes(), 0);
    let full = gate.get("", 0).await;
    assert_eq!(
        (tag(&full), gate.sent_bytes()),
        (etag.clone(), one.len() as u64)
    );
    assert_eq!(
        asking(&etag, 0).send().await.unwrap().status(),
        StatusCode::NOT_MODIFIED
    );
    let (woken, ()) = tokio::join!(asking(&etag, 60).send(), async {
        eventually("it is held", || gate.waiters() == 1).await;
        registry.put_artifact("live", &bundle("two"));
    });
    let woken = woken.unwrap();
    assert_eq!(woken.status(), StatusCode::OK);
    assert_ne!(tag(&woken), etag);
}

#[tokio::test]
async fn every_error_is_json_with_a_reason() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let clients = clients(&[("authz/**", Some("one")), ("public/**", Some("two"))]);
    let gate = TestGateway::with(
        &registry,
        Setup {
            clients: Some(clients),
            ..Setup::default()
        },
    )
    .await;
    for (method, path, token, status, reason) in [
        (
            Method::GET,
            "/bundles/authz/main",
            Some("three"),
            401,
            "unauthorized",
        ),
        (
            Method::GET,
            "/bundles/authz/main",
            None,
            401,
            "unauthorized",
        ),
        (Method::GET, "/bundles/none", None, 401, "unauthorized"),
        (Method::GET, "/bundles/none", Some("one"), 404, "not_found"),
        (
            Method::GET,
            "/bundles/authz/main",
            Some("two"),
            404,
            "not_found",
        ),
        (Method::GET, "/", Some("one"), 404, "not_found"),
        (Method::GET, "/bundles/%ff", Some("one"), 400, "bad_request"),
        (Method::GET, "/bundles/%zz", Some("one"), 400, "bad_request"),
        (Method::GET, "/bundles/a%2", Some("one"), 400, "bad_request"),
        (
            Method::POST,
            "/bundles/authz/main",
            Some("one"),
            405,
            "method_not_allowed",
        ),
        (
            Method::DELETE,
            "/bundles/none",
            None,
            405,
            "method_not_allowed",
        ),
    ] {
        let mut request = gate.request(method.clone(), path);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap();
        let case = format!("{method} {path} as {token:?}");
        assert_eq!(response.status(), status, "{case}");
        assert_eq!(
            header(&response, "www-authenticate"),
            if status == 401 { "Bearer" } else { "" },
            "{case}"
        );
        assert_eq!(
            header(&response, "allow"),
            if status == 405 { "GET, HEAD" } else { "" },
            "{case}"
        );
        let error = error(response).await;
        assert_eq!(
            (error["reason"].as_str(), error["bundle"].as_str()),
            (Some(reason), None),
            "{case}"
        );
    }
    // A bundle that does not exist and one that the client may not read have the same response.
    let mut words = Vec::new();
    for (path, token) in [("/bundles/none", "one"), ("/bundles/authz/main", "two")] {
        let response = gate
            .request(Method::GET, path)
            .bearer_auth(token)
            .send()
            .await
            .unwrap();
        words.push((response.headers().len(), error(response).await));
    }
    assert_eq!(words[0], words[1]);
    let allowed = gate
        .request(Method::GET, "/bundles/authz/main")
        .bearer_auth("one")
        .send()
        .await
        .unwrap();
    assert_eq!(allowed.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_name_with_slashes_and_an_extension_is_found_under_each_of_its_paths() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let name = "team/a b/authz.tar.gz";
    let gate = TestGateway::with(
        &registry,
        Setup {
            name,
            ..Setup::default()
        },
    )
    .await;
    for (path, status) in [
        ("/bundles/team/a%20b/authz.tar.gz", 200),
        ("/bundle/team/a%20b/authz.tar.gz", 200),
        ("/team/a%20b/authz.tar.gz", 200),
        ("/team%2Fa%20b%2fauthz%2etar.gz", 200),
        ("/bundles/team/a%20b/authz.tar.gz?x=1", 200),
        ("/bundles/team/a%2520b/authz.tar.gz", 404),
        ("/bundles/team/a%20b/authz", 404),
        ("/bundles/bundles/team/a%20b/authz.tar.gz", 404),
    ] {
        assert_eq!(
            gate.request(Method::GET, path)
                .send()
                .await
                .unwrap()
                .status(),
            status,
            "{path}"
        );
    }
}

/// OPA before 0.39 takes the bundle content type as support for long polling.
#[tokio::test]
async fn opa_before_0_39_without_prefer_wait_gets_another_content_type() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::before(&registry, HOUR).await;
    for (agent, wait, kind) in [
        (
            "Open Policy Agent/0.38.1 (linux, amd64)",
            0,
            "application/gzip",
        ),
        ("Open Policy Agent/0.38.1 (linux, amd64)", 9, BUNDLES),
        ("Open Policy Agent/0.39.0 (linux, amd64)", 0, BUNDLES),
        ("Open Policy Agent/1.22.0 (linux, amd64)", 0, BUNDLES),
        ("curl/8.0", 0, BUNDLES),
    ] {
        let response = gate
            .asking("", wait)
            .header("user-agent", agent)
            .send()
            .await
            .unwrap();
        assert_eq!(
            header(&response, "content-type"),
            kind,
            "{agent} wait={wait}"
        );
    }
}

#[tokio::test]
async fn a_replica_is_ready_once_each_bundle_has_concluded_one_attempt() {
    let registry = FaultyRegistry::start().await;
    let gate = TestGateway::before(&registry, HOUR).await;
    eventually("the missing tag is noticed", || gate.state() == "withdrawn").await;
    poll_until("the replica is ready", async || {
        let status = gate.admin_response("/readyz").await.status();
        (status == StatusCode::OK).then_some(())
    })
    .await;
    let status: serde_json::Value =
        serde_json::from_slice(&gate.admin_response("/status").await.bytes().await.unwrap())
            .unwrap();
    let bundle = &status["bundles"]["authz/main"];
    assert_eq!(
        (&bundle["state"], &status["ready"]),
        (&"withdrawn".into(), &true.into())
    );
    assert_eq!(
        (
            &bundle["last_failure"]["class"],
            &bundle["last_failure"]["step"]
        ),
        (&"not_found".into(), &"resolve".into())
    );
}

/// The whole reason may name registries, addresses, digests and files.
#[tokio::test]
async fn an_anonymous_client_learns_the_kind_of_a_failure_and_nothing_else() {
    let fails = |status| Some(Fault::Status(status, vec![]));
    for (fault, is_pushed, reason, kind) in [
        (fails(503), false, "pending", "the registry does not answer"),
        (fails(403), false, "pending", "the registry denies access"),
        (None, false, "withdrawn", "the registry has no such version"),
        (None, true, "withdrawn", "the version is not trusted"),
    ] {
        let registry = FaultyRegistry::start().await;
        if is_pushed {
            registry.put_artifact("live", &bundle("one"));
        }
        if let Some(fault) = fault {
            registry.fail("", usize::MAX, fault);
        }
        let setup = Setup {
            policy: Signer::new().policy(),
            ..Setup::default()
        };
        let gate = TestGateway::with(&registry, setup).await;
        eventually("a failed check", || gate.last_failure().is_some()).await;
        let failure = gate.last_failure().unwrap();
        let anonymous = error(gate.get("", 0).await).await;
        let told = anonymous["message"].as_str().unwrap();
        assert_eq!(anonymous["reason"], reason, "{failure:?}");
        assert!(told.starts_with(kind), "{told}");
        let mut secrets = vec![registry.address.to_string(), "sha256".to_owned()];
        secrets.extend(failure.digest);
        for secret in &secrets {
            assert!(!told.contains(secret), "{told}");
        }
        let known = gate.refusal().await;
        assert_eq!(known["reason"], reason);
        assert_eq!(known["message"], failure.message.as_str());
    }
}

/// The revision is text of the bundle's author.
#[tokio::test]
async fn a_long_revision_is_cut_in_headers_status_and_metrics() {
    let registry = FaultyRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let revision = "r\u{e4}".repeat(200_000);
    let manifest = serde_json::json!({ "revision": revision, "roots": [""] });
    std::fs::write(folder.path().join(".manifest"), manifest.to_string()).unwrap();
    std::fs::write(folder.path().join("data.json"), "{}").unwrap();
    let limits = bundlegate::bundle::Limits {
        bundle: 1 << 20,
        unpacked: 1 << 20,
        files: 100,
        bundle_manifest: 1 << 20,
    };
    let packed = bundlegate::bundle::pack(folder.path(), &limits)
        .unwrap()
        .bundle;
    registry.put_artifact("live", packed.blob().in_memory().unwrap());
    let gate = TestGateway::before(&registry, HOUR).await;
    let served = gate.get("", 60).await;
    let shown = header(&served, "bundlegate-revision");
    assert!(
        shown.len() <= 1024 && shown.starts_with("r%C3%A4") && shown.contains("600000%20bytes"),
        "{shown}"
    );
    let status = gate.shown().await;
    let shown = status["revision"].as_str().unwrap();
    assert!(
        shown.len() <= 256 && shown.contains("\u{2026}[600000 bytes, sha256:"),
        "{shown}"
    );
    assert!(status.to_string().len() < 10_000);
    let metrics = gate.admin_response("/metrics").await.text().await.unwrap();
    assert!(metrics.contains(shown) && metrics.lines().all(|line| line.len() < 1000));
}

/// The kernel sends a large bundle from a file, and as much at a time as the client reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_bundle_arrives_whole_however_fast_it_is_read() {
    let registry = FaultyRegistry::start().await;
    let noise: String = (0..600_000).map(|_| fastrand::alphanumeric()).collect();
    let large = bundle(&noise);
    assert!(large.len() > 300_000);
    registry.put_artifact("live", &large);
    let gate = TestGateway::before(&registry, HOUR).await;
    let whole = gate.asking("", 0).send().await.unwrap();
    assert_eq!(whole.bytes().await.unwrap(), large);

    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(gate.data).await.unwrap();
    let request = format!("GET /bundles/{} HTTP/1.1\r\nHost: x\r\n\r\n", gate.name());
    client
        .write_all(request.repeat(2).as_bytes())
        .await
        .unwrap();
    for _ in 0..2 {
        let mut received = Vec::new();
        while !received.ends_with(b"\r\n\r\n") {
            received.push(client.read_u8().await.unwrap());
        }
        let mut body = vec![0; large.len()];
        for chunk in body.chunks_mut(10_000) {
            client.read_exact(chunk).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(body, large);
    }
}
