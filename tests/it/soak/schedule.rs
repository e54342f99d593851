//! Random schedules: what happens at the registry, and when.

use std::{fmt, time::Duration};

use proptest::{collection::vec, prelude::*, sample::select};

use super::model::BUNDLES;
use crate::{
    faulty::Fault,
    quirks::faults::{Signed, rows},
};

/// The type under which the registry has the layers of bundles.
pub(super) const LAYER: &str = "application/gzip";

/// A fault of the requests whose method and path contain `part`.
#[derive(Clone)]
pub(super) struct SwitchedFault {
    pub(super) what: &'static str,
    pub(super) part: &'static str,
    pub(super) fault: Fault,
    /// The number of requests that meet it.
    pub(super) times: usize,
}

/// What happens at the registry.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// These faults, and no others, are switched on.
    Faults(Vec<SwitchedFault>),
    /// The faults end. Then every bundle must be up to date.
    Heal,
    Push(usize, Push, Signed),
    /// What the tag names is signed.
    SignLater(usize, Signed),
    /// The bytes that the tag names, under another manifest.
    Repack(usize, Signed),
    /// The manifest that the tag names.
    PushAgain(usize),
    /// The tag moves to one of the versions that could be served, by their number.
    MoveBack(usize, usize),
    DeleteTag(usize),
    /// The gateway ends as in a crash, and starts with its cache.
    Restart,
}

/// What is pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Push {
    Good,
    Unsigned,
    /// With a signature by a key that nobody trusts.
    WronglySigned,
    /// With a good signature of bytes that are no bundle.
    Corrupt,
}

#[derive(Debug, Clone)]
pub(super) struct Schedule {
    /// Whether the registry has the referrers API.
    pub(super) referrers_api: bool,
    /// Whether it wants tokens.
    pub(super) tokens: bool,
    /// Each with the time that passes after it.
    pub(super) steps: Vec<Timed>,
}

impl fmt::Debug for SwitchedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        match self.times {
            usize::MAX => Ok(()),
            times => write!(f, " ({times} times)"),
        }
    }
}

/// Faults that take time, or that need a token server, beside those of the table in
/// `tests/README.md`.
fn slow_faults() -> Vec<(&'static str, &'static str, Fault)> {
    let second = Duration::from_secs(1);
    let status = |status| Fault::Status(status, vec![]);
    let limited = |value: &str| Fault::Status(429, vec![("retry-after", value.to_owned())]);
    vec![
        ("every request: no answer", "", Fault::Stall),
        ("every request: 5 s", "", Fault::Slow(5 * second)),
        ("every request: 20 s", "", Fault::Slow(20 * second)),
        ("every request: 503", "", status(503)),
        ("every request: 429 for 30 s", "", limited("30")),
        ("every request: 429 for some time", "", limited("later")),
        ("HEAD: no answer", "HEAD ", Fault::Stall),
        ("blob: silence after 10 bytes", "/blobs/", Fault::Halt(10)),
        (
            "blob: 10 pieces in 40 s",
            "/blobs/",
            Fault::Pieces(10, 4 * second),
        ),
        (
            "manifest: 50 pieces in 700 s",
            "GET /v2/acme/authz/manifests/",
            Fault::Pieces(50, 14 * second),
        ),
        ("referrers API: no answer", "/referrers/", Fault::Stall),
        (".sig tag: no answer", ".sig", Fault::Stall),
        ("token server: 503", "/token", status(503)),
        ("token server: 429 for 30 s", "/token", limited("30")),
        ("token server: 401", "/token", status(401)),
        ("token server: no answer", "/token", Fault::Stall),
        (
            "token server: a web page",
            "/token",
            Fault::Replace("<html>".into()),
        ),
        (
            "token server: an empty token",
            "/token",
            Fault::Replace(r#"{"token": ""}"#.into()),
        ),
    ]
}

fn faults() -> Vec<SwitchedFault> {
    let fault = |(what, part, fault)| SwitchedFault {
        what,
        part,
        fault,
        times: usize::MAX,
    };
    let table = rows()
        .into_iter()
        .map(|row| (row.what, row.part, row.fault));
    let others = slow_faults().into_iter().chain(layer_faults());
    table.chain(others).map(fault).collect()
}

/// Faults of the layer alone, which is fetched after the signatures, beside those of all blobs.
fn layer_faults() -> Vec<(&'static str, &'static str, Fault)> {
    let part = "type:application/gzip";
    let faults = [
        ("layer: 404", Fault::Status(404, vec![])),
        ("layer: 403", Fault::Status(403, vec![])),
        ("layer: 500", Fault::Status(500, vec![])),
        ("layer: the connection breaks", Fault::Truncate(10)),
        ("layer: silence after 10 bytes", Fault::Halt(10)),
        (
            "layer: cut short, with a Content-Length to match",
            Fault::Clip(10),
        ),
        ("layer: a web page", Fault::Replace("<html>".into())),
        ("layer: endless", Fault::Endless),
        ("layer: no answer", Fault::Stall),
        (
            "layer: elsewhere",
            Fault::Status(307, vec![("location", "http://127.0.0.1:1/".into())]),
        ),
    ];
    faults.map(|(what, fault)| (what, part, fault)).into()
}

type Timed = (Step, Duration);

fn pause() -> impl Strategy<Value = Duration> {
    let pause = prop_oneof![3 => 0..2_000_u64, 6 => 2_000..25_000_u64, 1 => 25_000..90_000_u64];
    pause.prop_map(Duration::from_millis)
}

fn switch() -> impl Strategy<Value = Step> {
    let times = select(vec![usize::MAX, usize::MAX, 3, 1]);
    let fault = (select(faults()), times);
    let fault = fault.prop_map(|(fault, times)| SwitchedFault { times, ..fault });
    vec(fault, 0..=5).prop_map(Step::Faults)
}

fn signed() -> impl Strategy<Value = Signed> {
    select(vec![Signed::Legacy, Signed::Listed, Signed::Tagged])
}

fn push() -> impl Strategy<Value = Step> {
    let push = prop_oneof![
        6 => Just(Push::Good),
        2 => Just(Push::Unsigned),
        1 => Just(Push::WronglySigned),
        1 => Just(Push::Corrupt),
    ];
    (0..BUNDLES.len(), push, signed())
        .prop_map(|(bundle, push, signed)| Step::Push(bundle, push, signed))
}

fn other() -> impl Strategy<Value = Step> {
    let bundle = 0..BUNDLES.len();
    let signature = || (bundle.clone(), signed());
    let version = (bundle.clone(), 0..4_usize);
    prop_oneof![
        3 => signature().prop_map(|(bundle, signed)| Step::SignLater(bundle, signed)),
        2 => signature().prop_map(|(bundle, signed)| Step::Repack(bundle, signed)),
        1 => bundle.clone().prop_map(Step::PushAgain),
        2 => version.prop_map(|(bundle, version)| Step::MoveBack(bundle, version)),
        1 => bundle.clone().prop_map(Step::DeleteTag),
        2 => Just(Step::Restart),
        1 => Just(Step::Heal),
    ]
}

/// Steps that follow each other: mostly something new under new faults.
fn group() -> impl Strategy<Value = Vec<Timed>> {
    let switch_and_push = (switch(), push(), pause());
    prop_oneof![
        4 => switch_and_push
            .prop_map(|(switch, push, pause)| vec![(switch, Duration::ZERO), (push, pause)]),
        1 => (switch(), pause()).prop_map(|one| vec![one]),
        2 => (push(), pause()).prop_map(|one| vec![one]),
        4 => (other(), pause()).prop_map(|one| vec![one]),
    ]
}

pub(super) fn schedules() -> impl Strategy<Value = Schedule> {
    let groups = vec(group(), 3..16);
    let schedule = (any::<bool>(), any::<bool>(), groups);
    schedule.prop_map(|(referrers_api, tokens, groups)| Schedule {
        referrers_api,
        tokens,
        steps: groups.into_iter().flatten().collect(),
    })
}
