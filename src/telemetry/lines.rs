//! Formatting of log lines: values are escaped once, and no line contains a path of the build
//! machine.

use std::fmt;

use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FmtContext, FormatEvent, FormatFields, format, format::Writer, time::FormatTime as _},
    registry::LookupSpan,
};

use super::{Style, StyleCell, Utc};

/// Prefix of the fields that `tracing-log` adds to records of the `log` crate; one of them is the
/// source file, a path of the build machine.
const LOG_FIELD_PREFIX: &str = "log.";
const LOG_TARGET_FIELD: &str = "log.target";

/// Formats an event in the current style.
pub(super) struct Lines(pub(super) StyleCell);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let text = |is_coloured| {
            format()
                .with_timer(Utc)
                .with_target(false)
                .with_ansi(is_coloured)
        };
        match self.0.get() {
            Style::Colours => text(true).format_event(context, writer, event),
            Style::Plain => text(false).format_event(context, writer, event),
            Style::Json => JsonLines.format_event(context, writer, event),
        }
    }
}

/// Formats an event as one JSON object: `timestamp`, `level`, `message`, `target` and the fields.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut timestamp = String::new();
        Utc.format_time(&mut Writer::new(&mut timestamp))?;
        let target = fields
            .target
            .take()
            .unwrap_or_else(|| event.metadata().target().to_owned());
        let mut member = |start: &str, name: &str, value: &Value| {
            write!(writer, "{start}{}:{value}", Value::from(name))
        };
        member("{", "timestamp", &timestamp.into())?;
        member(",", "level", &event.metadata().level().as_str().into())?;
        if let Some(message) = fields.values.remove("message") {
            member(",", "message", &message)?;
        }
        for (name, value) in &fields.values {
            member(",", name, value)?;
        }
        member(",", "target", &target.into())?;
        writer.write_str("}\n")
    }
}

#[derive(Default)]
struct Fields {
    values: Map<String, Value>,
    /// The target of a record of the `log` crate.
    target: Option<String>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        match field.name() {
            LOG_TARGET_FIELD => self.target = value.as_str().map(str::to_owned),
            name if name.starts_with(LOG_FIELD_PREFIX) => {}
            name => drop(
                self.values
                    .insert(name.trim_start_matches("r#").to_owned(), value),
            ),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}").into());
    }
}

/// Formats an event as `message key=value …`, with control characters escaped.
pub(super) struct TextFields;

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line {
            writer,
            is_empty: true,
            result: Ok(()),
        };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    is_empty: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, field: &Field, value: &str) {
        if field.name().starts_with(LOG_FIELD_PREFIX) || self.result.is_err() {
            return;
        }
        let space = if std::mem::take(&mut self.is_empty) {
            ""
        } else {
            " "
        };
        let value = printable(value);
        self.result = match (
            field.name().trim_start_matches("r#"),
            self.writer.has_ansi_escapes(),
        ) {
            ("message", _) => write!(self.writer, "{space}{value}"),
            (name, true) => write!(
                self.writer,
                "{space}\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}"
            ),
            (name, false) => write!(self.writer, "{space}{name}={value}"),
        };
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, &format!("{value:?}"));
    }
}

fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default())
        } else {
            shown.push(character)
        }
    }
    shown
}
