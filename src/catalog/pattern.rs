//! Patterns of bundles: each has a resource with captures, and the reference that a resource stands
//! for.

use std::path::PathBuf;

use crate::oci::{Reference, Repository};

/// A pattern such as `teams/{team}/{name}`, with the reference
/// `registry.example/policies/{team}/{name}:stable`.
///
/// Each capture is one whole segment of a bundle's name. Its value can stand in the repository's
/// path and in the tag of the reference, never in its host or in the path of a layout folder: a
/// client chooses the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    resource: String,
    segments: Vec<Segment>,
    reference: Vec<Part>,
    /// Relative layout folders are resolved against this folder.
    folder: PathBuf,
}

/// An error in a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The resource is malformed.
    #[error("{0}")]
    Resource(String),
    /// The reference is malformed, or does not fit the resource.
    #[error("{0}")]
    Reference(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Capture(String),
}

/// A part of the reference.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// The index of the capture among the segments.
    Capture(usize),
}

/// The longest value of a capture, in bytes. Repositories and tags are shorter in practice.
const MAX_VALUE_BYTES: usize = 128;

impl Pattern {
    /// Parses a resource, and a reference with the captures of the resource in braces. A relative
    /// layout folder is relative to `folder`.
    ///
    /// # Errors
    /// When one of the two is malformed, or a capture is missing in one of them.
    pub fn parse(
        resource: &str,
        reference: &str,
        folder: impl Into<PathBuf>,
    ) -> Result<Self, PatternError> {
        let segments = segments(resource).map_err(PatternError::Resource)?;
        let reference = parts(reference, &segments).map_err(PatternError::Reference)?;
        let pattern = Self {
            resource: resource.to_owned(),
            segments,
            reference,
            folder: folder.into(),
        };
        pattern.check_reference().map_err(PatternError::Reference)?;
        Ok(pattern)
    }

    /// The resource as written: the label of all its bundles in metrics.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// The reference that the bundle `name` stands for; `None` when the name does not match, or its
    /// captures make no valid reference.
    pub fn reference(&self, name: &str) -> Option<Reference> {
        let values: Vec<&str> = name.split('/').collect();
        // A request for such a name leaves open whether the segment is a part of it.
        if is_path_prefix(values[0]) || values.len() != self.segments.len() {
            return None;
        }
        let matches = |(segment, value): (&Segment, &&str)| match segment {
            Segment::Literal(literal) => literal == value,
            Segment::Capture(_) => is_value(value),
        };
        if !self.segments.iter().zip(&values).all(matches) {
            return None;
        }
        self.expand(&values).ok()
    }

    /// A reference as those of all its bundles: they have its host, or its layout folder.
    ///
    /// # Errors
    /// When the template makes no reference, which [`Self::parse`] rules out.
    pub fn sample(&self) -> Result<Reference, PatternError> {
        self.expand(&vec!["x"; self.segments.len()])
            .map_err(PatternError::Reference)
    }

    /// Whether one name can match both patterns.
    pub fn overlaps(&self, other: &Self) -> bool {
        let can_be_equal = |(one, other): (&Segment, &Segment)| match (one, other) {
            (Segment::Literal(one), Segment::Literal(other)) => one == other,
            (Segment::Literal(literal), Segment::Capture(_))
            | (Segment::Capture(_), Segment::Literal(literal)) => is_value(literal),
            (Segment::Capture(_), Segment::Capture(_)) => true,
        };
        self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&other.segments).all(can_be_equal)
    }

    fn expand(&self, values: &[&str]) -> Result<Reference, String> {
        let text: String = self
            .reference
            .iter()
            .map(|part| match part {
                Part::Literal(literal) => literal.as_str(),
                Part::Capture(index) => values.get(*index).copied().unwrap_or_default(),
            })
            .collect();
        let reference: Reference = text.parse().map_err(|error| format!("{error}"))?;
        Ok(reference.relative_to(&self.folder))
    }

    /// Checks that the reference is valid, and that its host does not depend on a capture.
    fn check_reference(&self) -> Result<(), String> {
        let chosen = || {
            "a client must not choose the registry or the folder; use captures in the repository \
             after the host, or in the tag"
                .to_owned()
        };
        // Without it, a capture alone is a host without a dot.
        if self.has_capture_in_host() {
            return Err(chosen());
        }
        let [one, other] = ["x", "y"].map(|value| self.expand(&vec![value; self.segments.len()]));
        let (one, other) = (one?, other?);
        let is_fixed = match (one.repository(), other.repository()) {
            (Repository::Registry { host, .. }, Repository::Registry { host: other, .. }) => {
                host == other
            }
            (Repository::Layout { path }, Repository::Layout { path: other }) => path == other,
            _ => false,
        };
        if is_fixed { Ok(()) } else { Err(chosen()) }
    }

    fn has_capture_in_host(&self) -> bool {
        let is_layout = matches!(self.reference.first(), Some(Part::Literal(text)) if text.starts_with("oci-layout:"));
        let ends_host = |part: &&Part| matches!(part, Part::Literal(text) if text.contains('/'));
        let mut host = self.reference.iter().take_while(|part| !ends_host(part));
        !is_layout && host.any(|part| matches!(part, Part::Capture(_)))
    }
}

/// Whether a name's first segment may also be the prefix of the path that it is served on.
fn is_path_prefix(segment: &str) -> bool {
    matches!(segment, "bundles" | "bundle")
}

/// Whether a segment of a name can be the value of a capture: the characters that repositories and
/// tags consist of.
fn is_value(segment: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_VALUE_BYTES).contains(&segment.len())
        && segment.bytes().all(fits)
        && !matches!(segment, "." | "..")
}

fn segments(resource: &str) -> Result<Vec<Segment>, String> {
    let example = "write one such as teams/{team}/{name}";
    let mut segments = Vec::new();
    for text in resource.split('/') {
        let segment = match text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'))
        {
            Some(name) if is_capture_name(name) => Segment::Capture(name.to_owned()),
            Some(name) => {
                return Err(format!(
                    "{name:?} is not the name of a capture; use a-z, 0-9 and _, such as {{team}}"
                ));
            }
            None if text.contains(['{', '}']) => {
                return Err(format!("{text:?}: a capture is a whole segment; {example}"));
            }
            None if text.is_empty() => {
                return Err(format!(
                    "a resource must not begin or end with a slash or have an empty segment; {example}"
                ));
            }
            None if matches!(text, "." | "..") => {
                return Err(format!(
                    "a resource must not have a segment `.` or `..`; {example}"
                ));
            }
            None if text.chars().any(char::is_control) => {
                return Err(format!(
                    "a resource must not have control characters; {example}"
                ));
            }
            None => Segment::Literal(text.to_owned()),
        };
        if segments.contains(&segment) && matches!(segment, Segment::Capture(_)) {
            return Err(format!("two captures are named {text}; rename one"));
        }
        segments.push(segment);
    }
    let is_capture = |segment: &Segment| matches!(segment, Segment::Capture(_));
    if !segments.iter().any(is_capture) {
        return Err(format!(
            "the resource has no capture; {example}, or write this bundle under `bundles`"
        ));
    }
    if matches!(&segments[0], Segment::Literal(first) if is_path_prefix(first)) {
        return Err(
            "/bundles/ and /bundle/ are part of each path already; remove the first segment"
                .to_owned(),
        );
    }
    Ok(segments)
}

fn is_capture_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.as_bytes().first().is_some_and(u8::is_ascii_lowercase) && name.bytes().all(fits)
}

fn parts(template: &str, segments: &[Segment]) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((literal, after)) = rest.split_once('{') {
        // A value can have every character of a path component or tag.
        if !parts.is_empty() && !literal.contains(['/', ':']) {
            return Err(
                "two captures in one component of the path, or in the tag: different names could \
                 be one bundle; separate them by a slash"
                    .to_owned(),
            );
        }
        let Some((name, after)) = after.split_once('}') else {
            return Err(format!(
                "{template:?}: a brace is not closed; write `{{capture}}`"
            ));
        };
        let is_named = |segment: &Segment| matches!(segment, Segment::Capture(it) if it == name);
        let Some(index) = segments.iter().position(is_named) else {
            return Err(format!(
                "the resource has no capture {{{name}}}; available: {}",
                capture_names(segments)
            ));
        };
        parts.push(Part::Literal(literal.to_owned()));
        parts.push(Part::Capture(index));
        rest = after;
    }
    if rest.contains('}') {
        return Err(format!(
            "{template:?}: a brace is not opened; write `{{capture}}`"
        ));
    }
    parts.push(Part::Literal(rest.to_owned()));
    for (index, segment) in segments.iter().enumerate() {
        if let Segment::Capture(name) = segment
            && !parts.contains(&Part::Capture(index))
        {
            return Err(format!(
                "the capture {{{name}}} does not occur, so that many names would be one bundle; add it"
            ));
        }
    }
    Ok(parts)
}

fn capture_names(segments: &[Segment]) -> String {
    let names = segments.iter().filter_map(|segment| match segment {
        Segment::Capture(name) => Some(format!("{{{name}}}")),
        Segment::Literal(_) => None,
    });
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(resource: &str, reference: &str) -> Pattern {
        Pattern::parse(resource, reference, "/etc/bundlegate").unwrap()
    }

    #[test]
    fn a_name_that_matches_stands_for_one_reference() {
        let pattern = pattern(
            "teams/{team}/{name}",
            "r.example:5000/policies/{team}/p-{name}:{team}.v1",
        );
        let reference = |name| pattern.reference(name).map(|found| found.to_string());
        assert_eq!(
            reference("teams/red/authz").as_deref(),
            Some("r.example:5000/policies/red/p-authz:red.v1")
        );
        for name in [
            "teams/red",
            "teams/red/authz/more",
            "team/red/authz",
            "teams//authz",
            "teams/red/",
            "/teams/red/authz",
            "teams/../authz",
            "teams/./authz",
            "teams/Red/authz",
            "teams/red/a:v2",
            "teams/red/a@sha256",
            "teams/red/a b",
            "teams/red/ä",
            "teams/red/a%2Fb",
            "teams/red/a\0",
            "teams/-red/authz",
            "",
        ] {
            assert_eq!(reference(name), None, "{name:?}");
        }
        let long = format!("teams/{}/a", "x".repeat(MAX_VALUE_BYTES + 1));
        assert_eq!(reference(&long), None);
    }

    #[test]
    fn the_prefixes_of_paths_are_no_part_of_a_name() {
        let pattern = pattern("{a}/{b}", "r.example/{a}/{b}:v1");
        assert!(pattern.reference("x/y").is_some());
        assert!(pattern.reference("bundles/y").is_none());
        assert!(pattern.reference("bundle/y").is_none());
        assert!(pattern.reference("x/bundles").is_some());
    }

    #[test]
    fn a_layout_folder_is_fixed_and_relative_to_the_configuration() {
        let found = pattern("l/{tag}", "oci-layout:policies:{tag}");
        let reference = found.reference("l/v1").unwrap();
        let folder = PathBuf::from("/etc/bundlegate/policies");
        assert_eq!(*reference.repository(), Repository::Layout { path: folder });
        assert_eq!(reference.tag(), Some("v1"));
    }

    #[test]
    fn errors_say_what_to_write() {
        let rows = [
            ("a/b", "r.example/a:v1", "no capture"),
            (
                "bundles/{x}",
                "r.example/{x}:v1",
                "remove the first segment",
            ),
            ("{x}/{x}", "r.example/{x}:v1", "two captures"),
            ("a-{x}", "r.example/{x}:v1", "a whole segment"),
            ("{X}", "r.example/{X}:v1", "is not the name of a capture"),
            ("{}", "r.example/a:v1", "is not the name of a capture"),
            ("a//{x}", "r.example/{x}:v1", "empty segment"),
            ("/{x}", "r.example/{x}:v1", "empty segment"),
            ("../{x}", "r.example/{x}:v1", "segment `.` or `..`"),
            ("{x}", "r.example/a:v1", "does not occur"),
            (
                "{x}",
                "r.example/{x}/{y}:v1",
                "no capture {y}; available: {x}",
            ),
            (
                "{x}/{y}",
                "r.example/{x}-{y}:v1",
                "separate them by a slash",
            ),
            ("{x}/{y}", "r.example/{x}{y}:v1", "separate them by a slash"),
            ("{x}/{y}", "r.example/a:{x}.{y}", "separate them by a slash"),
            ("{x}", "r.example/{x:v1", "not closed"),
            ("{x}", "r.example/{x}}:v1", "not opened"),
            ("{x}", "{x}.example/a:v1", "must not choose the registry"),
            ("{x}", "r.example:{x}/a:v1", "must not choose the registry"),
            (
                "{x}",
                "oci-layout:{x}:v1",
                "must not choose the registry or the folder",
            ),
            ("{x}", "r.example/{x}", "neither tag nor digest"),
            ("{x}", "{x}/a:v1", "must not choose the registry"),
            ("{x}", "r.example/a@sha256:{x}", "malformed"),
        ];
        for (resource, reference, part) in rows {
            let error = Pattern::parse(resource, reference, "")
                .unwrap_err()
                .to_string();
            assert!(error.contains(part), "{resource} {reference}: {error}");
        }
    }

    #[test]
    fn patterns_overlap_if_a_name_can_match_both() {
        let rows = [
            ("{a}/x", "y/{b}", true),
            ("{a}", "{b}", true),
            ("a/{a}", "b/{a}", false),
            ("{a}", "{a}/{b}", false),
            ("a/{a}", "a/{b}", true),
            ("a/{a}/b", "a/{b}/c", false),
            // No value of a capture has a space.
            ("a b/{a}", "{x}/{y}", false),
        ];
        for (one, other, overlaps) in rows {
            let make = |resource: &str| {
                let captures = resource.split('/').filter(|it| it.starts_with('{'));
                let path = captures.collect::<Vec<_>>().join("/");
                pattern(resource, &format!("r.example/{path}:v1"))
            };
            let (one, other) = (make(one), make(other));
            assert_eq!(one.overlaps(&other), overlaps, "{one:?} {other:?}");
            assert_eq!(other.overlaps(&one), overlaps, "{other:?} {one:?}");
        }
    }
}
