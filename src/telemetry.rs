//! Logs on stderr: text on a terminal, JSON lines otherwise, unless the configuration says which. A
//! thread of its own writes them (`line_queue`). Also the helpers that log lines, metrics and
//! status values share: the current time, and cutting external text to a bounded length.

use std::{
    borrow::Cow,
    env, fmt, io,
    io::IsTerminal as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

mod line_queue;
mod lines;

use jiff::Timestamp;
pub use line_queue::DroppedLines;
use line_queue::LineQueue;
use lines::{Lines, TextFields};
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest as _, Sha256};
use tracing_subscriber::{
    EnvFilter,
    fmt::{MakeWriter, format::Writer, time::FormatTime, writer::BoxMakeWriter},
    util::SubscriberInitExt as _,
};

/// The target of the lines of the access log.
pub const ACCESS: &str = concat!(env!("CARGO_CRATE_NAME"), "::access");

/// Time for the last lines to be written at the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The log of the process, once [`init`] was called.
static LOG: OnceLock<Log> = OnceLock::new();

#[derive(Debug)]
struct Log {
    style: StyleCell,
    /// `None` if the thread that writes could not be started: each thread writes its own lines.
    queue: Option<LineQueue>,
}

/// Writes log events to stderr, filtered by `BUNDLEGATE_LOG` (such as `debug` or
/// `info,bundlegate::registry=trace`). Does nothing if a subscriber is installed already.
pub fn init() {
    init_with("info");
}

/// As [`init`], with another filter where `BUNDLEGATE_LOG` is not set.
pub fn init_with(default: &str) {
    let wanted = env::var("BUNDLEGATE_LOG")
        .ok()
        .filter(|wanted| !wanted.trim().is_empty());
    let (filter, refused) = filter(wanted.as_deref().or(Some(default)));
    let log = LOG.get_or_init(|| Log {
        style: StyleCell::from(LogFormat::Auto.style()),
        queue: LineQueue::start(io::stderr(), report_dropped).ok(),
    });
    let writer = match &log.queue {
        Some(queue) => BoxMakeWriter::new(queue.clone()),
        None => BoxMakeWriter::new(io::stderr),
    };
    if install(log.style.clone(), filter, writer).is_ok()
        && let Some(reason) = refused
    {
        tracing::warn!(%reason, "BUNDLEGATE_LOG is malformed; logging at level info");
    }
}

fn report_dropped(lines: u64) {
    tracing::warn!(
        lines,
        "log lines were dropped, because stderr is read too slowly"
    );
}

/// The format of log lines (`log.format`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Text, with colours on a terminal.
    Text,
    /// A JSON object a line.
    Json,
}

impl LogFormat {
    fn style(self) -> Style {
        let is_terminal = io::stderr().is_terminal();
        let is_coloured =
            is_terminal && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        match self {
            Self::Json => Style::Json,
            Self::Auto if !is_terminal => Style::Json,
            Self::Auto | Self::Text if is_coloured => Style::Colours,
            Self::Auto | Self::Text => Style::Plain,
        }
    }
}

/// Sets the format of the lines from now on. Does nothing before [`init`].
pub fn set_format(format: LogFormat) {
    if let Some(log) = LOG.get() {
        log.style.set(format.style());
    }
}

/// Waits until the lines so far are written, but not for long.
pub fn flush() {
    if let Some(queue) = LOG.get().and_then(|log| log.queue.as_ref()) {
        queue.flush(FLUSH_TIMEOUT);
    }
}

/// The number of lines that were dropped since the start of the process.
pub fn dropped_lines() -> DroppedLines {
    let queue = LOG.get().and_then(|log| log.queue.as_ref());
    queue.map(LineQueue::dropped).unwrap_or_default()
}

/// The time of the system clock, clamped to the years −9999 to 9999, outside of which it can't be
/// written as RFC 3339 and `Timestamp::now` of jiff panics.
pub fn now() -> Timestamp {
    nearest(SystemTime::now())
}

/// Milliseconds since 1970 by the system clock, zero before that. It costs less than [`now`] and is up to
/// ten milliseconds late.
pub fn now_millis() -> u64 {
    let time = clock_gettime(ClockId::RealtimeCoarse);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let millis = u64::try_from(time.tv_nsec).unwrap_or_default() / 1_000_000;
    seconds.saturating_mul(1000).saturating_add(millis)
}

/// Whether the system clock is between 1970 and 9999. TLS and signature libraries panic outside of
/// that range.
pub fn is_clock_usable() -> bool {
    is_usable(SystemTime::now())
}

fn nearest(time: SystemTime) -> Timestamp {
    let end = if time < UNIX_EPOCH {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    };
    Timestamp::try_from(time).unwrap_or(end)
}

fn is_usable(time: SystemTime) -> bool {
    Timestamp::try_from(time).is_ok_and(|time| time >= Timestamp::UNIX_EPOCH)
}

/// Maximum size of external text in a label, a header or a name.
pub const NAME_BYTES: usize = 256;
/// Maximum size of external text in a sentence, such as an error or a reason.
pub const SENTENCE_BYTES: usize = 4096;

/// Cuts `text` to at most `limit` bytes, for limits of 64 and above. A longer text is cut at a
/// character boundary and ends with a marker that has its length in bytes and the start of its
/// SHA-256, so that two long texts with the same beginning stay two label values.
pub fn cut(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    let hash = Sha256::digest(text.as_bytes());
    let hash: String = hash
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let marker = format!("…[{} bytes, sha256:{hash}]", text.len());
    let end = text.floor_char_boundary(limit.saturating_sub(marker.len()));
    Cow::Owned(format!("{}{marker}", &text[..end]))
}

/// An error with its causes. HTTP clients say what went wrong in the causes only.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Whether a character is a control (C0, C1, DEL), or changes the order or width of others while
/// invisible: directional marks, line and paragraph separators, zero-width characters, tags
/// (Unicode TR 36, TR 9).
pub fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The style of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Colours,
    Plain,
    Json,
}

/// The current style, which can be replaced. Clones are one cell.
#[derive(Debug, Clone)]
struct StyleCell(Arc<AtomicU8>);

impl From<Style> for StyleCell {
    fn from(style: Style) -> Self {
        Self(Arc::new(AtomicU8::new(style as u8)))
    }
}

impl StyleCell {
    fn set(&self, style: Style) {
        self.0.store(style as u8, Ordering::Relaxed);
    }

    fn get(&self) -> Style {
        let style = self.0.load(Ordering::Relaxed);
        let all = [Style::Colours, Style::Plain];
        let text = all.into_iter().find(|one| *one as u8 == style);
        text.unwrap_or(Style::Json)
    }
}

/// Times in RFC 3339, UTC, with milliseconds, as in all other output.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{:.3}", now())
    }
}

fn install<W>(
    style: StyleCell,
    filter: EnvFilter,
    writer: W,
) -> Result<(), tracing_subscriber::util::TryInitError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    subscriber(style, filter, writer).try_init()
}

fn subscriber<W>(
    style: StyleCell,
    filter: EnvFilter,
    writer: W,
) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .fmt_fields(TextFields)
        .event_format(Lines(style))
        .finish()
}

/// The filter, and the error of a malformed one.
fn filter(wanted: Option<&str>) -> (EnvFilter, Option<String>) {
    let text = wanted
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .unwrap_or("info");
    // The directives of the user come last, so that they override those for dependencies.
    match EnvFilter::try_new(format!("{QUIET},{text}")) {
        Ok(filter) => (filter, None),
        Err(error) => (
            EnvFilter::new(format!("{QUIET},info")),
            Some(error.to_string()),
        ),
    }
}

/// Levels of dependencies whose `info` and `debug` events concern only their authors. A rejected
/// certificate is reported by the code that connects, and not by rustls as well.
const QUIET: &str = "h2=warn,hyper=warn,hyper_util=warn,reqwest=warn,rustls=error,sigstore=warn,sigstore_verify=warn,\
                     oci_client=warn,notify=warn,moka=warn,tower=warn,\
                     rustls_platform_verifier=off";

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(style: Style, wanted: Option<&str>, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        tracing::subscriber::with_default(
            subscriber(style.into(), filter(wanted).0, move || writer.clone()),
            log,
        );
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_lines_have_flat_fields_and_millisecond_times() {
        let text = logged(Style::Json, None, || {
            tracing::info!(listener = "data", "listening")
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["listener"], "data");
        assert_eq!(line["message"], "listening");
        assert_eq!(line["level"], "INFO");
        let time = line["timestamp"].as_str().unwrap();
        assert_eq!(time.len(), "2026-01-01T00:00:00.000Z".len(), "{time}");
        assert!(time.ends_with('Z'));
    }

    #[test]
    fn any_clock_can_be_written_in_a_log_line() {
        let seconds = |seconds| Duration::from_secs(seconds);
        let (year_10200, year_1) = (seconds(259_700_000_000), seconds(62_100_000_000));
        for (time, written, usable) in [
            (UNIX_EPOCH, "1970-01-01T00:00:00.000Z", true),
            (UNIX_EPOCH - seconds(1), "1969-12-31T23:59:59.000Z", false),
            (UNIX_EPOCH - year_1, "0002-02-17T", false),
            (
                UNIX_EPOCH + seconds(2_147_483_648),
                "2038-01-19T03:14:08.000Z",
                true,
            ),
            (
                UNIX_EPOCH + seconds(253_370_764_800),
                "9999-01-01T00:00:00.000Z",
                true,
            ),
            (UNIX_EPOCH + seconds(253_402_300_799), "9999-12-30T", false),
            (UNIX_EPOCH + year_10200, "9999-12-30T", false),
            (UNIX_EPOCH + seconds(u64::MAX >> 1), "9999-12-30T", false),
            (UNIX_EPOCH - seconds(u64::MAX >> 1), "-009999-01-02T", false),
        ] {
            let shown = format!("{:.3}", nearest(time));
            assert!(shown.starts_with(written), "{shown} is not {written}");
            assert_eq!(is_usable(time), usable, "{shown}");
        }
    }

    #[test]
    fn a_text_is_cut_at_a_character_and_stays_distinct_from_texts_with_the_same_beginning() {
        assert_eq!(cut("v1.4.0", NAME_BYTES), "v1.4.0");
        let fits = "ä".repeat(NAME_BYTES / 2);
        assert_eq!(cut(&fits, NAME_BYTES), fits);
        for unit in ["x", "ä", "€", "𝄞", "xä"] {
            let long = unit.repeat(100_000);
            let shown = cut(&long, NAME_BYTES).into_owned();
            assert!(
                shown.len() <= NAME_BYTES && shown.len() > NAME_BYTES - 8,
                "{shown}"
            );
            assert!(
                shown.starts_with(unit)
                    && shown.contains(&format!("…[{} bytes, sha256:", long.len())),
                "{shown}"
            );
            let other = cut(&format!("{long}."), NAME_BYTES).into_owned();
            let twin = cut(
                &format!("{}y", &long[..long.len() - unit.len()]),
                NAME_BYTES,
            )
            .into_owned();
            assert!(shown != other && shown != twin);
        }
    }

    #[test]
    fn text_has_colours_only_in_the_style_with_colours() {
        let log = || tracing::warn!("hello");
        assert!(logged(Style::Colours, None, log).contains('\x1b'));
        assert!(!logged(Style::Plain, None, log).contains('\x1b'));
    }

    #[test]
    fn a_value_is_escaped_once() {
        let text = r#"line 3: "a\b" is no name"#;
        let log = || tracing::warn!(error = text, shown = %text, "refused\u{1b}[2J");
        let line: serde_json::Value =
            serde_json::from_str(&logged(Style::Json, None, log)).unwrap();
        assert_eq!(
            (&line["error"], &line["shown"]),
            (&text.into(), &text.into())
        );
        assert_eq!(line["message"], "refused\u{1b}[2J");
        let plain = logged(Style::Plain, None, log);
        assert!(
            plain.ends_with(&format!(
                "WARN refused\\u{{1b}}[2J error={text} shown={text}\n"
            )),
            "{plain}"
        );
    }

    /// The event has the form of a record of the `log` crate that `tracing-log` converts.
    #[test]
    fn no_line_contains_a_path_of_the_build_machine() {
        let log = || {
            tracing::warn!(
                target: "log",
                {
                    log.target = "rustls::conn",
                    log.module_path = "rustls::conn",
                    log.file = "/home/builder/.cargo/rustls/src/conn.rs",
                    log.line = 7
                },
                "sending an alert"
            );
        };
        let json = logged(Style::Json, None, log);
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&line["target"], &line["message"]),
            (&"rustls::conn".into(), &"sending an alert".into())
        );
        for line in [
            json,
            logged(Style::Plain, None, log),
            logged(Style::Colours, None, log),
        ] {
            assert!(!line.contains(".cargo") && !line.contains("log."), "{line}");
        }
    }

    #[test]
    fn dependencies_log_info_only_if_the_filter_says_so() {
        let log = || tracing::info!(target: "hyper", "chatter");
        assert_eq!(logged(Style::Plain, None, log), "");
        assert!(logged(Style::Plain, Some("info,hyper=info"), log).contains("chatter"));
        assert!(filter(Some("a=b=c")).1.is_some());
    }
}
