//! Checks that every parser reads the same from a JSON document.
//!
//! Several parsers (ours, cosign's, OPA's) read the same signed documents and disagree on duplicate
//! keys: the first counts, the last counts, or an error. Such documents are refused beforehand.

use std::{collections::HashSet, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// The maximum depth of nesting.
const MAX_DEPTH: usize = 32;

/// The first violation of strict JSON in a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not strict JSON: {0}")]
pub struct StrictJsonError(String);

/// Checks that `bytes` is exactly one JSON value without duplicate keys and trailing data, nested
/// at most 32 levels deep.
///
/// # Errors
/// The first violation, with its position.
pub fn strict_json(bytes: &[u8]) -> Result<(), StrictJsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Value { depth: 0 }
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end())
        .map_err(|error| StrictJsonError(error.to_string()))
}

#[derive(Clone, Copy)]
struct Value {
    depth: usize,
}

impl Value {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!(
                "nested more than {MAX_DEPTH} levels deep"
            )));
        }
        Ok(Self {
            depth: self.depth + 1,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while items.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut seen = HashSet::new();
        while let Some(key) = members.next_key::<String>()? {
            members.next_value_seed(inner)?;
            if let Some(key) = seen.replace(key) {
                return Err(de::Error::custom(format_args!("duplicate key {key:?}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_documents_pass() {
        for text in [
            "{}",
            "[]",
            "null",
            "1.5e3",
            r#"{"a":{"b":[1,"x",true,null,-2]},"c":{"b":1}}"#,
            " [1] \n",
        ] {
            strict_json(text.as_bytes()).unwrap();
        }
    }

    #[test]
    fn duplicate_keys_are_refused_at_every_level() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"[{"x":{"a":1,"b":2,"a":3}}]"#,
            r#"{"a":1,"\u0061":2}"#,
        ] {
            assert!(
                strict_json(text.as_bytes())
                    .unwrap_err()
                    .to_string()
                    .contains("duplicate key")
            );
        }
    }

    #[test]
    fn trailing_data_depth_and_broken_text_are_refused() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        strict_json(deep(32).as_bytes()).unwrap();
        for text in [
            "",
            "{} {}",
            "{",
            "{}x",
            r#"{"a":01}"#,
            &deep(33),
            &deep(5000),
        ] {
            assert!(strict_json(text.as_bytes()).is_err(), "{text:.40}");
        }
        assert!(strict_json(b"\"\xff\"").is_err());
    }
}
