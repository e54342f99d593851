//! Gets a token from the token server that a challenge names (distribution, `auth/token.md` and
//! `auth/oauth.md`).

use std::time::{Duration, SystemTime};

use reqwest::{RequestBuilder, Response, header, header::HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;
use url::Url;

use super::{
    address::forbidden_host,
    auth_error::{AuthError, TokenFailure},
    credentials::{basic, secret_header},
    docker_auths::Login,
    limiter::Order,
    options::Scheme,
    retry, traced,
    transport::Transport,
};
use crate::telemetry::{NAME_BYTES, cut};

/// A longer answer of a token server is not read.
const MAX_TOKEN_BODY_BYTES: u64 = 1 << 20;
/// "If `expires_in` is omitted, this defaults to 60 seconds" (distribution, `auth/token.md`).
const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// A longer lifetime counts as this: an instant far away overflows the clock of some systems.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// A token this close to its end may be expired when it arrives; a fifth of a short lifetime.
const EXPIRY_MARGIN: Duration = Duration::from_secs(5);
const MAX_REDIRECTS: usize = 5;
/// `client_id` in a request to an OAuth2 token server.
const CLIENT_ID: &str = "bundlegate";
const FORM_URLENCODED: &str = "application/x-www-form-urlencoded";

/// What a token is requested for, and where.
#[derive(Debug)]
pub(super) struct TokenRequest<'a> {
    pub(super) transport: &'a Transport,
    /// The scheme of the registry.
    pub(super) scheme: Scheme,
    pub(super) realm: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) scopes: &'a [String],
}

/// The fields are of any type: servers write `expires_in` as a number or as text, and `null` for
/// a token that they do not have.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Value,
    #[serde(default)]
    access_token: Value,
    #[serde(default)]
    expires_in: Value,
}

impl TokenRequest<'_> {
    /// A `Bearer` header and the time for which it can be used.
    pub(super) async fn send(&self, login: &Login) -> Result<(HeaderValue, Duration), AuthError> {
        let realm = self.realm()?;
        let origin = format!("{}{}", realm.origin().ascii_serialization(), realm.path());
        let shown = &*cut(&origin, NAME_BYTES);
        let response = match login {
            Login::IdentityToken {
                token,
                username,
                password,
            } => {
                let form = self.form(realm.clone(), token);
                let mut response = self.sent(&realm, form, shown).await?;
                // "If the request to the endpoint returns 404 using the HTTP POST method, refer to
                // Token Documentation for using the HTTP GET method" (`auth/oauth.md`); others
                // answer 405. Without a password the token takes its place, as in containerd.
                if matches!(response.status().as_u16(), 404 | 405) {
                    self.transport.drain(&mut response).await;
                    let password = match password.as_str() {
                        "" => token,
                        password => password,
                    };
                    let basic = basic(username, password)?;
                    self.get(realm, Some(basic), shown).await?
                } else {
                    response
                }
            }
            login => {
                let basic = login.basic().transpose()?;
                self.get(realm, basic, shown).await?
            }
        };
        self.token(response, shown).await
    }

    /// Sends a GET and follows redirects within the host, as to a path with a slash at its end.
    async fn get(
        &self,
        realm: Url,
        authorization: Option<HeaderValue>,
        shown: &str,
    ) -> Result<Response, AuthError> {
        let mut url = self.with_query(realm);
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.transport.http_for(&url).get(url.clone());
            if let Some(value) = &authorization {
                request = request.header(header::AUTHORIZATION, value.clone());
            }
            let mut response = self.sent(&url, request, shown).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            self.transport.drain(&mut response).await;
            url = next_hop(&url, &response)
                .ok_or_else(|| unavailable(shown, "a redirect to another server".to_owned()))?;
        }
        let reason = format!("more than {MAX_REDIRECTS} redirects");
        Err(unavailable(shown, reason))
    }

    /// Sends a request to `url` in its turn: the token server may be the registry itself.
    async fn sent(
        &self,
        url: &Url,
        request: RequestBuilder,
        shown: &str,
    ) -> Result<Response, AuthError> {
        let failed = |reason| unavailable(shown, reason);
        let admitted = self.transport.admit(url, Order::FollowUp).await;
        admitted.map_err(failed)?;
        let answer = timeout(
            self.transport.timeouts().read,
            traced::send("token", request),
        )
        .await
        .map_err(|_| failed("timed out".to_owned()))?
        .map_err(|error| failed(self.transport.reason(&error)))?;
        self.transport.record_answer(answer.url());
        Ok(answer)
    }

    async fn token(
        &self,
        mut response: Response,
        realm: &str,
    ) -> Result<(HeaderValue, Duration), AuthError> {
        let status = response.status().as_u16();
        if !response.status().is_success() {
            self.transport.drain(&mut response).await;
            let failure = match status {
                400 | 401 | 403 => TokenFailure::Denied(status),
                429 => TokenFailure::RateLimited(retry::retry_after(
                    response.headers(),
                    SystemTime::now(),
                )),
                _ => TokenFailure::Unavailable,
            };
            return Err(AuthError::Token {
                realm: realm.to_owned(),
                reason: format!("HTTP {status}"),
                failure,
            });
        }
        let read = self.transport.read_limited(response, MAX_TOKEN_BODY_BYTES);
        let body = timeout(self.transport.timeouts().read, read)
            .await
            .map_err(|_| unavailable(realm, "timed out".to_owned()))?
            .map_err(|error| unavailable(realm, error.to_string()))?;
        token_in(&body).map_err(|reason| unavailable(realm, reason.to_owned()))
    }

    fn realm(&self) -> Result<Url, AuthError> {
        let refused = |reason: String| unavailable("its realm", reason);
        let url = Url::parse(self.realm).map_err(|_| refused("the realm is not a URL".into()))?;
        // An answer over TLS must not get the password sent in clear text.
        let allowed = match self.scheme {
            Scheme::Https => url.scheme() == "https",
            Scheme::Http => matches!(url.scheme(), "http" | "https"),
        };
        if !allowed || !url.username().is_empty() || url.password().is_some() {
            let scheme = cut(url.scheme(), NAME_BYTES);
            return Err(refused(format!(
                "the realm's scheme {scheme:?} is not allowed here"
            )));
        }
        match forbidden_host(&url) {
            Some(address) if !self.transport.is_own_origin(&url) => Err(refused(format!(
                "the realm is at {address}, a link-local or cloud metadata address"
            ))),
            _ => Ok(url),
        }
    }

    /// A form with all scopes in one field (`auth/oauth.md`).
    fn form(&self, realm: Url, refresh_token: &str) -> RequestBuilder {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token")
            .append_pair("client_id", CLIENT_ID);
        if let Some(service) = self.service {
            form.append_pair("service", service);
        }
        form.append_pair("scope", &self.scopes.join(" "))
            .append_pair("refresh_token", refresh_token);
        self.transport
            .http_for(&realm)
            .post(realm)
            .header(header::CONTENT_TYPE, FORM_URLENCODED)
            .body(form.finish())
    }

    /// The URL of a GET, with one `scope` parameter for each scope (`auth/token.md`).
    fn with_query(&self, mut realm: Url) -> Url {
        {
            let mut query = realm.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            for scope in self.scopes {
                query.append_pair("scope", scope);
            }
        }
        realm
    }
}

/// The target of a redirect, which gets the credentials: `None` for another server. Only the step
/// from HTTP to HTTPS may change the port.
fn next_hop(from: &Url, response: &Response) -> Option<Url> {
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    let to = from.join(location).ok()?;
    let is_upgrade = from.scheme() == "http" && to.scheme() == "https" && to.host() == from.host();
    (to.origin() == from.origin() || is_upgrade).then_some(to)
}

fn unavailable(realm: &str, reason: String) -> AuthError {
    AuthError::Token {
        realm: realm.to_owned(),
        reason,
        failure: TokenFailure::Unavailable,
    }
}

/// The header and the time for which it can be used, from the answer of a token server. Of `token`
/// and `access_token`, which mean the same, the first that is not empty.
pub(super) fn token_in(body: &[u8]) -> Result<(HeaderValue, Duration), &'static str> {
    let answer: TokenAnswer =
        serde_json::from_slice(body).map_err(|_| "the answer is not a token")?;
    let token = [&answer.token, &answer.access_token]
        .into_iter()
        .filter_map(Value::as_str)
        .find(|token| !token.is_empty())
        .ok_or("the answer holds no usable token")?;
    let value = secret_header(&format!("Bearer {token}"))
        .map_err(|_| "the answer holds no usable token")?;
    let lifetime = lifetime(&answer.expires_in);
    Ok((value, lifetime - EXPIRY_MARGIN.min(lifetime / 5)))
}

/// `expires_in` in seconds: a number or text, with or without a fraction. Zero, a negative number
/// and what is no number count as absent: a token that was valid for no time would not be issued.
fn lifetime(expires_in: &Value) -> Duration {
    let seconds = match expires_in {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    let seconds = seconds.filter(|seconds| *seconds > 0.0);
    seconds.map_or(DEFAULT_TOKEN_LIFETIME, |seconds| {
        Duration::try_from_secs_f64(seconds)
            .unwrap_or(MAX_TOKEN_LIFETIME)
            .min(MAX_TOKEN_LIFETIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<(String, f64), &'static str> {
        let (value, lifetime) = token_in(body.as_bytes())?;
        assert!(value.is_sensitive());
        Ok((value.to_str().unwrap().to_owned(), lifetime.as_secs_f64()))
    }

    #[test]
    fn expires_in_is_a_number_or_text_and_what_makes_no_sense_is_60_seconds() {
        for (expires_in, usable) in [
            ("300", 295.0),
            ("\"300\"", 295.0),
            ("\" 300 \"", 295.0),
            ("300.5", 295.5),
            ("\"300.5\"", 295.5),
            ("3e2", 295.0),
            ("5", 4.0),
            ("0.5", 0.4),
            ("0", 55.0),
            ("-1", 55.0),
            ("\"0\"", 55.0),
            ("\"-300\"", 55.0),
            ("-0.0", 55.0),
            ("null", 55.0),
            ("true", 55.0),
            ("[]", 55.0),
            ("\"\"", 55.0),
            ("\"soon\"", 55.0),
            ("\"NaN\"", 55.0),
            ("\"-inf\"", 55.0),
            ("\"inf\"", 86_395.0),
            ("18446744073709551615", 86_395.0),
            ("1e300", 86_395.0),
        ] {
            let body = format!(r#"{{"token": "t", "expires_in": {expires_in}}}"#);
            let (_, lifetime) = read(&body).unwrap();
            assert!((lifetime - usable).abs() < 1e-6, "{expires_in}: {lifetime}");
        }
        assert_eq!(read(r#"{"token": "t"}"#), Ok(("Bearer t".to_owned(), 55.0)));
    }

    #[test]
    fn of_token_and_access_token_the_one_that_is_not_empty_counts() {
        for (body, token) in [
            (r#"{"token": "t"}"#, Some("t")),
            (r#"{"access_token": "a"}"#, Some("a")),
            (r#"{"token": "", "access_token": "a"}"#, Some("a")),
            (r#"{"token": null, "access_token": "a"}"#, Some("a")),
            (r#"{"token": 5, "access_token": "a"}"#, Some("a")),
            (r#"{"token": "t", "access_token": ""}"#, Some("t")),
            (r#"{"token": "t", "access_token": "a"}"#, Some("t")),
            (r#"{"token": "", "access_token": ""}"#, None),
            (r#"{"token": "a\nb"}"#, None),
            (r#"{}"#, None),
            (r#"[]"#, None),
            ("", None),
        ] {
            let read = read(body).ok().map(|(value, _)| value);
            assert_eq!(read, token.map(|token| format!("Bearer {token}")), "{body}");
        }
    }
}
