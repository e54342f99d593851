//! Clients that authenticate themselves by certificates and tokens of their own.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use reqwest::{Client, Identity};

use super::*;
use crate::shared::issuer::{AUDIENCE, Issuer as TokenIssuer};

/// An authority, with the files of a server that it has issued a certificate for.
pub(super) struct Authority(Issuer<'static, KeyPair>, pub(super) String);

impl Authority {
    pub(super) fn new() -> Self {
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
    pub(super) fn client(&self, uri: &str, lifetime: Duration) -> Client {
        self.client_until(uri, SystemTime::now() + lifetime)
    }

    fn client_until(&self, uri: &str, not_after: SystemTime) -> Client {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (SystemTime::now() - HOUR).into();
        params.not_after = not_after.into();
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

pub(super) const HOUR: Duration = Duration::from_secs(3600);

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
    // The handshake fails, and the log says why.
    for http in [
        foreign.client("spiffe://corp/opa/edge", HOUR),
        authority.client_until(
            "spiffe://corp/opa/edge",
            SystemTime::now() - Duration::from_secs(60),
        ),
    ] {
        assert!(asks(&gateway, &http, "", 0).await.is_err());
    }
    gateway
        .said("client certificate refused", |line| {
            line["address"] == "127.0.0.1"
        })
        .await;
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
    // The next connection fails in the handshake, or resumes the session and is refused as well.
    assert_ne!(asks(&gateway, &http, "", 0).await, Ok(StatusCode::OK));
}

/// A gateway for tokens of `issuer`, with these keys.
async fn with_tokens(
    registry: &FaultyRegistry,
    signer: &Signer,
    issuer: &TokenIssuer,
    keys: (&str, String),
) -> TestGateway {
    let files = |folder: &TempDir| {
        fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
        fs::write(folder.path().join("jwks.json"), issuer.jwks().to_string()).unwrap();
    };
    let mut config = config(registry);
    let mut jwt = json!({
        "issuer": issuer.url, "audience": AUDIENCE, "claims": { "sub": "opa-*" },
    });
    jwt[keys.0] = json!(keys.1);
    config["clients"] = json!([{ "name": "cluster", "jwt": jwt, "bundles": ["**"] }]);
    TestGateway::start(files, &config).await
}

async fn asks_with(gateway: &TestGateway, token: &str, tags: &str, wait: u32) -> Response {
    let request = gateway
        .http
        .get(format!("{}/bundles/authz", gateway.url))
        .bearer_auth(token);
    wishing(request, tags, wait).send().await.unwrap()
}

async fn status_with(gateway: &TestGateway, token: &str) -> StatusCode {
    asks_with(gateway, token, "", 0).await.status()
}

async fn is_refused_soon(gateway: &TestGateway, token: &str) {
    gateway
        .until("the token is refused", async || {
            (status_with(gateway, token).await == StatusCode::UNAUTHORIZED).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_token_counts_for_its_claims_until_it_expires_or_its_key_is_removed() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let issuer = TokenIssuer::start(None).await;
    let keys = ("jwks_file", "jwks.json".to_owned());
    let gateway = with_tokens(&registry, &signer, &issuer, keys).await;
    let token = issuer.token("opa-edge", 300);
    let served = asks_with(&gateway, &token, "", 60).await;
    assert_eq!(served.status(), StatusCode::OK);
    for (token, message) in [
        (
            issuer.token("other", 300),
            "a claim of the token does not match",
        ),
        (issuer.token("opa-edge", -60), "the token has expired"),
        (format!("{token}x"), "the signature of the token is wrong"),
        ("s3cret".to_owned(), "unknown bearer token"),
    ] {
        let refused = asks_with(&gateway, &token, "", 0).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{message}");
        assert_eq!(refused.headers()["www-authenticate"], "Bearer");
        let text = error(refused).await["message"].to_string();
        assert!(text.contains(message), "{text}");
    }
    // Another mistake in the configuration keeps no removed key valid.
    let broken = fs::read_to_string(gateway.path("bundlegate.yaml")).unwrap();
    gateway.write("bundlegate.yaml", broken.replace("any_of", "any"));
    issuer.rotate();
    gateway.write("jwks.json", issuer.jwks().to_string());
    is_refused_soon(&gateway, &token).await;
    gateway.write("bundlegate.yaml", broken);
    gateway
        .until("the new key counts", async || {
            let status = status_with(&gateway, &issuer.token("opa-edge", 300)).await;
            (status == StatusCode::OK).then_some(())
        })
        .await;
    let log = gateway.runner.process.log();
    let signature = token.rsplit('.').next().unwrap();
    assert!(!log.contains(signature), "the token is in the log");
}

#[tokio::test]
async fn a_token_that_expires_while_its_request_is_held_is_refused() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let issuer = TokenIssuer::start(None).await;
    let keys = ("jwks_file", "jwks.json".to_owned());
    let gateway = with_tokens(&registry, &signer, &issuer, keys).await;
    // The clocks may differ by 30 s.
    let token = issuer.token("opa-edge", 6 - 30);
    let served = asks_with(&gateway, &token, "", 4).await;
    let etag = tag(&served);
    assert_eq!(served.status(), StatusCode::OK);
    let held = asks_with(&gateway, &token, &etag, 10).await;
    assert_eq!(held.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn keys_are_fetched_when_a_token_names_a_new_one_and_stay_while_the_issuer_fails() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let issuer = TokenIssuer::start(None).await;
    let keys = ("jwks_url", format!("{}/jwks", issuer.url));
    let gateway = with_tokens(&registry, &signer, &issuer, keys).await;
    let token = issuer.token("opa-edge", 300);
    let served = asks_with(&gateway, &token, "", 60).await;
    assert_eq!(served.status(), StatusCode::OK);
    assert_eq!(issuer.fetches(), 1);
    // While the issuer fails, the keys stay. Unknown keys are asked for at most every ten seconds.
    let began = Instant::now();
    issuer.fail(true);
    issuer.rotate();
    let new = issuer.token("opa-edge", 300);
    for _ in 0..50 {
        assert_eq!(status_with(&gateway, &token).await, StatusCode::OK);
        assert_eq!(status_with(&gateway, &new).await, StatusCode::UNAUTHORIZED);
    }
    let allowed = 2 + began.elapsed().as_secs() / 10;
    assert!(
        issuer.fetches() as u64 <= allowed,
        "{} fetches",
        issuer.fetches()
    );
    // The new key is fetched for a token that it has signed.
    issuer.fail(false);
    gateway
        .until("the new key counts", async || {
            (status_with(&gateway, &new).await == StatusCode::OK).then_some(())
        })
        .await;
    assert_eq!(
        status_with(&gateway, &token).await,
        StatusCode::UNAUTHORIZED
    );
}

/// Also for a connection that goes on, and for a request that is held.
#[tokio::test]
async fn a_certificate_counts_no_more_once_its_authority_was_replaced() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let [old, new] = [Authority::new(), Authority::new()];
    let gateway = with_certificates(&registry, &signer, &old).await;
    let [old_opa, held_opa] = [(); 2].map(|()| old.client("spiffe://corp/opa/edge", HOUR));
    let new_opa = new.client("spiffe://corp/opa/edge", HOUR);
    assert_eq!(asks(&gateway, &old_opa, "", 60).await, Ok(StatusCode::OK));
    assert!(asks(&gateway, &new_opa, "", 0).await.is_err());
    let response = held_opa.get(format!("{}/bundles/authz", gateway.url));
    let etag = tag(&response.send().await.unwrap());
    let held = wishing(
        held_opa.get(format!("{}/bundles/authz", gateway.url)),
        &etag,
        20,
    );
    let held = tokio::spawn(held.send());
    let waiters = r#"bundlegate_waiters{bundle="authz"}"#;
    gateway
        .until("a request is held", async || {
            (gateway.metric(waiters).await == 1.0).then_some(())
        })
        .await;
    gateway.write("clients-ca.pem", &new.1);
    gateway
        .until("the new authority counts", async || {
            (asks(&gateway, &new_opa, "", 0).await == Ok(StatusCode::OK)).then_some(())
        })
        .await;
    // The first answer closes the connection, and the next handshake fails.
    let unauthorized = Ok(StatusCode::UNAUTHORIZED);
    assert_eq!(asks(&gateway, &old_opa, "", 0).await, unauthorized);
    gateway
        .until("another handshake fails", async || {
            let asked = asks(&gateway, &old_opa, "", 0).await;
            assert!(asked.is_err() || asked == unauthorized, "{asked:?}");
            asked.err()
        })
        .await;
    let held = held.await.unwrap().unwrap();
    assert_eq!(held.status(), StatusCode::UNAUTHORIZED);
}
