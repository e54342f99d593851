//! Which requests a test's registry grants, and the tokens that its token server issues.

use std::{collections::HashMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::{Request, Response, header::HeaderMap};
use serde_json::{Value, json};
use tokio::time::Instant;

/// The access control of a registry: a request needs the password or a token.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    /// USER:PASSWORD.
    pub(crate) password: String,
    pub(crate) scheme: Scheme,
    /// The answer to an authorization that is not valid.
    pub(crate) refusal: Refusal,
    /// What the token server says about the lifetime; `None` for nothing.
    pub(crate) expires_in: Option<Value>,
    /// For how long a token is valid.
    pub(crate) lifetime: Duration,
    /// The status for a POST to the token server; it issues a token with 200.
    pub(crate) post: u16,
    tokens: HashMap<String, Instant>,
    issued: usize,
}

/// The challenge for a request without an authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Basic,
    Bearer,
}

/// A status, with the challenge or without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) challenge: bool,
}

impl Access {
    pub(crate) fn new(scheme: Scheme, password: &str) -> Self {
        Self {
            password: password.to_owned(),
            scheme,
            refusal: Refusal {
                status: 401,
                challenge: true,
            },
            expires_in: Some(json!(300)),
            lifetime: Duration::from_secs(300),
            post: 405,
            tokens: HashMap::new(),
            issued: 0,
        }
    }

    /// Another password; the tokens of the old one are not valid any more.
    pub(crate) fn rotate(&mut self, password: &str) {
        self.password = password.to_owned();
        self.tokens.clear();
    }

    /// The answer, unless the request is granted.
    pub(crate) fn refuse<B>(&mut self, request: &Request<B>) -> Option<Response<Bytes>> {
        let headers = request.headers();
        if request.uri().path() == "/token" {
            return Some(self.issue(request.method().as_str(), headers));
        }
        let Some(value) = text(headers, "authorization") else {
            return Some(self.refused(headers, 401, true));
        };
        let is_granted = match self.scheme {
            Scheme::Basic => value == self.basic(),
            Scheme::Bearer => value.strip_prefix("Bearer ").is_some_and(|token| {
                let until = self.tokens.get(token);
                until.is_some_and(|until| Instant::now() < *until)
            }),
        };
        let Refusal { status, challenge } = self.refusal;
        (!is_granted).then(|| self.refused(headers, status, challenge))
    }

    fn issue(&mut self, method: &str, headers: &HeaderMap) -> Response<Bytes> {
        let reply = |status: u16, body: String| {
            let reply = Response::builder().status(status);
            reply.body(Bytes::from(body)).unwrap()
        };
        if method == "POST" && self.post != 200 {
            return reply(self.post, String::new());
        }
        if method != "POST" && text(headers, "authorization") != Some(self.basic()) {
            return reply(401, String::new());
        }
        self.issued += 1;
        let token = format!("t0ken-{}", self.issued);
        self.tokens
            .insert(token.clone(), Instant::now() + self.lifetime);
        let mut answer = json!({ "token": token });
        if let Some(expires_in) = &self.expires_in {
            answer["expires_in"] = expires_in.clone();
        }
        reply(200, answer.to_string())
    }

    fn refused(&self, headers: &HeaderMap, status: u16, challenge: bool) -> Response<Bytes> {
        let reply = Response::builder().status(status);
        let reply = match (challenge, self.scheme) {
            (false, _) => reply,
            (true, Scheme::Basic) => reply.header("www-authenticate", "Basic realm=\"x\""),
            (true, Scheme::Bearer) => {
                let host = text(headers, "host").unwrap();
                let bearer = format!("Bearer realm=\"http://{host}/token\",service=\"x\"");
                reply
                    .header("www-authenticate", "NTLM, Negotiate YII=")
                    .header("www-authenticate", bearer)
            }
        };
        reply.body(Bytes::new()).unwrap()
    }

    fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(&self.password))
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?;
    Some(value.to_str().unwrap().to_owned())
}
