//! Parses numbers as go-yaml does, and writes them as Go does.

use std::borrow::Cow;

use super::scalar::Scalar;

/// Parses an integer or a float that starts with a digit or a sign. Underscores are ignored
/// anywhere; a text that overflows is not a number.
pub(super) fn parse(text: &str) -> Option<Scalar> {
    let plain: Cow<'_, str> = if text.contains('_') {
        text.replace('_', "").into()
    } else {
        text.into()
    };
    integer_with_prefix(&plain)
        .or_else(|| {
            is_float(plain.as_bytes())
                .then(|| finite(&plain).map(Scalar::Float))
                .flatten()
        })
        .or_else(|| signed_after_prefix(&plain, "0b", 2))
        .or_else(|| signed_after_prefix(&plain, "0o", 8))
}

/// Parses a float that starts with a dot. Underscores may separate digits.
pub(super) fn parse_fraction(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at))
            .is_some_and(u8::is_ascii_digit)
    };
    let separates = |at: usize| is_digit(at.checked_sub(1)) && is_digit(at.checked_add(1));
    if bytes
        .iter()
        .enumerate()
        .any(|(at, byte)| *byte == b'_' && !separates(at))
    {
        return None;
    }
    let plain = text.replace('_', "");
    is_float(plain.as_bytes()).then(|| finite(&plain)).flatten()
}

/// The float nearest to an integer.
pub(super) fn to_float(int: i64) -> f64 {
    int as f64
}

/// A float as Go's encoding/json writes it; `None` for infinity and NaN.
pub(super) fn to_json(float: f64) -> Option<String> {
    let size = float.abs();
    if !float.is_finite() {
        return None;
    }
    if size == 0.0 || (1e-6..1e21).contains(&size) {
        return Some(float.to_string());
    }
    let (digits, exponent) = split_exponent(&format!("{float:e}"));
    // Go writes `e-7`, and `e+21` with a sign.
    let sign = if exponent < 0 { "" } else { "+" };
    Some(format!("{digits}e{sign}{exponent}"))
}

/// A float as go-yaml writes a mapping key: with the precision of 32 bits.
pub(super) fn to_key(float: f64) -> String {
    let short = float as f32;
    if short.is_nan() {
        return ".nan".to_owned();
    }
    if short.is_infinite() {
        return if short > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let (digits, exponent) = split_exponent(&format!("{short:e}"));
    if short == 0.0 || (-4..6).contains(&exponent) {
        return short.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn split_exponent(float: &str) -> (String, i32) {
    let (digits, exponent) = float.split_once('e').unwrap_or((float, "0"));
    (digits.to_owned(), exponent.parse().unwrap_or(0))
}

/// An integer with a sign and the prefix of a base: `0x`, `0o`, `0` for octal, `0b`.
fn integer_with_prefix(text: &str) -> Option<Scalar> {
    let (sign, unsigned) = split_sign(text);
    let (digits, base) = match unsigned.as_bytes() {
        [b'0', b'x' | b'X', _, ..] => (&unsigned[2..], 16),
        [b'0', b'o' | b'O', _, ..] => (&unsigned[2..], 8),
        [b'0', b'b' | b'B', _, ..] => (&unsigned[2..], 2),
        [b'0', _, ..] => (&unsigned[1..], 8),
        _ => (unsigned, 10),
    };
    integer(sign, digits, base)
}

/// go-yaml tries `0b` and `0o` once more as prefixes of a text that may have a sign itself,
/// so that `0b-101` is -5.
fn signed_after_prefix(text: &str, prefix: &str, base: u32) -> Option<Scalar> {
    if let Some(rest) = text.strip_prefix(prefix) {
        let (sign, digits) = split_sign(rest);
        return integer(sign, digits, base);
    }
    let digits = text.strip_prefix('-')?.strip_prefix(prefix)?;
    integer(Some('-'), digits, base)
}

fn split_sign(text: &str) -> (Option<char>, &str) {
    match text.as_bytes().first() {
        Some(b'+') => (Some('+'), &text[1..]),
        Some(b'-') => (Some('-'), &text[1..]),
        _ => (None, text),
    }
}

fn integer(sign: Option<char>, digits: &str, base: u32) -> Option<Scalar> {
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(base)) {
        return None;
    }
    let size = u64::from_str_radix(digits, base).ok()?;
    match sign {
        Some('-') => 0_i64.checked_sub_unsigned(size).map(Scalar::Int),
        _ => match i64::try_from(size) {
            Ok(int) => Some(Scalar::Int(int)),
            Err(_) => sign.is_none().then_some(Scalar::Uint(size)),
        },
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &[u8]) -> bool {
    let text = text
        .strip_prefix(b"+")
        .or_else(|| text.strip_prefix(b"-"))
        .unwrap_or(text);
    let (mantissa, exponent) = match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let is_mantissa = match mantissa.iter().position(|byte| *byte == b'.') {
        Some(0) => is_digits(&mantissa[1..]),
        Some(at) => is_digits(&mantissa[..at]) && mantissa[at + 1..].iter().all(u8::is_ascii_digit),
        None => is_digits(mantissa),
    };
    is_mantissa
        && exponent.is_none_or(|exponent| {
            is_digits(
                exponent
                    .strip_prefix(b"+")
                    .or_else(|| exponent.strip_prefix(b"-"))
                    .unwrap_or(exponent),
            )
        })
}

fn is_digits(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// A float that overflows is not a number in Go; one that underflows is zero.
fn finite(text: &str) -> Option<f64> {
    text.parse().ok().filter(|float: &f64| float.is_finite())
}
