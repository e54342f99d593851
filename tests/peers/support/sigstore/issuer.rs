//! A small OpenID provider in the test's process, which issues identities.

use std::{
    convert::Infallible,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{KeyPair, PKCS_ED25519, SigningKey as _};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

/// Gives a token to whoever a test claims to be, until it is dropped.
#[derive(Debug)]
pub(crate) struct Issuer {
    url: String,
    key: KeyPair,
    _tasks: JoinSet<()>,
}

/// The identity of a signer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A person, whose certificate has the address.
    Person(String),
    /// A job of a CI, told apart by claims such as GitHub's: the certificate names the
    /// workflow, and has most claims in extensions of their own.
    Job(Value),
}

impl Issuer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let documents = Documents {
            url: url.clone(),
            public: URL_SAFE_NO_PAD.encode(key.public_key_raw()),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let documents = documents.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = documents.answer(&request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            url,
            key,
            _tasks: tasks,
        }
    }

    /// The issuer of an identity, as certificates name it.
    pub(crate) fn of(&self, identity: &Identity) -> String {
        match identity {
            Identity::Person(_) => self.people(),
            Identity::Job(_) => self.jobs(),
        }
    }

    pub(super) fn people(&self) -> String {
        format!("{}/people", self.url)
    }

    pub(super) fn jobs(&self) -> String {
        format!("{}/jobs", self.url)
    }

    /// A signed ID token for ten minutes.
    pub(super) fn token(&self, identity: &Identity) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let mut claims = match identity {
            Identity::Person(email) => {
                json!({ "sub": email, "email": email, "email_verified": true })
            }
            Identity::Job(claims) => claims.clone(),
        };
        for (name, value) in [
            ("iss", json!(self.of(identity))),
            ("aud", json!("sigstore")),
            ("iat", json!(now)),
        ] {
            claims[name] = value;
        }
        claims["exp"] = json!(now + 600);
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!(
            "{}.{}",
            part(&json!({ "alg": "EdDSA", "kid": "1", "typ": "JWT" })),
            part(&claims)
        );
        let signature = self.key.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl Identity {
    pub(crate) fn person(email: &str) -> Self {
        Self::Person(email.to_owned())
    }

    /// The release workflow of `acme/policies` at a tag, on a runner of GitHub's.
    pub(crate) fn release_job() -> Self {
        let workflow = "acme/policies/.github/workflows/release.yml@refs/tags/v1.0.0";
        let commit = "8f3b0c1d2e4f5a69788796a5b4c3d2e1f0918273";
        Self::Job(json!({
            "sub": "repo:acme/policies:ref:refs/tags/v1.0.0",
            "event_name": "push",
            "sha": commit,
            "workflow": "release",
            "repository": "acme/policies",
            "repository_id": "123456",
            "repository_owner": "acme",
            "repository_owner_id": "42",
            "repository_visibility": "private",
            "ref": "refs/tags/v1.0.0",
            "job_workflow_ref": workflow,
            "job_workflow_sha": commit,
            "workflow_ref": workflow,
            "workflow_sha": commit,
            "runner_environment": "github-hosted",
            "run_id": "77",
            "run_attempt": "1",
        }))
    }

    /// The same with another value of one claim.
    pub(crate) fn with(mut self, claim: &str, value: &str) -> Self {
        let Self::Job(claims) = &mut self else {
            panic!("{self:?} has no claims")
        };
        claims[claim] = json!(value);
        self
    }

    /// The identity as the certificate has it.
    pub(crate) fn subject(&self) -> String {
        match self {
            Self::Person(email) => email.clone(),
            Self::Job(claims) => format!(
                "https://github.com/{}",
                claims["job_workflow_ref"].as_str().unwrap()
            ),
        }
    }
}

#[derive(Clone)]
struct Documents {
    url: String,
    public: String,
}

impl Documents {
    fn answer<T>(&self, request: &Request<T>) -> Response<Full<Bytes>> {
        let document = match request.uri().path() {
            "/keys" => {
                json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "1", "x": self.public }] })
            }
            path => {
                let Some(issuer) = path.strip_suffix("/.well-known/openid-configuration") else {
                    return Response::builder()
                        .status(404)
                        .body(Full::default())
                        .unwrap();
                };
                json!({
                    "issuer": format!("{}{issuer}", self.url),
                    "authorization_endpoint": format!("{}/authorize", self.url),
                    "token_endpoint": format!("{}/token", self.url),
                    "jwks_uri": format!("{}/keys", self.url),
                    "response_types_supported": ["id_token"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["EdDSA"],
                })
            }
        };
        let answer = Response::builder().header("content-type", "application/json");
        answer.body(Full::new(document.to_string().into())).unwrap()
    }
}
