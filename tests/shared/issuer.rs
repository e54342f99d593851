//! An issuer of JSON Web Tokens: its keys at `/jwks`, tokens for client credentials at `/token`, and
//! for anyone at paths that end with `/identity`.

#![allow(dead_code, reason = "neither program uses all of it")]

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::{Stream, accept};

/// The value of `aud` in its tokens.
pub(crate) const AUDIENCE: &str = "bundlegate";
/// The client that gets tokens at `/token`, and their subject.
pub(crate) const CLIENT: (&str, &str) = ("opa-edge", "s3cret");

/// Serves until this is dropped.
#[derive(Debug)]
pub(crate) struct Issuer {
    /// Without a slash at the end; the value of `iss`.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    url: String,
    key: EcdsaKeyPair,
    id: usize,
    fails: bool,
    fetches: usize,
}

impl Issuer {
    /// Over HTTPS where there is a configuration for it.
    pub(crate) async fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            url: url.clone(),
            key: generate(),
            id: 0,
            fails: false,
            fetches: 0,
        }));
        let shared = Arc::clone(&state);
        let tasks = accept(listener, tls, move |stream| {
            serve(stream, Arc::clone(&shared))
        });
        Self {
            url,
            state,
            _tasks: tasks,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Replaces the key. Tokens of the old one are not accepted any more.
    pub(crate) fn rotate(&self) {
        let mut state = self.state();
        state.key = generate();
        state.id += 1;
    }

    /// Whether it answers with 500 from now on.
    pub(crate) fn fail(&self, fails: bool) {
        self.state().fails = fails;
    }

    /// How often the keys were asked for.
    pub(crate) fn fetches(&self) -> usize {
        self.state().fetches
    }

    /// The document of its keys.
    pub(crate) fn jwks(&self) -> Value {
        self.state().jwks()
    }

    /// A token for `subject` that is valid for some seconds from now on.
    pub(crate) fn token(&self, subject: &str, lifetime: i64) -> String {
        self.state().token(subject, lifetime)
    }
}

impl State {
    fn jwks(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "kid": self.id.to_string(),
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }] })
    }

    fn token(&self, subject: &str, lifetime: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = i64::try_from(now.as_secs()).unwrap();
        let header = json!({ "typ": "JWT", "alg": "ES256", "kid": self.id.to_string() });
        let claims = json!({
            "iss": self.url, "aud": AUDIENCE, "sub": subject, "exp": now + lifetime,
        });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.unwrap()))
    }

    fn answer(&mut self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let reply = |status: u16, body: String| {
            let reply = Response::builder().status(status);
            reply.body(Full::new(Bytes::from(body))).unwrap()
        };
        let (user, password) = CLIENT;
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let authorization = request.headers().get("authorization");
        match request.uri().path() {
            "/jwks" => {
                self.fetches += 1;
                match self.fails {
                    true => reply(500, String::new()),
                    false => reply(200, self.jwks().to_string()),
                }
            }
            "/token" if authorization.is_some_and(|value| value == basic.as_str()) => {
                let token = self.token(user, 300);
                let answer =
                    json!({ "access_token": token, "token_type": "bearer", "expires_in": 300 });
                reply(200, answer.to_string())
            }
            "/token" => reply(401, String::new()),
            // As the metadata server of Google Cloud answers.
            path if path.ends_with("/identity") => reply(200, self.token(user, 300)),
            _ => reply(404, String::new()),
        }
    }
}

fn generate() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
}

async fn serve(stream: Box<dyn Stream>, state: Arc<Mutex<State>>) {
    let service = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(state.lock().unwrap().answer(&request))
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
