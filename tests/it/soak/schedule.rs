//! Random schedules: what happens at the registry, and when.

use std::{fmt, time::Duration};

use proptest::{collection::vec, prelude::*, sample::select};

use super::model::BUNDLES;
use crate::{
    faulty::Fault,
    quirks::faults::{Signed, rows},
};

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
    pub(super) steps: Vec<(Step, Duration)>,
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
    table.chain(slow_faults()).map(fault).collect()
}

fn steps() -> impl Strategy<Value = Step> {
    let bundle = 0..BUNDLES.len();
    let signed = || select(vec![Signed::Legacy, Signed::Listed, Signed::Tagged]);
    let times = select(vec![usize::MAX, usize::MAX, 3, 1]);
    let fault = (select(faults()), times);
    let fault = fault.prop_map(|(fault, times)| SwitchedFault { times, ..fault });
    let push = prop_oneof![
        6 => Just(Push::Good),
        2 => Just(Push::Unsigned),
        1 => Just(Push::WronglySigned),
        1 => Just(Push::Corrupt),
    ];
    prop_oneof![
        6 => vec(fault, 0..=5).prop_map(Step::Faults),
        6 => (bundle.clone(), push, signed()).prop_map(|(bundle, push, signed)| Step::Push(bundle, push, signed)),
        2 => (bundle.clone(), signed()).prop_map(|(bundle, signed)| Step::SignLater(bundle, signed)),
        1 => (bundle.clone(), signed()).prop_map(|(bundle, signed)| Step::Repack(bundle, signed)),
        1 => bundle.clone().prop_map(Step::PushAgain),
        1 => (bundle.clone(), 0..4_usize).prop_map(|(bundle, version)| Step::MoveBack(bundle, version)),
        1 => bundle.prop_map(Step::DeleteTag),
        2 => Just(Step::Restart),
        1 => Just(Step::Heal),
    ]
}

pub(super) fn schedules() -> impl Strategy<Value = Schedule> {
    let pause = prop_oneof![0..2_000_u64, 2_000..90_000_u64];
    let step = (steps(), pause.prop_map(Duration::from_millis));
    let schedule = (any::<bool>(), any::<bool>(), vec(step, 3..12));
    schedule.prop_map(|(referrers_api, tokens, steps)| Schedule {
        referrers_api,
        tokens,
        steps,
    })
}
