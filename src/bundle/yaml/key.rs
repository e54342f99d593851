//! The keys of mappings.

use std::{
    borrow::Cow,
    hash::{Hash, Hasher},
};

use super::{number, scalar::Scalar};

/// A decoded key. Keys of different types differ, as in a Go map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(FloatKey),
    /// Need not be UTF-8: it may come from `!!binary`.
    Text(Cow<'a, [u8]>),
    /// A text with the tag of a timestamp.
    Time(Cow<'a, [u8]>),
}

impl<'a> Key<'a> {
    pub(super) fn new(scalar: &Scalar, text: &'a str) -> Self {
        match scalar {
            Scalar::Null => Self::Null,
            Scalar::Bool(bool) => Self::Bool(*bool),
            Scalar::Int(int) => Self::Int(*int),
            Scalar::Uint(int) => Self::Uint(*int),
            Scalar::Float(float) => Self::Float(FloatKey(*float)),
            Scalar::Text => Self::Text(text.as_bytes().into()),
            Scalar::Time(_) => Self::Time(text.as_bytes().into()),
        }
    }

    /// The key's name in a JSON object; `None` if OPA refuses the key.
    pub(super) fn to_name(&self) -> Option<Cow<'a, [u8]>> {
        let name = match self {
            Self::Null | Self::Time(_) => return None,
            Self::Text(text) => return Some(text.clone()),
            Self::Bool(bool) => bool.to_string(),
            Self::Int(int) => int.to_string(),
            Self::Uint(int) => int.to_string(),
            Self::Float(FloatKey(float)) => number::to_key(*float),
        };
        Some(name.into_bytes().into())
    }
}

/// A float as the key of a Go map: both zeros are one key, and NaN is never found again.
#[derive(Clone, Copy, Debug)]
pub(super) struct FloatKey(f64);

impl PartialEq for FloatKey {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// Equality is not reflexive for NaN; the only effect is that a hash map does not find it.
impl Eq for FloatKey {}

impl Hash for FloatKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let float = if self.0 == 0.0 { 0.0 } else { self.0 };
        float.to_bits().hash(state);
    }
}
