//! Clients that authenticate themselves by certificates and tokens of their own.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use reqwest::{Client, Identity};

use super::*;

/// An authority, with the files of a server that it has issued a certificate for.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    /// The certificate and the key for `params`, as PEM.
    fn issue(&self, params: CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A client with a certificate for this URI that is valid for `lifetime` from now on.
    fn client(&self, uri: &str, lifetime: Duration) -> Client {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let now = std::time::SystemTime::now();
        params.not_before = (now - Duration::from_secs(3600)).into();
        params.not_after = (now + lifetime).into();
        let (certificate, key) = self.issue(params);
        let identity = Identity::from_pem((certificate + &key).as_bytes()).unwrap();
        anyone().identity(identity).build().unwrap()
    }
}

/// A client that trusts any server and sends its requests over one connection.
fn anyone() -> reqwest::ClientBuilder {
    Client::builder()
        .no_proxy()
        .tls_danger_accept_invalid_certs(true)
}

/// The status of a request, or the error of the connection.
async fn asks(
    gateway: &TestGateway,
    http: &Client,
    tags: &str,
    wait: u32,
) -> Result<StatusCode, String> {
    let request = http.get(format!("{}/bundles/authz", gateway.url));
    let response = wishing(request, tags, wait).send().await;
    response
        .map(|response| response.status())
        .map_err(|error| format!("{error:?}"))
}

/// A gateway with TLS that asks for the certificates of `authority`.
async fn with_certificates(
    registry: &FaultyRegistry,
    signer: &Signer,
    authority: &Authority,
) -> TestGateway {
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = authority.issue(server);
    let files = |folder: &TempDir| {
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("key.pub", &signer.public_pem());
        write("tls.crt", &certificate);
        write("tls.key", &key);
        write("clients-ca.pem", &authority.1);
    };
    let mut config = config(registry);
    config["server"]["tls"] =
        json!({ "certificate": "tls.crt", "key": "tls.key", "client_ca": "clients-ca.pem" });
    config["clients"] = json!([
        { "name": "mesh", "mtls": { "san_uri": "spiffe://corp/opa/*" }, "bundles": ["**"] },
        { "name": "other", "mtls": { "san_uri": "spiffe://corp/other" }, "bundles": ["other"] },
    ]);
    TestGateway::start(files, &config).await
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_certificate_is_accepted_for_its_name_while_it_is_valid() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let (authority, foreign) = (Authority::new(), Authority::new());
    let gateway = with_certificates(&registry, &signer, &authority).await;
    let opa = authority.client("spiffe://corp/opa/edge", HOUR);
    assert_eq!(asks(&gateway, &opa, "", 60).await, Ok(StatusCode::OK));
    for (http, status) in [
        (anyone().build().unwrap(), StatusCode::UNAUTHORIZED),
        (
            authority.client("spiffe://corp/unknown", HOUR),
            StatusCode::UNAUTHORIZED,
        ),
        (
            authority.client("spiffe://corp/other", HOUR),
            StatusCode::NOT_FOUND,
        ),
    ] {
        assert_eq!(asks(&gateway, &http, "", 0).await, Ok(status));
    }
    // The handshake fails.
    for http in [
        foreign.client("spiffe://corp/opa/edge", HOUR),
        authority.client("spiffe://corp/opa/edge", Duration::ZERO),
    ] {
        let error = asks(&gateway, &http, "", 0).await.unwrap_err();
        assert!(
            error.contains("Alert") || error.contains("alert"),
            "{error}"
        );
    }
    for (message, reason) in [
        ("unauthorized request", "no credential"),
        (
            "unauthorized request",
            "the client certificate has the name of no client",
        ),
    ] {
        gateway.said(message, |line| line["reason"] == reason).await;
    }
    gateway
        .said("the client may not read this name", |line| {
            line["client"] == "other"
        })
        .await;
}

/// The connection is open for longer than the certificate is valid.
#[tokio::test]
async fn a_certificate_that_expires_while_a_request_is_held_is_refused() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let authority = Authority::new();
    let gateway = with_certificates(&registry, &signer, &authority).await;
    // Not before the connection is established, even on a slow machine: certificates have whole
    // seconds.
    let lifetime = Duration::from_secs(8);
    let http = authority.client("spiffe://corp/opa/edge", lifetime);
    let request = http.get(format!("{}/bundles/authz", gateway.url));
    let served = wishing(request, "", 5).send().await.unwrap();
    let etag = tag(&served);
    assert_eq!(served.status(), StatusCode::OK);
    drop(served.bytes().await.unwrap());
    let began = Instant::now();
    let held = asks(&gateway, &http, &etag, 10).await;
    assert_eq!(
        held,
        Ok(StatusCode::UNAUTHORIZED),
        "after {:?}",
        began.elapsed()
    );
    // The connection is closed, and the handshake of the next one fails.
    assert!(asks(&gateway, &http, "", 0).await.is_err());
}
