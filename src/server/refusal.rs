//! Why a request is refused: its message, its metric label, and a log line at a bounded rate.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    access::TokenError,
    telemetry::{NAME_BYTES, SENTENCE_BYTES, cut},
};

/// Refusals of one client or address are logged once in this time.
const LOG_WINDOW: Duration = Duration::from_secs(60);
/// All log lines about refusals in that time.
const MAX_LINES: usize = 200;

/// Why a request is unauthorized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// There is no credential, and the bundle is not public.
    Missing,
    /// The scheme of `Authorization` is accepted nowhere, or is that of no configured client.
    Scheme,
    /// A signature of AWS.
    AwsSignature,
    /// The credential can't be decoded.
    Malformed,
    UnknownToken,
    /// The user does not exist, or has another password.
    WrongPassword,
    /// The certificate has expired since the connection began.
    ExpiredCertificate,
    /// The certificate has the name of no client.
    UnknownCertificate,
    /// The token is no client's.
    Jwt(TokenError),
}

/// The kinds of credentials that some client has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AcceptedKinds {
    pub(super) bearer: bool,
    pub(super) basic: bool,
    pub(super) certificate: bool,
    pub(super) jwt: bool,
}

/// Limits the log lines about refused requests.
#[derive(Debug)]
pub(super) struct RefusalLog(Mutex<Lines>);

/// The lines since a time.
#[derive(Debug)]
struct Lines {
    since: Instant,
    logged: HashSet<(IpAddr, String)>,
}

impl Reason {
    /// The value of the label `reason`.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Scheme => "scheme",
            Self::AwsSignature => "aws_signature",
            Self::Malformed => "malformed",
            Self::UnknownToken => "token",
            Self::WrongPassword => "password",
            Self::ExpiredCertificate => "certificate_expired",
            Self::UnknownCertificate => "certificate",
            Self::Jwt(error) => match error {
                TokenError::Malformed => "jwt_malformed",
                TokenError::Algorithm => "jwt_algorithm",
                TokenError::Issuer => "jwt_issuer",
                TokenError::NoKeys => "jwt_no_keys",
                TokenError::UnknownKey => "jwt_key",
                TokenError::Signature => "jwt_signature",
                TokenError::Expired => "jwt_expired",
                TokenError::NotYetValid => "jwt_not_yet_valid",
                TokenError::Audience => "jwt_audience",
                TokenError::Claim => "jwt_claim",
            },
        }
    }

    /// The sentence for the client and the log. It has no part of the request.
    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Missing => "no credential",
            Self::Scheme => "the scheme of Authorization is not supported",
            Self::AwsSignature => "requests signed for AWS are not supported",
            Self::Malformed => "the credential is malformed",
            Self::UnknownToken => "unknown bearer token",
            Self::WrongPassword => "unknown user or wrong password",
            Self::ExpiredCertificate => "the client certificate is not valid any more",
            Self::UnknownCertificate => "the client certificate has the name of no client",
            Self::Jwt(error) => match error {
                TokenError::Malformed => "the token is malformed",
                TokenError::Algorithm => "the algorithm of the token is not accepted",
                TokenError::Issuer => "the issuer of the token is not accepted",
                TokenError::NoKeys => "the keys of the token's issuer are not known at present",
                TokenError::UnknownKey => "the token's issuer has no such key",
                TokenError::Signature => "the signature of the token is wrong",
                TokenError::Expired => "the token has expired",
                TokenError::NotYetValid => "the token is not valid yet",
                TokenError::Audience => "the token is for another audience",
                TokenError::Claim => "a claim of the token does not match",
            },
        }
    }
}

impl AcceptedKinds {
    /// The values of `WWW-Authenticate`. There is at least one, as RFC 9110 requires.
    pub(super) fn challenges(self) -> impl Iterator<Item = &'static str> {
        let bearer = (self.bearer || self.jwt || !self.basic).then_some("Bearer");
        let basic = self
            .basic
            .then_some("Basic realm=\"bundlegate\", charset=\"UTF-8\"");
        bearer.into_iter().chain(basic)
    }

    /// The kinds in words.
    pub(super) fn words(self) -> String {
        let words = [
            (self.bearer, "a bearer token"),
            (self.jwt, "a JWT of a configured issuer as bearer token"),
            (self.basic, "a user name and password (Basic)"),
            (self.certificate, "a client certificate"),
        ];
        let words: Vec<_> = words
            .into_iter()
            .filter_map(|(is_accepted, word)| is_accepted.then_some(word))
            .collect();
        match words.as_slice() {
            [] => "no credential".to_owned(),
            words => words.join(" or "),
        }
    }
}

impl Default for RefusalLog {
    fn default() -> Self {
        Self(Mutex::new(Lines {
            since: Instant::now(),
            logged: HashSet::new(),
        }))
    }
}

impl RefusalLog {
    /// Logs an unauthorized request.
    pub(super) fn unauthorized(&self, reason: Reason, bundle: &str, address: IpAddr) {
        if self.admits(address, reason.label()) {
            let (bundle, reason) = (cut(bundle, NAME_BYTES), reason.sentence());
            tracing::warn!(%address, %bundle, reason, "unauthorized request");
        }
    }

    /// Logs a request of a known client for a bundle that it may not read.
    pub(super) fn not_permitted(&self, client: &str, bundle: &str, address: IpAddr) {
        if self.admits(address, client) {
            let bundle = cut(bundle, NAME_BYTES);
            tracing::warn!(client, %address, %bundle, "the client may not read this name");
        }
    }

    /// Logs a client certificate that was refused in the handshake.
    pub(super) fn certificate(&self, reason: &rustls::Error, address: IpAddr) {
        if self.admits(address, "handshake") {
            let reason = reason.to_string();
            let reason = &*cut(&reason, SENTENCE_BYTES);
            tracing::warn!(%address, reason, "client certificate refused");
        }
    }

    /// Logs a request to the admin API that may change nothing, for this reason.
    pub(super) fn admin_request(&self, reason: &str, path: &str, address: IpAddr) {
        if self.admits(address, reason) {
            let path = cut(path, NAME_BYTES);
            tracing::warn!(%address, %path, reason, "request to the admin listener refused");
        }
    }

    /// Logs that too many passwords are being checked.
    pub(super) fn too_many_attempts(&self, address: IpAddr) {
        if self.admits(address, "attempts") {
            tracing::warn!(%address, "too many unknown passwords at a time; some are not checked");
        }
    }

    /// Whether there may be a line about this subject now.
    fn admits(&self, address: IpAddr, subject: &str) -> bool {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.since.elapsed() >= LOG_WINDOW {
            lines.since = Instant::now();
            lines.logged.clear();
        }
        lines.logged.len() < MAX_LINES && lines.logged.insert((address, subject.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_a_minute_for_each_address_and_reason_and_so_many_in_all() {
        let log = RefusalLog::default();
        let address = |number: u32| IpAddr::from(Ipv4Addr::from(number));
        assert!(log.admits(address(1), "token"));
        assert!(!log.admits(address(1), "token"));
        assert!(log.admits(address(1), "password"));
        let admitted = (2..1000).filter(|number| log.admits(address(*number), "token"));
        assert_eq!(admitted.count(), MAX_LINES - 2);
        advance(LOG_WINDOW).await;
        assert!(log.admits(address(1), "token"));
    }

    #[test]
    fn a_401_names_what_is_accepted() {
        let kinds = |bearer, basic| AcceptedKinds {
            bearer,
            basic,
            ..AcceptedKinds::default()
        };
        let challenges = |kinds: AcceptedKinds| kinds.challenges().collect::<Vec<_>>();
        let basic = "Basic realm=\"bundlegate\", charset=\"UTF-8\"";
        assert_eq!(challenges(kinds(true, false)), ["Bearer"]);
        assert_eq!(challenges(kinds(false, true)), [basic]);
        assert_eq!(challenges(kinds(true, true)), ["Bearer", basic]);
        // RFC 9110 requires one.
        assert_eq!(challenges(kinds(false, false)), ["Bearer"]);
        let words = kinds(true, true).words();
        assert_eq!(words, "a bearer token or a user name and password (Basic)");
        assert_eq!(kinds(false, false).words(), "no credential");
        let all = AcceptedKinds {
            certificate: true,
            ..kinds(true, true)
        };
        assert!(all.words().ends_with("(Basic) or a client certificate"));
    }
}
