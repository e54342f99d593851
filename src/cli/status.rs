//! `bundlegate status`: what a running gateway serves.

use std::{io::IsTerminal as _, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};
use tokio::time::sleep;

use super::{admin_client::AdminFlags, interruptible, print, table};
use crate::telemetry;

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate status
  bundlegate status authz/main --json
  bundlegate status --watch --admin unix:/run/bundlegate/admin.sock

The last failure stays until the next check that succeeds. `served` is the version that clients get,
whatever the last check has found. Certificates and trust roots that expire soon are listed below the table.";

/// Between two questions with `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Certificates that expire within this time are shown, and trust roots whose last refresh failed.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Other trust roots are refreshed before they expire within this time.
const REFRESH_TIME: SignedDuration = SignedDuration::from_hours(24);
/// The longest text of a failure in the table, in characters.
const FAILURE_WIDTH: usize = 80;
/// Moves the cursor to the top of the terminal, and clears what is below it.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The bundle's name in the configuration; all bundles without it.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print JSON: what /status has, of the bundle or of everything.
    #[arg(long)]
    json: bool,
    /// Ask every two seconds, and print what has changed, until Ctrl-C.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    admin: AdminFlags,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    interruptible(status(&options)).await?
}

async fn status(options: &Options) -> anyhow::Result<()> {
    let is_terminal = std::io::stdout().is_terminal();
    let mut last = None;
    loop {
        let answer = options.admin.get("/status").await.context("status")?;
        let shown = options.select(&answer)?;
        // Ages change all the time, so they count only where the text is replaced on a terminal.
        let content = options.render(shown, Timestamp::UNIX_EPOCH)?;
        let is_live = options.watch && is_terminal && !options.json;
        if is_live || last.as_ref() != Some(&content) {
            let clear = if is_live { CLEAR } else { "" };
            print(&format!(
                "{clear}{}",
                options.render(shown, telemetry::now())?
            ))?;
        }
        if !options.watch {
            return Ok(());
        }
        last = Some(content);
        sleep(WATCH_INTERVAL).await;
    }
}

impl Options {
    /// The part of an answer that is shown.
    fn select<'a>(&self, answer: &'a Value) -> anyhow::Result<&'a Value> {
        let Some(bundles) = answer.get("bundles").and_then(Value::as_object) else {
            bail!("status: the answer is not one of bundlegate; check --admin");
        };
        let Some(name) = &self.name else {
            return Ok(answer);
        };
        let Some(bundle) = bundles.get(name) else {
            let names: Vec<_> = bundles.keys().map(String::as_str).collect();
            bail!("status: no bundle {name}; there are: {}", names.join(", "));
        };
        Ok(bundle)
    }

    fn render(&self, shown: &Value, now: Timestamp) -> anyhow::Result<String> {
        if self.json {
            return Ok(table::printable_json(&serde_json::to_string_pretty(shown)?));
        }
        Ok(match &self.name {
            Some(name) => facts(name, shown, now),
            None => {
                let bundles = shown.get("bundles").and_then(Value::as_object);
                let table = bundles.map_or_else(String::new, |bundles| table(bundles, now));
                let notes: Vec<_> = reload(shown)
                    .into_iter()
                    .chain(expiries(shown, now))
                    .collect();
                match notes.as_slice() {
                    [] => table,
                    notes => format!("{table}\n\n{}", notes.join("\n")),
                }
            }
        })
    }
}

/// One line for each bundle.
fn table(bundles: &Map<String, Value>, now: Timestamp) -> String {
    let rows: Vec<_> = bundles
        .iter()
        .map(|(name, bundle)| {
            [
                name.clone(),
                state(bundle),
                tag(bundle),
                short_digest(bundle),
                age(bundle, "since", now),
                signers(bundle),
                cut(&failure(bundle, now)),
            ]
        })
        .collect();
    let header = [
        "BUNDLE",
        "STATE",
        "TAG",
        "DIGEST",
        "SINCE",
        "SIGNERS",
        "LAST FAILURE",
    ];
    table::columns(header, &rows)
}

/// A line for a configuration on disk that is refused, and one for the keys that wait for a restart.
fn reload(answer: &Value) -> Vec<String> {
    let refused = answer.pointer("/config/refused").and_then(Value::as_str);
    let refused = refused.map(|reason| {
        let reason = table::printable(reason);
        format!("the configuration on disk is refused, and the one before stays: {reason}")
    });
    let keys = answer
        .pointer("/config/restart_keys")
        .and_then(Value::as_array);
    let keys: Vec<_> = keys
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let waiting = (!keys.is_empty()).then(|| {
        let keys = table::printable(&keys.join(", "));
        format!("changes that take effect at the next start: {keys}")
    });
    refused.into_iter().chain(waiting).collect()
}

/// A line for each certificate and trust root that has expired or does so soon.
fn expiries(answer: &Value, now: Timestamp) -> Vec<String> {
    let entries = |key: &str| {
        let entries = answer.get(key).and_then(Value::as_object);
        entries.into_iter().flatten()
    };
    let certificates = entries("certificates").map(|(name, entry)| (name.clone(), entry, SOON));
    let roots = entries("trust_roots").map(|(name, entry)| {
        let is_failing = entry.get("last_failure").is_some_and(Value::is_object);
        let soon = if is_failing { SOON } else { REFRESH_TIME };
        (format!("trust root {name}"), entry, soon)
    });
    let all = certificates.chain(roots);
    let line = |(name, entry, soon): (String, &Value, SignedDuration)| {
        let expires: Timestamp = entry.get("expires")?.as_str()?.parse().ok()?;
        let name = table::printable(&name);
        let left = expires.duration_since(now);
        match left {
            left if left.is_negative() => {
                Some(format!("{name} expired {}", table::age(expires, now)))
            }
            left if left <= soon => Some(format!("{name} expires in {}", table::duration(left))),
            _ => None,
        }
    };
    all.filter_map(line).collect()
}

/// Everything that the table has of one bundle, and more.
fn facts(name: &str, bundle: &Value, now: Timestamp) -> String {
    table::facts(&[
        ("bundle", name.to_owned()),
        ("state", state(bundle)),
        ("reference", text(bundle, "/reference")),
        ("tag", tag(bundle)),
        ("chosen tag", text(bundle, "/chosen/tag")),
        ("served", text(bundle, "/manifest")),
        ("revision", text(bundle, "/revision")),
        ("since", age(bundle, "since", now)),
        ("signers", signers(bundle)),
        ("policy", text(bundle, "/policy")),
        ("waiters", text(bundle, "/waiters")),
        ("last check", age(bundle, "last_check", now)),
        ("last failure", failure(bundle, now)),
        ("refused", text(bundle, "/refused/digest")),
        ("fallback", text(bundle, "/fallback/bundle")),
    ])
}

fn state(bundle: &Value) -> String {
    let state = text(bundle, "/state");
    match bundle.get("suspended").and_then(Value::as_bool) {
        Some(true) => format!("{state}, suspended"),
        _ => state,
    }
}

/// The tag of the version being served; before there is one, the tag that a rule has chosen, or the
/// one in the reference.
fn tag(bundle: &Value) -> String {
    let (served, chosen) = (text(bundle, "/tag"), text(bundle, "/chosen/tag"));
    let is_served = text(bundle, "/manifest") != ABSENT;
    if served != ABSENT || is_served && bundle.get("tag").is_some() {
        return served;
    }
    if chosen != ABSENT {
        return chosen;
    }
    let reference = text(bundle, "/reference");
    let without_digest = reference.split('@').next().unwrap_or_default();
    match without_digest.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag.to_owned(),
        _ => ABSENT.to_owned(),
    }
}

fn short_digest(bundle: &Value) -> String {
    let digest = text(bundle, "/manifest");
    match digest.split_once(':') {
        Some((_, hex)) => hex.chars().take(12).collect(),
        None => digest,
    }
}

fn signers(bundle: &Value) -> String {
    let signers = bundle.get("signers").and_then(Value::as_array);
    let mut names: Vec<_> = signers
        .into_iter()
        .flatten()
        .filter_map(|signer| signer.get("authority").and_then(Value::as_str))
        .collect();
    names.dedup();
    match names.is_empty() {
        true => ABSENT.to_owned(),
        false => names.join(", "),
    }
}

fn failure(bundle: &Value, now: Timestamp) -> String {
    match bundle.get("last_failure") {
        Some(failure @ Value::Object(_)) => format!(
            "{}, {}: {}",
            text(failure, "/class"),
            age(failure, "at", now),
            text(failure, "/message")
        ),
        _ => ABSENT.to_owned(),
    }
}

fn cut(text: &str) -> String {
    let mut shown: String = text.chars().take(FAILURE_WIDTH).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn age(value: &Value, key: &str, now: Timestamp) -> String {
    let then = value.get(key).and_then(Value::as_str);
    let then = then.and_then(|then| then.parse().ok());
    then.map_or_else(|| ABSENT.to_owned(), |then| table::age(then, now))
}

/// Stands for a value that is absent.
const ABSENT: &str = "-";

fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => ABSENT.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_bundle_and_a_bundle_has_everything() {
        let bundles = json!({
            "a": {
                "state": "serving", "reference": "r.example:5000/a:live@sha256:00", "suspended": true,
                "manifest": "sha256:0123456789abcdef", "revision": "one\u{1b}[2J", "waiters": 3,
                "since": "2026-01-01T00:00:00.000Z", "last_check": "2026-01-01T01:00:00.000Z",
                "signers": [{ "authority": "release" }, { "authority": "release" }], "policy": "corp",
                "last_failure": {
                    "at": "2026-01-01T01:59:00Z", "class": "evidence", "message": "x".repeat(100),
                },
            },
            "b": { "state": "pending", "reference": "r.example:5000/b", "chosen": { "tag": "1.2.3" } },
            "c": { "state": "pending", "reference": "r.example:5000/c" },
        });
        let now = "2026-01-01T02:00:00Z".parse().unwrap();
        let failure = format!("evidence, 1 minute ago: {}", "x".repeat(100));
        let (cut, rest) = failure.split_at(80);
        assert_eq!(
            table(bundles.as_object().unwrap(), now),
            format!(
                "BUNDLE  STATE               TAG    DIGEST        SINCE        SIGNERS  LAST FAILURE\n\
                 a       serving, suspended  live   0123456789ab  2 hours ago  release  {cut}…\n\
                 b       pending             1.2.3  -             -            -        -\n\
                 c       pending             -      -             -            -        -"
            )
        );
        let facts = facts("a", &bundles["a"], now);
        assert!(facts.contains(&format!("{cut}{rest}")), "{facts}");
        assert!(
            facts.contains("served        sha256:0123456789abcdef\n"),
            "{facts}"
        );
        assert!(facts.contains("waiters       3\n"), "{facts}");
        // What comes from an artifact moves no cursor.
        assert!(!facts.contains('\u{1b}'), "{facts}");
    }

    #[test]
    fn the_tag_is_that_of_the_served_version_and_not_of_a_refused_one() {
        let bundle = |tag: Value, manifest: Value| {
            json!({
                "reference": "r.example/a", "tag": tag, "manifest": manifest,
                "chosen": { "tag": "1.1.0" },
            })
        };
        let digest = json!("sha256:00");
        for (tag_of_served, manifest, shown) in [
            (json!("1.0.0"), digest.clone(), "1.0.0"),
            (Value::Null, digest, "-"),
            (Value::Null, Value::Null, "1.1.0"),
        ] {
            assert_eq!(tag(&bundle(tag_of_served, manifest)), shown);
        }
    }

    #[test]
    fn a_refused_configuration_and_keys_that_wait_are_listed() {
        let config = json!({ "refused": "a.yaml:1:1: x\u{1b}", "restart_keys": ["server.listen"] });
        let lines = reload(&json!({ "config": config }));
        assert_eq!(
            lines.join("\n"),
            "the configuration on disk is refused, and the one before stays: a.yaml:1:1: x\\u{1b}\n\
             changes that take effect at the next start: server.listen"
        );
        let config = json!({ "refused": null, "restart_keys": [] });
        assert!(reload(&json!({ "config": config })).is_empty());
    }

    #[test]
    fn what_expires_soon_is_listed_and_nothing_else() {
        let answer = json!({
            "certificates": {
                "server.tls.certificate": { "expires": "2026-01-07T12:00:00Z" },
                "server.tls.client_ca": { "expires": "2026-03-01T00:00:00Z" },
                "registries.r.example.client_certificate": { "expires": "2025-12-30T00:00:00Z" },
            },
            "trust_roots": {
                "corp\u{1b}": { "expires": "2026-01-01T03:00:00Z" },
                "fresh": { "expires": "2026-01-05T00:00:00Z", "last_failure": null },
                "old": { "expires": "2026-01-05T00:00:00Z", "last_failure": { "reason": "outdated" } },
                "sigstore": { "expires": null },
            },
        });
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(
            expiries(&answer, now),
            [
                "registries.r.example.client_certificate expired 2 days ago",
                "server.tls.certificate expires in 6 days",
                "trust root corp\\u{1b} expires in 3 hours",
                "trust root old expires in 4 days",
            ]
        );
        // A gateway of an earlier version tells nothing of them.
        assert!(expiries(&json!({}), now).is_empty());
    }
}
