//! What of a data document decides whether documents can live together: which of its parts
//! are objects. Values are not kept, so a large document costs what its keys cost.

use std::{collections::BTreeMap, fmt};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{BundleManifest, document::join};

/// The skeleton of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// Anything that is no object.
    Value,
    /// An object and its members.
    Object(BTreeMap<String, Shape>),
    /// An object that was not looked into.
    Deeper,
}

impl Shape {
    /// An object without members.
    pub(super) fn nothing() -> Self {
        Self::Object(BTreeMap::new())
    }

    /// The skeleton of a JSON document down to `depth`.
    pub(super) fn read<'de>(
        mut document: serde_json::Deserializer<impl serde_json::de::Read<'de>>,
        depth: usize,
    ) -> Result<Self, serde_json::Error> {
        let shape = Below { depth }.deserialize(&mut document)?;
        document.end()?;
        Ok(shape)
    }

    /// The skeleton of a YAML document.
    pub(super) fn of_yaml(content: &[u8]) -> Result<Self, String> {
        Ok(Self::of_value(&yaml(content)?))
    }

    fn of_value(value: &serde_json::Value) -> Self {
        match value {
            serde_json::Value::Object(members) => {
                Self::Object(members.iter().map(|(key, value)| (key.clone(), Self::of_value(value))).collect())
            }
            _ => Self::Value,
        }
    }

    /// Puts it where `path` leads from the root of all data.
    pub(super) fn mounted(self, path: &[String]) -> Self {
        path.iter().rev().fold(self, |inner, key| Self::Object([(key.clone(), inner)].into()))
    }

    /// Joins two documents as OPA does: objects melt, everything else collides. On collision
    /// gives the path of it.
    pub(super) fn merge(&mut self, other: Self) -> Result<(), Vec<String>> {
        let (Self::Object(ours), Self::Object(theirs)) = (self, other) else { return Err(Vec::new()) };
        join(ours, theirs, Self::merge)
    }

    /// The first part, by its path, that lies outside what a bundle owns. Like OPA, looks
    /// into objects for as long as they lead to a root.
    pub(super) fn first_outside(&self, at: &str, owner: &BundleManifest) -> Option<String> {
        if owner.owns(at) {
            return None;
        }
        match self {
            Self::Object(members) if owner.owns_below(at) => members.iter().find_map(|(key, value)| {
                let below = if at.is_empty() { key.clone() } else { format!("{at}/{key}") };
                value.first_outside(&below, owner)
            }),
            Self::Object(_) | Self::Value | Self::Deeper => Some(at.to_owned()),
        }
    }
}

/// A YAML document as the JSON that it means; of two members with one name the last counts,
/// as in OPA.
pub(super) fn yaml(content: &[u8]) -> Result<serde_json::Value, String> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    serde_saphyr::from_slice_with_options(content, options).map_err(|error| one_line(&error.to_string()))
}

/// A parser's message may draw a picture below its first line.
pub(super) fn one_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().trim().to_owned()
}

#[derive(Clone, Copy)]
struct Below {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Below {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Below {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Shape::Value)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Shape, A::Error> {
        let Some(depth) = self.depth.checked_sub(1) else {
            while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Shape::Deeper);
        };
        let mut shapes = BTreeMap::new();
        while let Some(key) = members.next_key::<String>()? {
            // Of two members with one name the last counts, as in OPA.
            shapes.insert(key, members.next_value_seed(Self { depth })?);
        }
        Ok(Shape::Object(shapes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(json: &str) -> Shape {
        Shape::read(serde_json::Deserializer::from_str(json), usize::MAX).unwrap()
    }

    fn path(text: &str) -> Vec<String> {
        text.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn objects_melt_and_values_collide() {
        let mut data = shape(r#"{"a":{"b":1},"l":[{}]}"#);
        data.merge(shape(r#"{"c":2}"#).mounted(&path("a"))).unwrap();
        assert_eq!(data, shape(r#"{"a":{"b":0,"c":0},"l":0}"#));
        assert_eq!(data.merge(shape(r#"{"b":1}"#).mounted(&path("a"))).unwrap_err(), ["a", "b"]);
        // A list is a value, and so is what would be mounted below one.
        assert_eq!(data.merge(shape("{}").mounted(&path("l/x"))).unwrap_err(), ["l"]);
    }

    #[test]
    fn what_is_outside_is_named() {
        let owns = BundleManifest::parse(br#"{"roots":["a/b"]}"#).unwrap();
        assert_eq!(shape(r#"{"a":{"b":{"c":1}}}"#).first_outside("", &owns), None);
        assert_eq!(shape(r#"{"a":{"b":1,"c":{"d":1}}}"#).first_outside("", &owns).as_deref(), Some("a/c"));
        assert_eq!(shape("1").first_outside("a", &owns).as_deref(), Some("a"));
        assert_eq!(shape("{}").first_outside("", &owns), None);
        assert_eq!(shape(r#"{"a":{}}"#).first_outside("", &owns), None);
        assert_eq!(shape(r#"{"x":{}}"#).first_outside("", &owns).as_deref(), Some("x"));
    }

    #[test]
    fn below_the_depth_nothing_is_kept() {
        let cut = |json| Shape::read(serde_json::Deserializer::from_str(json), 1);
        assert_eq!(
            cut(r#"{"a":{"b":{"c":1}},"d":2}"#).unwrap(),
            Shape::Object([("a".into(), Shape::Deeper), ("d".into(), Shape::Value)].into())
        );
        assert!(cut("{} x").is_err());
        assert!(cut("{").is_err());
    }

    #[test]
    fn yaml_has_the_shape_of_the_json_that_it_means() {
        assert_eq!(Shape::of_yaml(b"a:\n  b: 1\n  c: [x]\n").unwrap(), shape(r#"{"a":{"b":1,"c":0}}"#));
        let error = Shape::of_yaml(b"a: [\n").unwrap_err();
        assert!(!error.is_empty() && !error.contains('\n'), "{error}");
    }
}
