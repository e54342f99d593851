//! `registries.HOST.client_certificate` and `.client_key`.

use std::{fs, path::Path, time::Duration};

use bundlegate::{
    oci::Digest,
    registry::{ClientCertificate, Options},
};

use tokio::time::Instant;

use super::{Authority, Clients};
use crate::{
    faulty::{Fault, FaultyRegistry},
    shared::poll_until,
};

/// Writes a new certificate and its key, and gives the digest of the certificate.
fn issue(authority: &Authority, files: &ClientCertificate) -> Digest {
    let (certificate, key) = authority.client();
    fs::write(&files.certificate, certificate.pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    Digest::sha256(certificate.der())
}

fn files(folder: &Path) -> ClientCertificate {
    ClientCertificate {
        certificate: folder.join("client.crt"),
        key: folder.join("client.key"),
    }
}

#[tokio::test]
async fn a_client_certificate_is_sent_to_the_registry_and_to_nobody_else() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let registry =
        FaultyRegistry::start_secured(authority.server(&["127.0.0.1"], Clients::Known)).await;
    // Another origin, which asks for a certificate and would accept this one.
    let other =
        FaultyRegistry::start_secured(authority.server(&["127.0.0.1"], Clients::Either)).await;
    let (digest, layer) = registry.put_artifact("live", b"bundle");
    other.put_blob(b"bundle");
    other.put("token", "application/json", r#"{ "token": "t0ken" }"#);
    let elsewhere = |path: &str| format!("https://{}/v2/acme/authz/{path}", other.address);
    let blob = elsewhere(&format!("blobs/{}", layer.digest));
    registry.fail(
        "GET /v2/acme/authz/blobs",
        1,
        Fault::Status(307, vec![("location", blob)]),
    );
    let challenge = format!("Bearer realm=\"{}\",service=\"x\"", elsewhere("token"));
    registry.fail(
        "HEAD",
        1,
        Fault::Status(401, vec![("www-authenticate", challenge)]),
    );
    let files = files(folder.path());
    let certificate = issue(&authority, &files);
    let source = registry.source_with(Options {
        extra_roots: authority.pem().into(),
        client_certificate: Some(files),
        ..registry.options()
    });
    let pinned = source.resolve(&registry.reference("live")).await.unwrap();
    assert_eq!(pinned.digest(), &digest);
    source.blob(&layer).await.unwrap().collect().await.unwrap();
    let asked = registry.asked("");
    assert!(asked.len() >= 3);
    assert!(
        asked
            .iter()
            .all(|asked| asked.client.as_ref() == Some(&certificate))
    );
    let asked = other.asked("");
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked.iter().all(|asked| asked.client.is_none()));
}

#[tokio::test]
async fn a_certificate_that_is_renewed_is_used_once_both_files_are_written() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let registry =
        FaultyRegistry::start_secured(authority.server(&["127.0.0.1"], Clients::Known)).await;
    registry.put_artifact("live", b"bundle");
    let files = files(folder.path());
    let first = issue(&authority, &files);
    let source = registry.source_with(Options {
        extra_roots: authority.pem().into(),
        client_certificate: Some(files.clone()),
        ..registry.options()
    });
    let reference = registry.reference("live");
    let presented = async || {
        source.resolve(&reference).await.unwrap();
        registry.asked("").pop().unwrap().client
    };
    assert_eq!(presented().await.as_ref(), Some(&first));
    // The new certificate with the old key: the old pair stays, and no request fails.
    let (certificate, key) = authority.client();
    fs::write(&files.certificate, certificate.pem()).unwrap();
    let renewed = Digest::sha256(certificate.der());
    let began = Instant::now();
    poll_until("more than one look at the files", async || {
        assert_eq!(presented().await.as_ref(), Some(&first));
        (began.elapsed() > Duration::from_millis(2500)).then_some(())
    })
    .await;
    fs::write(&files.key, key.serialize_pem()).unwrap();
    poll_until("the new certificate", async || {
        (presented().await.as_ref() == Some(&renewed)).then_some(())
    })
    .await;
    // Two connections: one for each pair.
    assert_eq!(registry.connections(), 2);
    fs::remove_file(&files.key).unwrap();
    assert_eq!(presented().await.as_ref(), Some(&renewed));
}

#[tokio::test]
async fn a_registry_that_requires_a_certificate_says_which_keys_to_set() {
    let authority = Authority::new();
    let registry =
        FaultyRegistry::start_secured(authority.server(&["127.0.0.1"], Clients::Known)).await;
    let options = Options {
        extra_roots: authority.pem().into(),
        ..registry.options()
    };
    let resolve = async |options: Options| {
        let source = registry.source_with(options);
        let error = source
            .resolve(&registry.reference("live"))
            .await
            .unwrap_err();
        error.to_string()
    };
    let without = resolve(options.clone()).await;
    assert!(
        without.contains("requires a client certificate"),
        "{without}"
    );
    let (other, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let files = files(folder.path());
    issue(&other, &files);
    let refused = resolve(Options {
        client_certificate: Some(files),
        ..options
    })
    .await;
    assert!(
        refused.contains("does not accept the client certificate"),
        "{refused}"
    );
    assert!(registry.asked("").is_empty());
}

#[tokio::test]
async fn no_certificate_is_sent_to_a_registry_that_is_not_verified_or_to_a_proxy() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let files = files(folder.path());
    issue(&authority, &files);
    let error = |options: Options| {
        let registries = super::registries_at("registry.test", options);
        let reference = super::reference_at("registry.test");
        let made = registries.source(reference.repository());
        made.map(drop).unwrap_err().to_string()
    };
    let options = Options {
        client_certificate: Some(files),
        ..Options::default()
    };
    let unverified = error(Options {
        tls: bundlegate::registry::TlsTrust::Unverified,
        ..options.clone()
    });
    assert!(
        unverified.contains("--insecure-skip-tls-verify"),
        "{unverified}"
    );
    let through_tls = error(Options {
        proxy: super::proxies::server("https://proxy.test:3128"),
        ..options
    });
    assert!(
        through_tls.starts_with("registries.registry.test: client_certificate: a proxy"),
        "{through_tls}"
    );
}
