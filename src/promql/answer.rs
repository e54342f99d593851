//! Answers of the API.

use reqwest::StatusCode;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::QueryFailure;
use crate::{
    rollout::Sample,
    telemetry::{NAME_BYTES, SENTENCE_BYTES, cut},
};

/// The beginning of a warning about the query, in contrast to one about missing data.
const ANNOTATION: &str = "PromQL ";

/// A successful answer.
#[derive(Debug, Deserialize)]
struct Answer<'a> {
    status: &'a str,
    #[serde(borrow)]
    data: Option<Data<'a>>,
    #[serde(default)]
    warnings: Option<Vec<String>>,
    /// Of VictoriaMetrics: not every storage node has answered.
    #[serde(default, rename = "isPartial")]
    is_partial: bool,
}

#[derive(Debug, Deserialize)]
struct Data<'a> {
    #[serde(rename = "resultType")]
    result_type: String,
    #[serde(borrow)]
    result: &'a RawValue,
}

/// A time and a value.
type Point = (IgnoredAny, String);

/// A series of a vector; one without a value is a native histogram.
#[derive(Debug, Deserialize)]
struct Series {
    value: Option<Point>,
}

/// An error.
#[derive(Debug, Deserialize)]
struct Failure {
    error: String,
}

/// The result in the body of an answer with status 200.
///
/// A result that is known to be incomplete is [`Sample::Ambiguous`]: Prometheus warns when a remote
/// storage has failed, Thanos when a store has.
///
/// # Errors
/// When the body is not an answer of the API.
pub(super) fn sample(body: &[u8]) -> Result<Sample, QueryFailure> {
    let answer: Answer<'_> = serde_json::from_slice(body).map_err(malformed)?;
    let ("success", Some(data)) = (answer.status, answer.data) else {
        return Err(QueryFailure::Malformed("no data".to_owned()));
    };
    let mut warnings = answer.warnings.iter().flatten();
    if let Some(warning) = warnings.find(|warning| !warning.starts_with(ANNOTATION)) {
        let warning = cut(warning, SENTENCE_BYTES);
        return Ok(Sample::Ambiguous(format!(
            "the result may be incomplete: {warning}"
        )));
    }
    if answer.is_partial {
        return Ok(Sample::Ambiguous("the result is incomplete".to_owned()));
    }
    let result = data.result.get();
    match &*data.result_type {
        "scalar" => {
            let (_, value): Point = serde_json::from_str(result).map_err(malformed)?;
            number(&value)
        }
        "vector" => {
            let series: Vec<Series> = serde_json::from_str(result).map_err(malformed)?;
            vector(&series)
        }
        other => {
            let other = cut(other, NAME_BYTES);
            let reason = format!("a {other} instead of a number; write an instant vector");
            Ok(Sample::Ambiguous(reason))
        }
    }
}

fn vector(series: &[Series]) -> Result<Sample, QueryFailure> {
    match series {
        [] => Ok(Sample::NoData),
        [
            Series {
                value: Some((_, value)),
            },
        ] => number(value),
        [Series { value: None }] => {
            let reason = "a native histogram instead of a number".to_owned();
            Ok(Sample::Ambiguous(reason))
        }
        _ => Ok(Sample::Ambiguous(format!(
            "{} series instead of one; aggregate them, as with sum()",
            series.len()
        ))),
    }
}

fn number(text: &str) -> Result<Sample, QueryFailure> {
    match text.parse::<f64>() {
        Ok(value) if value.is_nan() => Ok(Sample::NoData),
        Ok(value) if value.is_finite() => Ok(Sample::Number(value)),
        Ok(_) => Ok(Sample::Ambiguous("an infinite number".to_owned())),
        Err(_) => Err(QueryFailure::Malformed(format!(
            "{:?} is not a number",
            cut(text, NAME_BYTES)
        ))),
    }
}

/// The failure that an answer with another status than 200 means; `body` is `None` if it was not
/// read completely.
pub(super) fn failure(status: StatusCode, body: Option<&[u8]>) -> QueryFailure {
    let failure = body.and_then(|body| serde_json::from_slice::<Failure>(body).ok());
    let detail = match failure {
        Some(failure) => cut(&failure.error, SENTENCE_BYTES).into_owned(),
        None if status.is_redirection() => "redirects are not followed".to_owned(),
        None => String::new(),
    };
    let status = status.as_u16();
    QueryFailure::Status { status, detail }
}

fn malformed(error: serde_json::Error) -> QueryFailure {
    QueryFailure::Malformed(cut(&error.to_string(), SENTENCE_BYTES).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ambiguous(reason: &str) -> Result<Sample, QueryFailure> {
        Ok(Sample::Ambiguous(reason.to_owned()))
    }

    fn vector(series: &str, more: &str) -> String {
        format!(
            r#"{{"status":"success","data":{{"resultType":"vector","result":[{series}]}}{more}}}"#
        )
    }

    #[test]
    fn one_finite_number_is_a_result() {
        let one = |value: &str| format!(r#"{{"metric":{{}},"value":[1796030407.5,"{value}"]}}"#);
        let note = r#","warnings":["PromQL info: metric might not be a counter"],"infos":["x"]"#;
        let partial = "the result may be incomplete: remote_read: no route";
        let histogram = r#"{"metric":{},"histogram":[1,{"count":"1"}]}"#;
        for (body, sample) in [
            (vector(&one("2"), ""), Ok(Sample::Number(2.0))),
            (vector(&one("-1e-9"), ""), Ok(Sample::Number(-1e-9))),
            (vector(&one("2"), note), Ok(Sample::Number(2.0))),
            (
                vector(&one("2"), r#","warnings":null"#),
                Ok(Sample::Number(2.0)),
            ),
            (vector("", ""), Ok(Sample::NoData)),
            (vector(&one("NaN"), ""), Ok(Sample::NoData)),
            (vector(&one("+Inf"), ""), ambiguous("an infinite number")),
            (vector(&one("-Inf"), ""), ambiguous("an infinite number")),
            (
                vector(&format!("{},{}", one("1"), one("NaN")), ""),
                ambiguous("2 series instead of one; aggregate them, as with sum()"),
            ),
            (
                vector(histogram, ""),
                ambiguous("a native histogram instead of a number"),
            ),
            (
                vector(&one("2"), r#","warnings":["remote_read: no route"]"#),
                ambiguous(partial),
            ),
            (
                vector("", r#","isPartial":true"#),
                ambiguous("the result is incomplete"),
            ),
            (
                r#"{"status":"success","data":{"resultType":"new","result":{"a":[]}}}"#.to_owned(),
                ambiguous("a new instead of a number; write an instant vector"),
            ),
        ] {
            assert_eq!(super::sample(body.as_bytes()), sample, "{body}");
        }
    }

    #[test]
    fn what_is_not_an_answer_of_the_api_is_an_error() {
        for body in [
            "",
            "<html>",
            "{}",
            "[]",
            r#"{"status":"success"}"#,
            r#"{"status":"error","error":"x"}"#,
            r#"{"status":"success","data":{"resultType":"scalar","result":[]}}"#,
            r#"{"status":"success","data":{"resultType":"scalar","result":[1,"two"]}}"#,
            r#"{"status":"success","data":{"resultType":"scalar","result":[1,2]}}"#,
            r#"{"status":"success","data":{"resultType":"vector","result":{}}}"#,
        ] {
            let result = sample(body.as_bytes());
            assert!(
                matches!(result, Err(QueryFailure::Malformed(_))),
                "{body}: {result:?}"
            );
        }
        let deep = format!(
            r#"{{"status":"success","data":{{"resultType":"vector","result":{}"#,
            "[".repeat(1 << 20)
        );
        assert!(sample(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_status_is_an_error_with_the_text_of_prometheus() {
        let long = format!(r#"{{"status":"error","error":"{}"}}"#, "x".repeat(1 << 16));
        for (status, body, text) in [
            (
                422,
                Some(r#"{"status":"error","errorType":"execution","error":"too many samples"}"#),
                "HTTP 422: too many samples",
            ),
            (502, Some("<html>"), "HTTP 502"),
            (500, None, "HTTP 500"),
            (302, Some(""), "HTTP 302: redirects are not followed"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(failure(status, body.map(str::as_bytes)).to_string(), text);
        }
        let text = failure(StatusCode::BAD_REQUEST, Some(long.as_bytes())).to_string();
        assert!(text.len() < SENTENCE_BYTES + 20, "{}", text.len());
    }
}
