//! The token server of a test.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::{
    super::{PASSWORD, USER, ca::Certificate, registry::by_name},
    Issued, TokenKey, Tokens,
};
use crate::shared::{Stream, accept};

/// A user who may only pull.
pub(crate) const READER: &str = "reader";

/// A path from which requests are redirected to the right one.
const MOVED: &str = "/moved";

/// Issues tokens until it is dropped. [`USER`] may pull and push below `acme/` and `robot/`, and
/// [`READER`] may pull there; both have the same password.
#[derive(Debug)]
pub(crate) struct TokenServer {
    pub(crate) realm: String,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    key: TokenKey,
    tokens: Mutex<Tokens>,
    issued: Mutex<Vec<Issued>>,
}

impl TokenServer {
    /// Over HTTPS where there is a certificate.
    pub(crate) async fn start(certificate: Option<&Certificate>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = certificate.map_or("http", |_| "https");
        let address = listener.local_addr().unwrap().to_string();
        let realm = format!("{scheme}://{}/token", by_name(&address));
        let shared = Arc::new(Shared {
            key: TokenKey::generate(),
            tokens: Mutex::new(Tokens {
                valid_for: 300,
                expires_in: json!(300),
                fields: &["token"],
                post: None,
                failure: None,
                password: PASSWORD.to_owned(),
                refresh_tokens: Vec::new(),
            }),
            issued: Mutex::default(),
        });
        let (tls, serving) = (
            certificate.map(Certificate::server_tls),
            Arc::clone(&shared),
        );
        let tasks = accept(listener, tls, move |stream| {
            serve(stream, Arc::clone(&serving))
        });
        Self {
            realm,
            shared,
            _tasks: tasks,
        }
    }

    /// `auth.token` in a registry's configuration.
    pub(crate) fn auth(&self) -> Value {
        self.shared.key.auth(&self.realm)
    }

    /// The same with a realm that redirects.
    pub(crate) fn moved(&self) -> Value {
        let realm = self.realm.replace("/token", MOVED);
        self.shared.key.auth(&realm)
    }

    /// Changes what it answers from now on.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Tokens)) {
        change(&mut lock(&self.shared.tokens));
    }

    /// The requests so far.
    pub(crate) fn issued(&self) -> Vec<Issued> {
        lock(&self.shared.issued).clone()
    }

    /// The requests since the last call.
    pub(crate) fn take(&self) -> Vec<Issued> {
        std::mem::take(&mut *lock(&self.shared.issued))
    }
}

async fn serve(stream: Box<dyn Stream>, shared: Arc<Shared>) {
    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// A request in either form.
struct Asked {
    account: Option<String>,
    is_right: bool,
    scopes: Vec<String>,
    wants_refresh_token: bool,
}

impl Asked {
    /// `GET`, with one parameter for each scope.
    fn by_get(query: &str, authorization: Option<&str>, tokens: &Tokens) -> Self {
        let pair = authorization
            .and_then(|value| value.strip_prefix("Basic "))
            .map(|pair| String::from_utf8(STANDARD.decode(pair).unwrap()).unwrap());
        let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
        let fields = Fields::read(query);
        Self {
            account: pair.map(|(account, _)| account.to_owned()),
            is_right: pair.is_some_and(|(account, password)| {
                [USER, READER].contains(&account) && password == tokens.password
            }),
            scopes: fields.all("scope"),
            wants_refresh_token: fields.one("offline_token") == "true",
        }
    }

    /// `POST`, with all scopes in one field.
    fn by_post(body: &str, tokens: &Tokens) -> Self {
        let fields = Fields::read(body);
        let is_password = fields.one("grant_type") == "password";
        let refresh_token = fields.one("refresh_token").to_owned();
        Self {
            account: Some(match is_password {
                true => fields.one("username").to_owned(),
                false => USER.to_owned(),
            }),
            is_right: match is_password {
                true => fields.one("password") == tokens.password,
                false => tokens.refresh_tokens.contains(&refresh_token),
            },
            scopes: fields
                .one("scope")
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            wants_refresh_token: fields.one("access_type") == "offline",
        }
    }

    /// The part of the scopes that the account may have.
    fn granted(&self) -> Vec<String> {
        let may_push = self.account.as_deref() == Some(USER);
        self.scopes
            .iter()
            .filter_map(|scope| {
                let (resource, actions) = scope.rsplit_once(':')?;
                if resource == "registry:catalog" {
                    return Some(scope.clone());
                }
                let name = resource.strip_prefix("repository:")?;
                if !name.starts_with("acme/") && !name.starts_with("robot/") {
                    return None;
                }
                let actions: Vec<_> = actions
                    .split(',')
                    .filter(|action| *action == "pull" || (may_push && *action == "push"))
                    .collect();
                Some(format!("{resource}:{}", actions.join(",")))
            })
            .collect()
    }
}

/// `name=value&…`
struct Fields(Vec<(String, String)>);

impl Fields {
    fn read(text: &str) -> Self {
        let pairs = url::form_urlencoded::parse(text.as_bytes());
        Self(pairs.into_owned().collect())
    }

    fn one(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    fn all(&self, name: &str) -> Vec<String> {
        let named = self.0.iter().filter(|(key, _)| key == name);
        named.map(|(_, value)| value.clone()).collect()
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let method = request.method().to_string();
    let query = request.uri().query().unwrap_or_default().to_owned();
    if request.uri().path() == MOVED {
        let moved = Response::builder()
            .status(307)
            .header(header::LOCATION, format!("/token?{query}"));
        return Ok(moved.body(Full::default()).unwrap());
    }
    let authorization = request.headers().get(header::AUTHORIZATION);
    let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8_lossy(&body);
    let tokens = lock(&shared.tokens).clone();
    let asked = match method.as_str() {
        "POST" => Asked::by_post(&body, &tokens),
        _ => Asked::by_get(&query, authorization.as_deref(), &tokens),
    };
    let refused = match (tokens.failure, method.as_str()) {
        (Some(status), _) => Some(status),
        (None, "POST") => tokens.post,
        (None, _) => None,
    };
    let status = refused.unwrap_or(if asked.is_right { 200 } else { 401 });
    lock(&shared.issued).push(Issued {
        method,
        account: asked.account.clone(),
        scopes: asked.scopes.clone(),
        status,
    });
    let mut answer = json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "no" }] });
    if status == 200 {
        let account = asked.account.as_deref().unwrap();
        let token = shared
            .key
            .token(account, &asked.granted(), tokens.valid_for);
        answer = tokens.answer(&token);
        if asked.wants_refresh_token {
            let refresh_token = format!("refresh-{:x}", fastrand::u64(..));
            answer["refresh_token"] = json!(refresh_token);
            lock(&shared.tokens).refresh_tokens.push(refresh_token);
        }
    }
    let response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(answer.to_string().into());
    Ok(response.unwrap())
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
