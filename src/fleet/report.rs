//! What an OPA reports about itself and its bundles: the body of a request to OPA's Status API,
//! read within limits.
//!
//! A report of OPA 1.22.2 has about 60 KB, of which the metrics are all but one. They come last:
//! the reader stops before them.

use std::{collections::BTreeMap, fmt, ops::ControlFlow};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::telemetry::{NAME_BYTES, cut};

/// Labels of an OPA that are kept, besides its id and its version.
const MAX_LABELS: usize = 32;
/// The names and values of the labels that are kept, in bytes.
const MAX_LABEL_BYTES: usize = 1 << 10;
/// Bundles of a report that are kept.
const MAX_BUNDLES: usize = 1000;
/// The message of an error, in bytes.
const MAX_MESSAGE_BYTES: usize = 1 << 10;
/// The members of `errors` that are part of the message. OPA itself stops compiling after ten.
const MAX_ERRORS: usize = 16;

/// A report. Its texts are those of the client, cut to a length and otherwise unchanged: they may
/// have control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub opa: OpaInstance,
    /// At most 1 000 bundles by name, and then the discovery bundle, whose name may be that of
    /// another one.
    pub bundles: Vec<BundleReport>,
}

/// What an OPA says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpaInstance {
    /// Random, and another one in each process.
    pub id: Option<Box<str>>,
    pub version: Option<Box<str>>,
    /// The other labels: at most 32, and 1 KiB of names and values.
    pub labels: BTreeMap<Box<str>, Box<str>>,
}

/// What an OPA says about one of its bundles.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleReport {
    /// The name in the configuration of this OPA, which need not be the one of this server.
    pub name: Box<str>,
    /// The revision in the manifest of the active version, if it has one.
    pub active_revision: Option<Box<str>>,
    /// The size of the tarball of the active version, in bytes.
    pub size: Option<u64>,
    /// The status of the last response, if it was an error.
    pub http_code: Option<Box<str>>,
    /// Why the last download or activation failed. OPA forgets it with the next 304, so that its
    /// absence does not say that a version is active.
    pub error: Option<ReportedError>,
}

/// Why a download or an activation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedError {
    /// Such as `bundle_error`. May be empty.
    pub code: Box<str>,
    /// With the errors of the compiler and their positions: `FILE:ROW:COLUMN: CODE: MESSAGE`. At
    /// most 1 KiB.
    pub message: Box<str>,
}

/// Why a report can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// It is not what OPA sends.
    #[error("not a status report of OPA: {0}")]
    Malformed(Box<str>),
    /// The bundles, or what comes before them, are longer than the part that is read.
    #[error("the labels and bundles of the status report are too long")]
    TooLong,
}

impl Report {
    /// Reads the report at the start of a body. `is_cut`: the body goes on after `prefix`.
    ///
    /// The reader stops before the metrics, so that nothing from there on is checked. Memory is
    /// bounded by the length of `prefix`. Of members with the same name, the first counts; members
    /// that OPA does not send are skipped.
    ///
    /// # Errors
    /// [`ReportError::TooLong`] if `prefix` was cut before the end of the bundles.
    /// [`ReportError::Malformed`] if it is not JSON, or if the report, its labels or its bundles are
    /// not objects.
    pub fn parse(prefix: &[u8], is_cut: bool) -> Result<Self, ReportError> {
        let mut reader = ReportReader::default();
        let mut deserializer = serde_json::Deserializer::from_slice(prefix);
        match Object(&mut reader).deserialize(&mut deserializer) {
            Ok(()) => {}
            // The rest of the object is not read, which serde_json takes for an error.
            Err(_) if reader.is_complete => {}
            Err(error) if error.is_eof() && is_cut => return Err(ReportError::TooLong),
            Err(error) => {
                let error = error.to_string();
                return Err(ReportError::Malformed(cut(&error, NAME_BYTES).into()));
            }
        }
        Ok(reader.into_report())
    }
}

/// Receives the members of a JSON object.
trait Members {
    /// What a value of another type is refused for; `None` if such a value is skipped.
    const REQUIRED: Option<&'static str>;

    /// Takes the value of `name` from `map`, unless it ends the reading.
    fn take<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        map: &mut A,
    ) -> Result<ControlFlow<()>, A::Error>;
}

/// Reads an object, or `null` as an empty one.
struct Object<'a, M>(&'a mut M);

impl<M: Members> Object<'_, M> {
    /// The error has nothing of the value, which may be long.
    fn refuse<E: Error>() -> Result<(), E> {
        M::REQUIRED.map_or(Ok(()), |name| {
            Err(E::custom(format_args!("{name} is not an object")))
        })
    }
}

impl<'de, M: Members> DeserializeSeed<'de> for Object<'_, M> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, M: Members> Visitor<'de> for Object<'_, M> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Text(NAME_BYTES))? {
            let name = name.unwrap_or_default();
            if self.0.take(&name, &mut map)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Self::refuse()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Self::refuse()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Self::refuse()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Self::refuse()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Self::refuse()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<(), A::Error> {
        Self::refuse()?;
        IgnoredAny.visit_seq(list).map(|_| ())
    }
}

/// The members of a report.
#[derive(Default)]
struct ReportReader {
    labels: Labels,
    bundles: Bundles,
    discovery: Option<BundleReport>,
    has_labels: bool,
    has_bundles: bool,
    /// The rest was not read.
    is_complete: bool,
}

impl Members for ReportReader {
    const REQUIRED: Option<&'static str> = Some("the report");

    fn take<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        map: &mut A,
    ) -> Result<ControlFlow<()>, A::Error> {
        match name {
            "labels" => {
                map.next_value_seed(Object(&mut self.labels))?;
                self.has_labels = true;
            }
            "bundles" => {
                map.next_value_seed(Object(&mut self.bundles))?;
                self.has_bundles = true;
            }
            // Before OPA 0.11, and with the configuration of that time.
            "bundle" => {
                let bundle = read_single("bundle", map)?;
                self.bundles.insert(bundle);
                self.has_bundles = true;
            }
            "discovery" => {
                let discovery = read_single("discovery", map)?;
                self.discovery.get_or_insert(discovery);
                self.has_bundles = true;
            }
            // OPA sends the members above before all others.
            _ if self.has_labels && self.has_bundles => {
                self.is_complete = true;
                return Ok(ControlFlow::Break(()));
            }
            _ => _ = map.next_value::<IgnoredAny>()?,
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl ReportReader {
    fn into_report(self) -> Report {
        let bundles = self.bundles.0.into_values();
        Report {
            opa: self.labels.opa,
            bundles: bundles.chain(self.discovery).collect(),
        }
    }
}

/// The bundle that is the next value of `map`, with a name for one that does not say its own.
fn read_single<'de, A: MapAccess<'de>>(
    default: &str,
    map: &mut A,
) -> Result<BundleReport, A::Error> {
    let mut bundle = BundleReader::default();
    map.next_value_seed(Object(&mut bundle))?;
    let name = bundle.name.take();
    Ok(bundle.into_report(name.unwrap_or_else(|| default.into())))
}

/// The members of `labels`.
#[derive(Default)]
struct Labels {
    opa: OpaInstance,
    /// Of the names and values that are kept.
    bytes: usize,
}

impl Members for Labels {
    const REQUIRED: Option<&'static str> = Some("`labels`");

    fn take<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        map: &mut A,
    ) -> Result<ControlFlow<()>, A::Error> {
        let Some(value) = map.next_value_seed(Text(NAME_BYTES))? else {
            return Ok(ControlFlow::Continue(()));
        };
        match name {
            "id" => _ = self.opa.id.get_or_insert(value),
            "version" => _ = self.opa.version.get_or_insert(value),
            _ => self.insert(name, value),
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Labels {
    /// Adds a label, if it is new and within the limits.
    fn insert(&mut self, name: &str, value: Box<str>) {
        let bytes = self.bytes + name.len() + value.len();
        let is_full = self.opa.labels.len() == MAX_LABELS || bytes > MAX_LABEL_BYTES;
        if is_full || self.opa.labels.contains_key(name) {
            return;
        }
        self.bytes = bytes;
        self.opa.labels.insert(name.into(), value);
    }
}

/// The members of `bundles`.
#[derive(Default)]
struct Bundles(BTreeMap<Box<str>, BundleReport>);

impl Members for Bundles {
    const REQUIRED: Option<&'static str> = Some("`bundles`");

    fn take<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        map: &mut A,
    ) -> Result<ControlFlow<()>, A::Error> {
        if self.has_room_for(name) {
            let mut bundle = BundleReader::default();
            map.next_value_seed(Object(&mut bundle))?;
            self.insert(bundle.into_report(name.into()));
        } else {
            map.next_value::<IgnoredAny>()?;
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Bundles {
    fn has_room_for(&self, name: &str) -> bool {
        self.0.len() < MAX_BUNDLES && !self.0.contains_key(name)
    }

    /// Adds a bundle, if it is new and within the limit.
    fn insert(&mut self, bundle: BundleReport) {
        if self.has_room_for(&bundle.name) {
            self.0.insert(bundle.name.clone(), bundle);
        }
    }
}

/// The members of a bundle. One of another type than OPA sends counts as missing.
#[derive(Default)]
struct BundleReader {
    name: Option<Box<str>>,
    active_revision: Option<Box<str>>,
    size: Option<u64>,
    http_code: Option<Box<str>>,
    code: Option<Box<str>>,
    message: Option<Box<str>>,
    errors: Vec<ErrorReader>,
}

impl Members for BundleReader {
    const REQUIRED: Option<&'static str> = Some("a bundle");

    fn take<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        map: &mut A,
    ) -> Result<ControlFlow<()>, A::Error> {
        match name {
            "name" => self.name = map.next_value_seed(Text(NAME_BYTES))?,
            "active_revision" => self.active_revision = map.next_value_seed(Text(NAME_BYTES))?,
            "size" => self.size = map.next_value_seed(Integer)?,
            "http_code" => self.http_code = map.next_value_seed(Text(NAME_BYTES))?,
            "code" => self.code = map.next_value_seed(Text(NAME_BYTES))?,
            "message" => self.message = map.next_value_seed(Text(MAX_MESSAGE_BYTES))?,
            "errors" => map.next_value_seed(ErrorList(&mut self.errors))?,
            _ => _ = map.next_value::<IgnoredAny>()?,
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl BundleReader {
    fn into_report(self, name: Box<str>) -> BundleReport {
        let error = (self.code.is_some() || self.message.is_some()).then(|| {
            let message = with_errors(self.message.as_deref().unwrap_or_default(), &self.errors);
            ReportedError {
                code: self.code.unwrap_or_default(),
                message: cut(&message, MAX_MESSAGE_BYTES).into(),
            }
        });
        BundleReport {
            name,
            active_revision: self.active_revision,
            size: self.size,
            http_code: self.http_code,
            error,
        }
    }
}

/// `MESSAGE: ERROR; ERROR`.
fn with_errors(message: &str, errors: &[ErrorReader]) -> String {
    let errors = errors.iter().map(ErrorReader::sentence);
    let errors: Vec<_> = errors.filter(|error| !error.is_empty()).collect();
    match (message, errors.join("; ")) {
        (message, errors) if errors.is_empty() => message.to_owned(),
        ("", errors) => errors,
        (message, errors) => format!("{message}: {errors}"),
    }
}

/// A member of `errors`. Errors that are not those of the compiler are empty objects in JSON.
#[derive(Default)]
struct ErrorReader {
    code: Option<Box<str>>,
    message: Option<Box<str>>,
    location: Location,
}

/// A position in a file of the bundle.
#[derive(Default)]
struct Location {
    file: Option<Box<str>>,
    row: Option<u64>,
    column: Option<u64>,
}

impl Members for ErrorReader {
    const REQUIRED: Option<&'static str> = None;

    fn take<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        map: &mut A,
    ) -> Result<ControlFlow<()>, A::Error> {
        match name {
            "code" => self.code = map.next_value_seed(Text(NAME_BYTES))?,
            "message" => self.message = map.next_value_seed(Text(MAX_MESSAGE_BYTES))?,
            "location" => map.next_value_seed(Object(&mut self.location))?,
            _ => _ = map.next_value::<IgnoredAny>()?,
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl ErrorReader {
    /// `FILE:ROW:COLUMN: CODE: MESSAGE`, without the parts that are missing.
    fn sentence(&self) -> String {
        let Location { file, row, column } = &self.location;
        let mut place = file.as_deref().unwrap_or_default().to_owned();
        for number in [row, column].into_iter().flatten() {
            place = format!("{place}:{number}");
        }
        let parts = [
            Some(place.as_str()),
            self.code.as_deref(),
            self.message.as_deref(),
        ];
        let parts: Vec<_> = parts
            .into_iter()
            .flatten()
            .filter(|part| !part.is_empty())
            .collect();
        parts.join(": ")
    }
}

impl Members for Location {
    const REQUIRED: Option<&'static str> = None;

    fn take<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        map: &mut A,
    ) -> Result<ControlFlow<()>, A::Error> {
        match name {
            "file" => self.file = map.next_value_seed(Text(NAME_BYTES))?,
            "row" => self.row = map.next_value_seed(Integer)?,
            "col" => self.column = map.next_value_seed(Integer)?,
            _ => _ = map.next_value::<IgnoredAny>()?,
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Reads a list of errors; its first [`MAX_ERRORS`] members are kept.
struct ErrorList<'a>(&'a mut Vec<ErrorReader>);

impl<'de> DeserializeSeed<'de> for ErrorList<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ErrorList<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while self.0.len() < MAX_ERRORS {
            let mut error = ErrorReader::default();
            if list.next_element_seed(Object(&mut error))?.is_none() {
                return Ok(());
            }
            self.0.push(error);
        }
        IgnoredAny.visit_seq(list).map(|_| ())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    /// The error of the default has the whole text.
    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Err(E::custom("`errors` is not a list"))
    }
}

/// Reads a text of at least one byte, cut to a number of bytes, or a number as a text. A value of
/// another type is `None`.
struct Text(usize);

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Option<Box<str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Option<Box<str>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok((!text.is_empty()).then(|| cut(text, self.0).into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string().into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string().into()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_seq(list).map(|_| None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_map(map).map(|_| None)
    }
}

/// Reads an integer that is not negative, or the text of one. Any other value is `None`.
struct Integer;

impl<'de> DeserializeSeed<'de> for Integer {
    type Value = Option<u64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let text = Text(NAME_BYTES).deserialize(deserializer)?;
        Ok(text.and_then(|text| text.parse().ok()))
    }
}

#[cfg(test)]
mod tests;
