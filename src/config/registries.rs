//! `registries`.

use std::{collections::BTreeMap, time::Duration};

use url::Url;

use super::{
    credentials,
    files::Base,
    problem::Problem,
    proxy, raw,
    values::{Period, word},
};
use crate::registry::{
    ClientCertificate, ClientCertificateError, FileState, Options, Scheme, Timeouts, TlsTrust,
    is_same_registry,
};

/// Reads all of `registries`.
pub(super) fn read(
    raw: BTreeMap<String, raw::Registry>,
    base: Base<'_>,
) -> Result<BTreeMap<String, Options>, Problem> {
    raw.into_iter()
        .map(|(host, registry)| {
            check_host(&host)
                .and_then(|()| options(&host, registry, base))
                .map_err(|problem| problem.at(&host))
                .map(|o| (host, o))
        })
        .collect()
}

fn options(host: &str, raw: raw::Registry, base: Base<'_>) -> Result<Options, Problem> {
    let scheme = raw
        .scheme
        .as_deref()
        .map_or(Ok(Scheme::Https), |text| word(text, &SCHEMES))
        .map_err(|problem| problem.at("scheme"))?;
    let extra_roots = match &raw.ca_file {
        Some(_) if scheme == Scheme::Http => {
            return Err(Problem::new(
                "plain HTTP has no certificates; remove `ca_file` or `scheme: http`",
            )
            .at("ca_file"));
        }
        Some(path) => base.roots(path).map_err(|problem| problem.at("ca_file"))?,
        None => Vec::new(),
    };
    let client_certificate = client_certificate(&raw, scheme, base)?;
    let credentials = raw
        .credentials
        .map(|raw| credentials::read(host, raw, base))
        .transpose();
    let options = Options {
        scheme,
        extra_roots,
        tls: TlsTrust::Verified,
        credentials: credentials.map_err(|problem| problem.at("credentials"))?,
        client_certificate,
        proxy: proxy::read(raw.proxy, base).map_err(|problem| problem.at("proxy"))?,
        max_concurrent: max_concurrent(raw.max_concurrent)
            .map_err(|problem| problem.at("max_concurrent"))?,
        request_interval: request_interval(raw.max_requests_per_second)
            .map_err(|problem| problem.at("max_requests_per_second"))?,
        timeouts: timeouts(&raw.timeouts).map_err(|problem| problem.at("timeouts"))?,
        mirrors: mirrors(host, raw.mirrors).map_err(|problem| problem.at("mirrors"))?,
        file_state: FileState::default(),
    };
    let contents: Vec<_> = options
        .files()
        .into_iter()
        .map(|file| base.readable(file))
        .collect();
    Ok(Options {
        file_state: FileState::of(&contents),
        ..options
    })
}

/// Reads both files once, so that a wrong path or pair fails the start and not the first poll.
fn client_certificate(
    raw: &raw::Registry,
    scheme: Scheme,
    base: Base<'_>,
) -> Result<Option<ClientCertificate>, Problem> {
    let missing = |key| Err(Problem::new("missing; write it").at(key));
    let (certificate, key) = match (&raw.client_certificate, &raw.client_key) {
        (None, None) => return Ok(None),
        (Some(_), None) => return missing("client_key"),
        (None, Some(_)) => return missing("client_certificate"),
        (Some(certificate), Some(key)) => (certificate, key),
    };
    let at = |key: &'static str| move |problem: Problem| problem.at(key);
    if scheme == Scheme::Http {
        let message =
            "plain HTTP has no certificates; remove `client_certificate` or `scheme: http`";
        return Err(at("client_certificate")(Problem::new(message)));
    }
    let files = ClientCertificate {
        certificate: base.path(certificate).map_err(at("client_certificate"))?,
        key: base.path(key).map_err(at("client_key"))?,
    };
    let (certificate, key) = (base.bytes(certificate), base.bytes(key));
    certificate.map_err(at("client_certificate"))?;
    key.map_err(at("client_key"))?;
    files.check().map_err(|error| match error {
        ClientCertificateError::Certificate(reason) => {
            at("client_certificate")(Problem::new(reason))
        }
        ClientCertificateError::Key(reason) => at("client_key")(Problem::new(reason)),
    })?;
    Ok(Some(files))
}

fn max_concurrent(raw: Option<usize>) -> Result<usize, Problem> {
    match raw {
        None => Ok(Options::default().max_concurrent),
        Some(count) if (1..=MAX_CONCURRENT).contains(&count) => Ok(count),
        Some(_) => Err(Problem::new(format!(
            "a registry gets 1 to {MAX_CONCURRENT} requests at a time; write a number of these"
        ))),
    }
}

/// The time between two requests.
fn request_interval(raw: Option<f64>) -> Result<Option<Duration>, Problem> {
    match raw {
        None => Ok(None),
        Some(rate) if (MIN_RATE..=MAX_RATE).contains(&rate) => {
            Ok(Some(Duration::from_secs_f64(rate.recip())))
        }
        Some(_) => Err(Problem::new(format!(
            "not between {MIN_RATE} and {MAX_RATE}; write a number of these such as 10 or 0.5, or \
             remove the key for no limit"
        ))),
    }
}

/// The most mirrors of one registry: each may cost its timeouts before the next one is asked.
pub(super) const MAX_MIRRORS: usize = 8;

fn mirrors(host: &str, mirrors: Vec<String>) -> Result<Vec<String>, Problem> {
    if mirrors.len() > MAX_MIRRORS {
        let count = mirrors.len();
        return Err(Problem::new(format!(
            "{count} are too many; name at most {MAX_MIRRORS}"
        )));
    }
    for (index, mirror) in mirrors.iter().enumerate() {
        let at = |problem: Problem| problem.at_index(index);
        if let Some((_, rest)) = mirror.split_once("://") {
            let rest = rest.trim_end_matches('/');
            return Err(at(Problem::new(format!(
                "name the mirror by host and port only; write `{rest}`, and its scheme in \
                 `registries.{rest}.scheme`"
            ))));
        }
        check_host(mirror).map_err(at)?;
        if is_same_registry(mirror, host) {
            let message = format!(
                "{mirror} is the registry itself, which is asked after its mirrors; remove it"
            );
            return Err(at(Problem::new(message)));
        }
        let before = mirrors.iter().take(index);
        if before.into_iter().any(|one| is_same_registry(one, mirror)) {
            return Err(at(Problem::new(format!(
                "{mirror} is named twice; remove one"
            ))));
        }
    }
    Ok(mirrors)
}

fn timeouts(raw: &raw::Timeouts) -> Result<Timeouts, Problem> {
    let default = Timeouts::default();
    let one = |time: Option<Period>, key: &str, default: Duration| {
        time.map_or(Ok(default), |time| time.at_least(MIN_TIMEOUT, "5s"))
            .map_err(|problem| problem.at(key))
    };
    Ok(Timeouts {
        connect: one(raw.connect, "connect", default.connect)?,
        read: one(raw.read, "read", default.read)?,
        total: one(raw.total, "total", default.total)?,
    })
}

/// Checks `host[:port]`, which must be possible in a reference.
fn check_host(host: &str) -> Result<(), Problem> {
    if let Some((scheme, rest)) = host.split_once("://") {
        let rest = rest.trim_end_matches('/');
        let hint = match scheme {
            "http" => format!("write `{rest}: {{ scheme: http }}`"),
            _ => format!("write `{rest}`"),
        };
        return Err(Problem::new(format!(
            "name the registry by host and port only; {hint}"
        )));
    }
    let malformed =
        || Problem::new("not a HOST or HOST:PORT; write one such as `registry.lan:5000`");
    if host.contains(['/', '@', '?', '#', '\\'])
        || host
            .chars()
            .any(|char| char.is_whitespace() || char.is_control())
    {
        return Err(malformed());
    }
    let url = Url::parse(&format!("https://{host}/")).map_err(|_| malformed())?;
    if url.host_str().is_none_or(str::is_empty) || host.ends_with(':') {
        return Err(malformed());
    }
    // The rule that separates host and repository in a reference.
    if !(host.contains(['.', ':']) || host == "localhost") {
        return Err(Problem::new(format!(
            "no reference can name this host; write it with its port, such as `{host}:443`"
        )));
    }
    Ok(())
}

/// The words of `scheme`; the first is the default.
pub(super) const SCHEMES: [(&str, Scheme); 2] = [("https", Scheme::Https), ("http", Scheme::Http)];
pub(super) const MIN_TIMEOUT: Duration = Duration::from_millis(100);
/// The maximum number of requests to one host at a time.
pub(super) const MAX_CONCURRENT: usize = 1024;
/// The minimum number of requests in a second: one in a hundred seconds.
pub(super) const MIN_RATE: f64 = 0.01;
/// The maximum number of requests in a second; timers have a resolution of a millisecond.
pub(super) const MAX_RATE: f64 = 1000.0;
