//! Real OPAs with every kind of credential that they can send.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    shared::issuer::{AUDIENCE, CLIENT, Issuer},
    support::{
        Artifact, Ca, GatewayConfig, HTPASSWD, KeyPair, Kind, Opa, OpaVersion, PASSWORD, Registry,
        TestGateway, USER, long_polling, poll_until,
    },
};

/// A gateway with a client of each kind, and what OPA needs to be one of them.
struct Fixture {
    gate: TestGateway,
    ca: Ca,
    issuer: Issuer,
    folder: TempDir,
    _registry: Registry,
}

impl Fixture {
    async fn start() -> Self {
        let (registry, key) = (
            Registry::start(Kind::Distribution).await,
            KeyPair::generate().await,
        );
        let artifact = Artifact::answering("first").await;
        let digest = registry.push("acme/authz:live", &artifact.file()).await;
        key.sign(&registry, &format!("acme/authz@{digest}")).await;
        let (ca, folder) = (Ca::new(), TempDir::new().unwrap());
        let issuer = Issuer::start(Some(ca.issue("issuer").server_tls())).await;
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            file
        };
        let tokens = write("tokens", "t0ken\n");
        let others = write("others", "other-t0ken\n");
        let users = write("users", HTPASSWD);
        let clients = json!([
            { "name": "tokens", "bearer_token_file": tokens, "bundles": ["authz"] },
            { "name": "others", "bearer_token_file": others, "bundles": ["other"] },
            { "name": "users", "basic_file": users, "bundles": ["authz"] },
            { "name": "mesh", "mtls": { "san_dns": "*.opa.example" }, "bundles": ["authz"] },
            {
                "name": "cluster",
                "jwt": {
                    "jwks_url": format!("{}/jwks", issuer.url), "ca_file": ca.file(),
                    "issuer": issuer.url, "audience": AUDIENCE, "claims": { "sub": CLIENT.0 },
                },
                "bundles": ["authz"],
            },
        ]);
        let config = GatewayConfig::trusting(&key)
            .bundle("authz", &registry, "acme/authz:live")
            .secured(&ca.issue("gate"))
            .with("/server/tls/client_ca", json!(ca.file()))
            .with("/clients", clients);
        let gate = TestGateway::start(config).await;
        gate.status_when("authz", "served", |status| status["state"] == "serving")
            .await;
        Self {
            gate,
            ca,
            issuer,
            folder,
            _registry: registry,
        }
    }

    /// OPA's configuration with these credentials.
    fn config(&self, credentials: &Value) -> Value {
        let mut config = long_polling(&self.gate.url, "authz");
        let service = &mut config["services"]["gate"];
        service["tls"] = json!({ "ca_cert": self.ca.file() });
        // OPA has no certificates for the server of its tokens.
        if credentials.get("oauth2").is_some() {
            service["allow_insecure_tls"] = json!(true);
        }
        if !credentials.is_null() {
            service["credentials"] = credentials.clone();
        }
        config
    }

    /// The credentials of a client certificate for a host.
    fn client_tls(&self, host: &str) -> Value {
        let files = self.ca.issue_for(host, &[host]);
        json!({ "client_tls": { "cert": files.certificate, "private_key": files.key } })
    }

    /// Waits for a line of the gateway's log.
    async fn logged(&self, message: &str, field: &str, value: &str) {
        poll_until(&format!("{message}: {value}"), async || {
            self.gate
                .log()
                .iter()
                .any(|line| line["message"] == message && line[field] == value)
                .then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn opa_gets_its_bundle_with_every_credential_that_a_client_can_have() {
    let fixture = Fixture::start().await;
    let token_file = fixture.folder.path().join("opa-token");
    fs::write(&token_file, "t0ken\n").unwrap();
    let basic = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let oauth2 = json!({
        "token_url": format!("{}/token", fixture.issuer.url),
        "client_id": CLIENT.0, "client_secret": CLIENT.1,
    });
    let token = fixture.issuer.token(CLIENT.0, 300);
    for credentials in [
        json!({ "bearer": { "token": "t0ken" } }),
        json!({ "bearer": { "token_path": token_file } }),
        json!({ "bearer": { "scheme": "Basic", "token": basic } }),
        json!({ "bearer": { "token": token } }),
        json!({ "oauth2": oauth2 }),
        fixture.client_tls("edge.opa.example"),
    ] {
        for version in [OpaVersion::Newest, OpaVersion::V0_70] {
            let opa = Opa::start(version, &fixture.config(&credentials)).await;
            let took = opa.answers("first").await;
            let kind = credentials.as_object().unwrap().keys().next().unwrap();
            println!("clients | {version:?} | {kind} | decides after {took:?}");
        }
    }
    assert!(
        !fixture
            .gate
            .log()
            .iter()
            .any(|line| line["message"] == "unauthorized request"),
        "a request was refused"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn opa_with_a_wrong_or_another_clouds_credential_is_refused_with_a_reason() {
    let fixture = Fixture::start().await;
    let basic = STANDARD.encode(format!("{USER}:wrong"));
    let stranger = Issuer::start(None).await;
    let gcp = json!({
        "audience": AUDIENCE, "endpoint": stranger.url, "id_token_path": "/identity",
    });
    for (credentials, reason) in [
        (Value::Null, "no credential"),
        (
            json!({ "bearer": { "token": "wrong" } }),
            "unknown bearer token",
        ),
        (
            json!({ "bearer": { "scheme": "Basic", "token": basic } }),
            "unknown user or wrong password",
        ),
        (
            fixture.client_tls("opa.example"),
            "the client certificate has the name of no client",
        ),
        (
            json!({ "gcp_metadata": gcp }),
            "the issuer of the token is not accepted",
        ),
    ] {
        let _opa = Opa::start(OpaVersion::Newest, &fixture.config(&credentials)).await;
        fixture
            .logged("unauthorized request", "reason", reason)
            .await;
    }
    let aws = json!({ "s3_signing": { "environment_credentials": {} } });
    let file = fixture.folder.path().join("aws.json");
    fs::write(&file, fixture.config(&aws).to_string()).unwrap();
    let command = format!(
        "env AWS_ACCESS_KEY_ID=AKID AWS_SECRET_ACCESS_KEY=s3cret AWS_REGION=eu-west-1 \
         opa run --server --config-file {}",
        file.display()
    );
    let _opa = Opa::by_command(OpaVersion::Newest, &command).await;
    let reason = "requests signed for AWS are not supported";
    fixture
        .logged("unauthorized request", "reason", reason)
        .await;
    // A known client without the right gets what is said of an unknown bundle.
    let other = json!({ "bearer": { "token": "other-t0ken" } });
    let _opa = Opa::start(OpaVersion::Newest, &fixture.config(&other)).await;
    let message = "the client may not read this name";
    fixture.logged(message, "client", "others").await;
    for reason in [
        "missing",
        "token",
        "password",
        "certificate",
        "jwt_issuer",
        "aws_signature",
    ] {
        let sample = format!("bundlegate_unauthorized_requests_total{{reason=\"{reason}\"}}");
        assert!(fixture.gate.metric(&sample).await >= 1.0, "{reason}");
    }
}
