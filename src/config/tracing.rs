//! `tracing`: where traces go, and which are recorded.

use std::path::Path;

use hyper::header::{HeaderName, HeaderValue};
use url::Url;

use super::{files::Base, problem::Problem, raw};
use crate::traces::Options;

/// The path of traces in OTLP over HTTP.
const TRACES_PATH: &str = "/v1/traces";
/// The defaults.
pub(super) const SAMPLE: f64 = 1.0;
pub(super) const SERVICE_NAME: &str = "bundlegate";
const EXAMPLE: &str = "write one such as \"http://collector.example:4318\"";

/// Reads the key; `None` if it is absent.
pub(super) fn read(raw: Option<raw::Tracing>, base: Base<'_>) -> Result<Option<Options>, Problem> {
    raw.map(|raw| options(raw, base)).transpose()
}

fn options(raw: raw::Tracing, base: Base<'_>) -> Result<Options, Problem> {
    let endpoint = endpoint(&raw.endpoint).map_err(|problem| problem.at("endpoint"))?;
    let sample = sample(raw.sample.unwrap_or(SAMPLE)).map_err(|problem| problem.at("sample"))?;
    let service_name = raw.service_name.unwrap_or_else(|| SERVICE_NAME.to_owned());
    if service_name.is_empty() {
        let message = "empty; write a name, or remove the key for `bundlegate`";
        return Err(Problem::new(message).at("service_name"));
    }
    let headers = raw.headers_file.map(|file| headers(&file, base));
    let headers = headers
        .transpose()
        .map_err(|problem| problem.at("headers_file"))?;
    let extra_roots = match raw.ca_file {
        Some(_) if endpoint.scheme() == "http" => {
            let message = "`endpoint` is not https; remove this key, or write https there";
            return Err(Problem::new(message).at("ca_file"));
        }
        Some(file) => base.roots(&file).map_err(|problem| problem.at("ca_file"))?,
        None => Vec::new(),
    };
    Ok(Options {
        endpoint,
        sample,
        service_name,
        headers: headers.unwrap_or_default(),
        extra_roots,
    })
}

fn endpoint(text: &str) -> Result<Url, Problem> {
    let mut url = Url::parse(text)
        .map_err(|error| Problem::new(format!("{text:?} is not a URL ({error}); {EXAMPLE}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Problem::new(format!(
            "{text:?} is neither http nor https: traces are sent by OTLP over HTTP; {EXAMPLE}"
        )));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let message = "a URL with a user would appear in logs; remove the user, and write \
                       `Authorization: …` into `headers_file`";
        return Err(Problem::new(message));
    }
    if url.path() == "/" {
        url.set_path(TRACES_PATH);
    }
    Ok(url)
}

fn sample(share: f64) -> Result<f64, Problem> {
    if (0.0..=1.0).contains(&share) {
        return Ok(share);
    }
    Err(Problem::new(format!(
        "{share} is no share of all requests; write a number from 0 to 1, such as 0.01 for one in a hundred"
    )))
}

/// Reads one header per line. Errors name the line and do not quote it: it may be a secret.
fn headers(file: &Path, base: Base<'_>) -> Result<Vec<(String, String)>, Problem> {
    let text = base.text(file)?;
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let headers = lines.map(|(index, line)| {
        let header = line.split_once(':').and_then(|(name, value)| {
            let (name, value) = (name.trim(), value.trim());
            HeaderName::try_from(name).ok()?;
            HeaderValue::try_from(value).ok()?;
            Some((name.to_owned(), value.to_owned()))
        });
        header.ok_or_else(|| {
            let (file, line) = (file.display(), index + 1);
            Problem::new(format!(
                "{file}: line {line} is not a header; write one per line, as `NAME: VALUE`"
            ))
        })
    });
    headers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_path_has_that_of_traces() {
        for (text, url) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("https://c.example/", "https://c.example/v1/traces"),
            (
                "https://c.example/otlp/v1/traces",
                "https://c.example/otlp/v1/traces",
            ),
        ] {
            assert_eq!(endpoint(text).unwrap().as_str(), url);
        }
    }

    #[test]
    fn a_share_is_from_0_to_1() {
        for share in [0.0, 0.001, 1.0] {
            assert_eq!(sample(share).unwrap(), share);
        }
        for share in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(sample(share).is_err(), "{share}");
        }
    }
}
