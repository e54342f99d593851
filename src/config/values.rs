//! Durations, sizes, addresses and globs as people write them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use globset::{GlobBuilder, GlobSet};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, de::Visitor};

use super::problem::Problem;

/// `30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time(pub(super) Duration);

/// `2027-01-01T00:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(pub(super) Timestamp);

/// `64MiB`; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub(super) u64);

impl Size {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// `":8443"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(pub(super) SocketAddr);

impl Time {
    /// The duration if it is at least `least`.
    pub(super) fn at_least(self, least: Duration, example: &str) -> Result<Duration, Problem> {
        if self.0 < least {
            let (this, least) = (humantime::format_duration(self.0), humantime::format_duration(least));
            return Err(Problem::new(format!(
                "{this} is below the minimum of {least}; write a longer time, such as {example}"
            )));
        }
        Ok(self.0)
    }

    /// The duration if it is at most `most`.
    pub(super) fn at_most(self, most: Duration, why: &str) -> Result<Duration, Problem> {
        if self.0 > most {
            let (this, most) = (humantime::format_duration(self.0), humantime::format_duration(most));
            return Err(Problem::new(format!("{this} is above the maximum of {most} ({why}); write {most} or less")));
        }
        Ok(self.0)
    }
}

impl std::str::FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no duration; write a whole number with its unit, such as {TIME_EXAMPLE}");
        let (number, unit) = split_unit(text).ok_or_else(wrong)?;
        let factor = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 3600 * 1000,
            "" => return Err(format!("{text:?} has no unit; write {number}s or {number}ms")),
            _ => return Err(wrong()),
        };
        // A bound keeps every later sum of times within range.
        match number.checked_mul(factor) {
            Some(millis) if millis <= LONGEST_HOURS * 3600 * 1000 => Ok(Self(Duration::from_millis(millis))),
            _ => Err(format!("{text:?} is above the maximum of {LONGEST_HOURS}h; write a shorter time")),
        }
    }
}

impl std::str::FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no moment; write one with its zone, such as {MOMENT_EXAMPLE}");
        // A weekday or a named zone could contradict the rest.
        if text.contains(['[', ' ']) {
            return Err(wrong());
        }
        text.parse().map(Self).map_err(|_| wrong())
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size; write a whole number with its unit, such as {SIZE_EXAMPLE}");
        let (number, unit) = split_unit(text).ok_or_else(wrong)?;
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            "" => return Err(format!("{text:?} has no unit; write {number}MiB or {number}B")),
            _ => return Err(format!("{text:?}: units are B, KiB, MiB, GiB and TiB; write a size such as 64MiB")),
        };
        match number.checked_mul(1_u64 << shift) {
            Some(0) => Err(format!("{text:?} leaves room for nothing; write a size such as 64MiB")),
            // File offsets are signed.
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is more than can be counted; write a smaller size such as 10GiB")),
        }
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{text:?} {what}; write an address such as {ADDRESS_EXAMPLE}");
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
        let port = port.parse::<u16>().map_err(|_| wrong("has no port from 0 to 65535"))?;
        let ip = match host {
            // Binding the IPv6 wildcard takes IPv4 along (the socket is not IPV6_V6ONLY).
            "" => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
                Some(inner) => IpAddr::V6(inner.parse().map_err(|_| wrong("has no IPv6 address in the brackets"))?),
                None if host.contains(':') => return Err(wrong("needs brackets around its IPv6 address")),
                None => IpAddr::V4(host.parse().map_err(|_| wrong("names no IP address of this machine"))?),
            },
        };
        Ok(Self(SocketAddr::new(ip, port)))
    }
}

/// A number and what follows it.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

/// A glob over names with `/` in them: `*` within a segment, `**` across.
pub(super) fn glob(text: &str) -> Result<GlobSet, Problem> {
    if text.is_empty() {
        return Err(Problem::new("an empty glob matches nothing; write one such as \"authz/**\""));
    }
    if text.split('/').any(|segment| segment.contains("**") && segment != "**") {
        let sentence = format!("glob {text:?}: `**` stands for whole segments; write `*`, or put a / around it");
        return Err(Problem::new(sentence));
    }
    if text.chars().count() > GLOB_CHARS {
        return Err(Problem::new(format!("a glob has {GLOB_CHARS} characters at most; write a shorter one")));
    }
    if brace_depth(text) > GLOB_BRACES {
        let sentence = format!("glob {text:?} nests more than {GLOB_BRACES} braces; write several globs");
        return Err(Problem::new(sentence));
    }
    let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
    // A set of one: `Glob::compile_matcher` panics where this gives an error.
    glob.and_then(|glob| GlobSet::builder().add(glob).build()).map_err(|error| {
        let reason = error.kind();
        Problem::new(format!("glob {text:?} is malformed: {reason}; write one such as \"authz/**\""))
    })
}

/// How deep braces are nested. What is escaped or in a class counts as well: no glob that
/// means anything is near the limit.
fn brace_depth(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut deepest = 0;
    for character in text.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Refuses a name that would be ambiguous in a header, a log line or a list.
pub(super) fn name(text: &str) -> Result<(), Problem> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte)) {
        return Err(Problem::new(format!("{text:?} is no name; use letters, digits and . _ - / alone")));
    }
    Ok(())
}

/// Reads a text through `FromStr`; a number gets the same words as a text of its digits.
struct Written<T>(&'static str, std::marker::PhantomData<T>);

impl<T: std::str::FromStr<Err = String>> Visitor<'_> for Written<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written("a duration such as 30s", std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written("a moment such as 2027-01-01T00:00:00Z", std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written("a size such as 64MiB", std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written("an address such as \":8443\"", std::marker::PhantomData))
    }
}

/// Far more than any `HOST/REPOSITORY` or bundle name needs.
const GLOB_CHARS: usize = 1024;
const GLOB_BRACES: usize = 10;
const TIME_EXAMPLE: &str = "250ms, 30s, 5m or 24h";
const MOMENT_EXAMPLE: &str = "2027-01-01T00:00:00Z";
const SIZE_EXAMPLE: &str = "512KiB, 64MiB or 10GiB";
const ADDRESS_EXAMPLE: &str = "\":8443\" (all addresses) or \"127.0.0.1:8443\"";
/// Ten years.
const LONGEST_HOURS: u64 = 87_600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, millis) in [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("24h", 86_400_000), ("0s", 0)] {
            assert_eq!(text.parse::<Time>().unwrap().0, Duration::from_millis(millis), "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "1 s", "1d", "1h30m", "٣s", "99999999999999999999s", "1000000h"] {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
        assert_eq!("30".parse::<Time>().unwrap_err(), "\"30\" has no unit; write 30s or 30ms");
    }

    #[test]
    fn moments_have_a_zone() {
        let utc = "2027-01-01T00:00:00Z".parse::<Moment>().unwrap();
        assert_eq!("2027-01-01T01:00:00+01:00".parse::<Moment>().unwrap(), utc);
        for text in ["", "2027", "2027-01-01", "2027-01-01T00:00:00", "2027-02-30T00:00:00Z", "tomorrow"] {
            assert!(text.parse::<Moment>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [("1B", 1), ("512KiB", 512 << 10), ("64MiB", 64 << 20), ("10GiB", 10 << 30)] {
            assert_eq!(text.parse::<Size>().unwrap().0, bytes, "{text}");
        }
        for text in ["", "MiB", "64MB", "64M", "64mib", "1.5GiB", "0B", "9000000TiB", "8388608TiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_literal() {
        for (text, expected) in [
            (":8443", "[::]:8443"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:0", "[::1]:0"),
            ("localhost:0", "127.0.0.1:0"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().0.to_string(), expected);
        }
        for text in ["", "8443", ":", ":65536", "::1:80", "example.com:80", "*:80", "[1.2.3.4]:80", "127.0.0.1"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_star_stays_within_its_segment() {
        let matches = |pattern: &str, name: &str| glob(pattern).unwrap().is_match(name);
        assert!(matches("authz/*", "authz/main"));
        assert!(!matches("authz/*", "authz/a/b"));
        assert!(matches("authz/**", "authz/a/b"));
        assert!(!matches("authz/**", "authzilla"));
        assert!(matches("**", "a/b"));
        for pattern in ["", "a**", "[", "{a"] {
            assert!(glob(pattern).is_err(), "{pattern}");
        }
    }
}
