//! Converts documents to values of the built-in evaluator. It represents integers of any size, and
//! other numbers in IEEE 754; a number that it would change is refused.

use std::collections::BTreeMap;

use regorus::{QueryResults, Value};
use serde::{Serialize, Serializer, ser::Error as _};
use serde_json::{json, value::RawValue};

use super::{
    document::{Detail, Document, DocumentError, Part, is_json},
    json::{JsonReader, Token},
};

/// The maximum depth of a value: the evaluator is recursive.
const MAX_DEPTH: usize = 512;
/// The maximum number of digits of an integer that is written with an exponent.
const MAX_DIGITS: i64 = 10_000;

/// Parses a data file or an input that the evaluator can represent exactly.
///
/// # Errors
/// When it can't, or OPA would refuse the file; begins with `LINE:COLUMN` if that is known.
pub(super) fn read_exact(name: &str, content: &[u8]) -> Result<Document, String> {
    let document = Document::of_file(name, content, Detail::Values)
        .map_err(|error: DocumentError| error.to_string())?;
    let is_text = name.ends_with(".json") || is_json(content);
    match inexact_number(content).filter(|_| is_text) {
        Some((line, column, number)) => {
            let number: String = number.chars().take(80).collect();
            Err(format!(
                "{line}:{column}: the built-in evaluator can't represent the number {number} exactly; use a real opa (opa eval -b)"
            ))
        }
        None => Ok(document),
    }
}

/// Converts a document to a value.
///
/// # Errors
/// When it is nested too deeply.
pub(super) fn value_of(document: &Document) -> Result<Value, String> {
    of_part(document.root(), MAX_DEPTH)
}

/// The results of a query, serialised as by `opa eval`.
#[derive(Debug)]
pub struct Answers(pub QueryResults);

/// A value that is serialised with all digits of its integers. The evaluator's own serialisation
/// rounds integers of more than 64 bits.
#[derive(Debug)]
pub struct Exact<'a>(pub &'a Value);

impl Serialize for Exact<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Number(number)
                if number
                    .as_f64()
                    .is_some_and(|float| float == 0.0 && float.is_sign_negative()) =>
            {
                serializer.serialize_f64(-0.0)
            }
            Value::Number(number) if number.is_integer() => {
                RawValue::from_string(number.format_decimal())
                    .map_err(S::Error::custom)?
                    .serialize(serializer)
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Exact)),
            Value::Set(items) => serializer.collect_seq(items.iter().map(Exact)),
            Value::Object(members) => {
                serializer.collect_map(members.iter().map(|(key, member)| {
                    let key = key
                        .as_string()
                        .map_or_else(|_| Exact(key).to_string(), ToString::to_string);
                    (key, Exact(member))
                }))
            }
            value => value.serialize(serializer),
        }
    }
}

impl std::fmt::Display for Exact<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| std::fmt::Error)?)
    }
}

impl Serialize for Answers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Answer<'a> {
            expressions: Vec<Expression<'a>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            bindings: Option<Exact<'a>>,
        }
        #[derive(Serialize)]
        struct Expression<'a> {
            value: Exact<'a>,
            text: &'a str,
            location: serde_json::Value,
        }
        let answers = self.0.result.iter().map(|answer| Answer {
            expressions: answer
                .expressions
                .iter()
                .map(|expression| Expression {
                    value: Exact(&expression.value),
                    text: &expression.text,
                    location: json!({ "row": expression.location.row, "col": expression.location.col }),
                })
                .collect(),
            bindings: Some(Exact(&answer.bindings))
                .filter(|bindings| bindings.0.as_object().is_ok_and(|members| !members.is_empty())),
        });
        let answers: Vec<_> = answers.collect();
        serializer.collect_map((!answers.is_empty()).then_some(("result", answers)))
    }
}

fn of_part(part: Part<'_>, depth: usize) -> Result<Value, String> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(format!(
            "nested more than {MAX_DEPTH} levels deep, too deep for the built-in evaluator; use a real opa (opa eval -b)"
        ));
    };
    Ok(match part {
        Part::Null => Value::Null,
        Part::Bool(value) => Value::from(value),
        // Negative zero exists in IEEE 754 and in the text that OPA keeps.
        Part::Number(text) if is_negative_zero(text) => Value::from(-0.0),
        Part::Number(text) => {
            Value::from_numeric_string(text).map_err(|error| error.to_string())?
        }
        Part::String(text) => Value::from(text),
        Part::Array(items) => Value::from(
            items
                .map(|item| of_part(item, depth))
                .collect::<Result<Vec<_>, _>>()?,
        ),
        Part::Object(members) => {
            let members =
                members.map(|(key, member)| Ok((Value::from(key), of_part(member, depth)?)));
            Value::from(members.collect::<Result<BTreeMap<_, _>, String>>()?)
        }
    })
}

/// The first number of a JSON document that the evaluator would change, with its position. The
/// numbers of YAML are floats and integers already.
fn inexact_number(content: &[u8]) -> Option<(u64, u64, String)> {
    let mut reader = JsonReader::new(content);
    loop {
        let number = match reader.next() {
            Ok(Some(Token::Number(text))) if !is_exact(text) => text.to_owned(),
            Ok(Some(_)) => continue,
            Ok(None) | Err(_) => return None,
        };
        let (line, column) = reader.position();
        return Some((line, column.saturating_sub(number.len() as u64), number));
    }
}

fn is_negative_zero(text: &str) -> bool {
    text.starts_with('-') && Decimal::of(text).is_some_and(|decimal| decimal.digits.is_empty())
}

fn is_exact(text: &str) -> bool {
    let Some(decimal) = Decimal::of(text) else {
        return false;
    };
    if decimal.exponent >= 0 {
        return decimal.digits.len() as i64 + decimal.exponent <= MAX_DIGITS
            || !text.contains(['e', 'E', '.']);
    }
    let Ok(float) = text.parse::<f64>() else {
        return false;
    };
    // The shortest text of the float, which reproduces a decimal of up to 15 digits.
    Decimal::of(&format!("{float:e}")).is_some_and(|other| other == decimal)
}

/// A decimal number: digits without leading and trailing zeros, times a power of ten.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    digits: String,
    exponent: i64,
}

impl Decimal {
    fn of(text: &str) -> Option<Self> {
        let text = text.trim_start_matches('-');
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let exponent: i64 = exponent.trim_start_matches('+').parse().ok()?;
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let significant = digits.trim_end_matches('0');
        let dropped = i64::try_from(digits.len() - significant.len()).ok()?;
        let significant = significant.trim_start_matches('0').to_owned();
        if significant.is_empty() {
            return Some(Self {
                digits: significant,
                exponent: 0,
            });
        }
        let exponent = exponent
            .checked_sub(i64::try_from(fraction.len()).ok()?)?
            .checked_add(dropped)?;
        Some(Self {
            digits: significant,
            exponent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(json: &str) -> Result<String, String> {
        Ok(Exact(&value_of(&read_exact("data.json", json.as_bytes())?)?).to_string())
    }

    #[test]
    fn numbers_that_can_be_represented_are_kept() {
        for text in [
            "0",
            "-1",
            "12345678901234567890123456789",
            "1.5",
            "0.1",
            "1.10",
            "123456.789",
            "5e-324",
            "0.0",
        ] {
            round_trip(&format!("[{text}]")).unwrap();
        }
        assert_eq!(
            round_trip("[12345678901234567890123456789]").unwrap(),
            "[12345678901234567890123456789]"
        );
        assert_eq!(round_trip("[-0, -0.0, 0]").unwrap(), "[-0.0,-0.0,0]");
        assert!(
            round_trip("[1e400]")
                .unwrap()
                .contains(&format!("1{}", "0".repeat(400)))
        );
    }

    #[test]
    fn numbers_that_would_change_are_refused_with_their_position() {
        let error = round_trip("{\n \"a\": 0.12345678901234567890}").unwrap_err();
        assert!(error.starts_with("2:7: "), "{error}");
        for text in [
            "1e-400",
            "1e999999999",
            "3.14159265358979323846",
            "1e-9999999999999999999",
            "1.0e99999",
        ] {
            assert!(round_trip(&format!("[{text}]")).is_err(), "{text}");
        }
    }

    #[test]
    fn values_that_are_nested_too_deeply_are_refused() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        round_trip(&nested(MAX_DEPTH)).unwrap();
        assert!(
            round_trip(&nested(MAX_DEPTH + 1))
                .unwrap_err()
                .contains("nested")
        );
    }
}
