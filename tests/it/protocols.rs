//! The bundle API over HTTP/2, with and without TLS.

use std::sync::Arc;

use reqwest::{StatusCode, Version};
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::{
    faulty::FaultyRegistry,
    gateway::{Setup, TestGateway, bundle, eventually, tag, wishing},
};

async fn a_fetch_and_a_long_poll(
    setup: Setup,
    http: reqwest::Client,
    scheme: &str,
    version: Version,
) {
    let registry = FaultyRegistry::start().await;
    let (one, two) = (bundle("one"), bundle("two"));
    registry.put_artifact("live", &one);
    let gate = TestGateway::with(&registry, setup).await;
    let url = format!(
        "{scheme}://localhost:{}/bundles/{}",
        gate.data.port(),
        gate.name()
    );
    let first = http.get(&url).send().await.unwrap();
    assert_eq!((first.status(), first.version()), (StatusCode::OK, version));
    let etag = tag(&first);
    assert_eq!(first.bytes().await.unwrap(), one);
    let unchanged = wishing(http.get(&url), &etag, 1).send().await.unwrap();
    assert_eq!(
        (unchanged.status(), tag(&unchanged)),
        (StatusCode::NOT_MODIFIED, etag.clone())
    );
    let (woken, ()) = tokio::join!(wishing(http.get(&url), &etag, 60).send(), async {
        eventually("it is held", || gate.waiters() == 1).await;
        registry.put_artifact("live", &two);
    });
    assert_eq!(woken.unwrap().bytes().await.unwrap(), two);
}

#[tokio::test]
async fn http_2_in_the_clear() {
    let http = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    a_fetch_and_a_long_poll(Setup::default(), http, "http", Version::HTTP_2).await;
}

/// A configuration of TLS with a new certificate for `localhost`, and the certificate.
pub(crate) fn tls() -> (Arc<rustls::ServerConfig>, reqwest::Certificate) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let root = reqwest::Certificate::from_der(made.cert.der()).unwrap();
    (Arc::new(tls), root)
}

#[tokio::test]
async fn tls_with_http_2_or_1_as_the_client_prefers() {
    let (tls, root) = tls();
    let client = || reqwest::Client::builder().tls_certs_only([root.clone()]);
    for (http, version) in [
        (client(), Version::HTTP_2),
        (client().http1_only(), Version::HTTP_11),
    ] {
        let setup = Setup {
            tls: Some(Arc::clone(&tls)),
            ..Setup::default()
        };
        a_fetch_and_a_long_poll(setup, http.build().unwrap(), "https", version).await;
    }
}
