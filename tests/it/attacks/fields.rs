//! Every field of good signatures: bent, emptied, dropped, doubled, with another type, and the
//! same inside of whatever is encoded in it. Nothing of it is accepted but what is listed here,
//! and nothing panics.

mod harmless;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bundlegate::{
    oci::{Descriptor, Manifest, PinnedReference},
    verify::{Authority, Evidence, Signer, TlogPolicy, TrustPolicy, Verified},
};
use serde_json::{Value, json};

use self::harmless::MEANINGLESS;
use super::fixture::{Fixture, keyed, keyed_in_log, keyless, policy};
use crate::forge::{By, Envelope, Legacy, pem};

/// Bytes of a blob that are flipped, at most; evenly spread.
const FLIPS: usize = 24;

/// A JSON document that may be wrong in ways that `Value` can't be.
#[derive(Debug, Clone)]
enum Node {
    Object(Vec<(String, Node)>),
    Array(Vec<Node>),
    Leaf(Value),
}

impl Node {
    fn of(value: &Value) -> Self {
        match value {
            Value::Object(members) => Self::Object(
                members
                    .iter()
                    .map(|(name, value)| (name.clone(), Self::of(value)))
                    .collect(),
            ),
            Value::Array(items) => Self::Array(items.iter().map(Self::of).collect()),
            leaf => Self::Leaf(leaf.clone()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Object(members) => {
                let members = members
                    .iter()
                    .map(|(name, node)| format!("{}:{}", json!(name), node.text()));
                format!("{{{}}}", members.collect::<Vec<_>>().join(","))
            }
            Self::Array(items) => format!(
                "[{}]",
                items.iter().map(Self::text).collect::<Vec<_>>().join(",")
            ),
            Self::Leaf(value) => value.to_string(),
        }
    }

    /// Every way to bend this document in one place: where and how, `.member.0~how`.
    fn bent(&self) -> Vec<(String, Self)> {
        let mut all = self.replaced();
        match self {
            Self::Object(members) => {
                for (at, (name, node)) in members.iter().enumerate() {
                    let with = |replacement: Vec<(String, Self)>| {
                        let mut members = members.clone();
                        members.splice(at..=at, replacement);
                        Self::Object(members)
                    };
                    let evil = node
                        .replaced()
                        .into_iter()
                        .next()
                        .map_or(Self::Leaf(Value::Null), |(_, evil)| evil);
                    let (good, evil) = ((name.clone(), node.clone()), (name.clone(), evil));
                    all.push((format!(".{name}~gone"), with(vec![])));
                    all.push((
                        format!(".{name}~twice"),
                        with(vec![good.clone(), good.clone()]),
                    ));
                    all.push((
                        format!(".{name}~twice"),
                        with(vec![good.clone(), evil.clone()]),
                    ));
                    all.push((format!(".{name}~twice"), with(vec![evil, good])));
                    all.push((
                        format!(".{name}~renamed"),
                        with(vec![(format!("{name}x"), node.clone())]),
                    ));
                    for (below, bent) in node.bent() {
                        all.push((format!(".{name}{below}"), with(vec![(name.clone(), bent)])));
                    }
                }
                let mut more = members.clone();
                more.push(("unknown".to_owned(), Self::Leaf(json!({"x": 1}))));
                all.push(("~more".to_owned(), Self::Object(more)));
            }
            Self::Array(items) => {
                for (at, node) in items.iter().enumerate() {
                    let with = |replacement: Vec<Self>| {
                        let mut items = items.clone();
                        items.splice(at..=at, replacement);
                        Self::Array(items)
                    };
                    all.push((format!(".{at}~gone"), with(vec![])));
                    all.push((
                        format!(".{at}~doubled"),
                        with(vec![node.clone(), node.clone()]),
                    ));
                    all.extend(
                        node.bent()
                            .into_iter()
                            .map(|(below, bent)| (format!(".{at}{below}"), with(vec![bent]))),
                    );
                }
            }
            Self::Leaf(_) => {}
        }
        all
    }

    /// Other values in the place of this one.
    fn replaced(&self) -> Vec<(String, Self)> {
        let how = |how: &str, node: Self| (format!("~{how}"), node);
        let mut all: Vec<(String, Self)> = match self {
            Self::Leaf(Value::String(text)) => strings(text)
                .into_iter()
                .map(|(how, text)| (how, Self::Leaf(text.into())))
                .collect(),
            Self::Leaf(Value::Number(number)) => {
                let number = number.as_i64().unwrap();
                let others = [
                    number + 1,
                    number - 1,
                    -number,
                    number << 1,
                    i64::MAX,
                    i64::MIN,
                ];
                others
                    .map(|other| how("number", Self::Leaf(other.into())))
                    .into()
            }
            Self::Array(items) => vec![how(
                "doubled",
                Self::Array(items.iter().chain(items).cloned().collect()),
            )],
            Self::Leaf(_) | Self::Object(_) => Vec::new(),
        };
        let others = [
            json!(true),
            json!(7),
            json!(-1),
            json!("x"),
            json!(null),
            json!(""),
            json!([]),
            json!({}),
        ];
        all.extend(
            others
                .iter()
                .take(4)
                .map(|other| how("other", Self::of(other))),
        );
        all.extend(
            others
                .iter()
                .skip(4)
                .map(|other| how("empty", Self::of(other))),
        );
        all.push(how("other", Self::Array(vec![self.clone()])));
        all.retain(|(_, other)| other.text() != self.text());
        all
    }
}

/// Other texts, bent inside of what they encode where they encode something.
fn strings(text: &str) -> Vec<(String, String)> {
    let how = |how: &str, text: String| (format!("~{how}"), text);
    let mut all = vec![
        how("longer", format!("{text}x")),
        how("upper", text.to_uppercase()),
        how("lower", text.to_lowercase()),
        how("blank", format!(" {text}")),
        how("blank", format!("{text}\n")),
        how("blank", format!("{text}\r\n ")),
    ];
    if let Some((last, front)) = text.as_bytes().split_last() {
        all.push(how(
            "last",
            String::from_utf8_lossy(&[front, &[last ^ 1]].concat()).into_owned(),
        ));
        all.push(how(
            if *last == b'=' { "unpadded" } else { "shorter" },
            String::from_utf8_lossy(front).into_owned(),
        ));
    }
    if let Ok(number) = text.parse::<i64>() {
        all.extend(
            [number + 1, number - 1, 0, -number].map(|other| how("number", other.to_string())),
        );
    } else if let Ok(document @ (Value::Object(_) | Value::Array(_))) =
        serde_json::from_str::<Value>(text)
    {
        all.extend(
            Node::of(&document)
                .bent()
                .into_iter()
                .map(|(place, bent)| (place, bent.text())),
        );
    } else if let Some(der) = text.strip_prefix("-----BEGIN CERTIFICATE-----\n") {
        let (body, _) = der.split_once("\n-----END").unwrap();
        let bent = bytes(&STANDARD.decode(body.replace('\n', "")).unwrap());
        all.extend(
            bent.into_iter()
                .map(|(place, der)| (place, pem("CERTIFICATE", &der))),
        );
        all.push(how("doubled", format!("{text}{text}")));
    } else if text.contains("\n\u{2014} ") {
        all.extend(notes(text));
    } else if let Some(decoded) = STANDARD.decode(text).ok().filter(|bytes| bytes.len() > 8) {
        all.extend(
            bytes(&decoded)
                .into_iter()
                .map(|(place, bytes)| (place, STANDARD.encode(bytes))),
        );
    }
    all.retain(|(_, other)| other != text);
    all
}

/// A signed note, line by line.
fn notes(text: &str) -> Vec<(String, String)> {
    let lines: Vec<_> = text.split('\n').map(str::to_owned).collect();
    let mut all = Vec::new();
    for at in 0..lines.len() {
        let line = &lines[at];
        let part = match line {
            line if line.starts_with('\u{2014}') => "signature",
            line if line.is_empty() => "end",
            _ => "text",
        };
        let mut with = |how: &str, replacement: Vec<String>| {
            let mut lines = lines.clone();
            lines.splice(at..=at, replacement);
            all.push((format!(".{part}~{how}"), lines.join("\n")));
        };
        with("gone", vec![]);
        with("longer", vec![format!("{line}0")]);
        with("blank", vec![format!("{line} ")]);
        with("doubled", vec![line.clone(), line.clone()]);
        if part == "signature" {
            let (front, signature) = line.rsplit_once(' ').unwrap();
            for (how, bent) in bytes(&STANDARD.decode(signature).unwrap()) {
                with(
                    &how[1..],
                    vec![format!("{front} {}", STANDARD.encode(bent))],
                );
            }
            with("name", vec![line.replace("rekor", "Rekor")]);
        }
    }
    all
}

/// Other bytes: bits flipped all over, shorter, longer, and the document in them bent.
fn bytes(good: &[u8]) -> Vec<(String, Vec<u8>)> {
    let step = good.len().div_ceil(FLIPS);
    let flipped = (0..good.len())
        .step_by(step)
        .chain([good.len() - 1])
        .map(|at| {
            let mut bytes = good.to_vec();
            bytes[at] ^= 1 << (at % 8);
            ("~flipped".to_owned(), bytes)
        });
    let mut all: Vec<_> = flipped.collect();
    all.push(("~shorter".to_owned(), good[..good.len() - 1].to_vec()));
    all.push(("~longer".to_owned(), [good, &[0]].concat()));
    all.push(("~doubled".to_owned(), [good, good].concat()));
    if let Ok(document @ Value::Object(_)) = serde_json::from_slice::<Value>(good) {
        let bent = Node::of(&document).bent().into_iter();
        all.extend(bent.map(|(place, bent)| (format!("/{place}"), bent.text().into_bytes())));
        // The same, spelled otherwise: a signature is over the bytes.
        all.push((
            "/~spelled".to_owned(),
            serde_json::to_vec_pretty(&document).unwrap(),
        ));
    }
    all
}

/// A good signature, and its judge.
struct Good {
    name: &'static str,
    policy: TrustPolicy,
    pinned: PinnedReference,
    manifest: Manifest,
    evidence: Value,
    signers: Vec<Signer>,
}

#[derive(Default)]
struct Counts {
    tried: usize,
    accepted: BTreeMap<&'static str, usize>,
    unexpected: Vec<String>,
}

impl Good {
    async fn new(name: &'static str, fixture: &Fixture, policy: TrustPolicy) -> Self {
        let (pinned, manifest, evidence) = fixture.gather().await;
        let signers = Verified::verify(&policy, &pinned, manifest.clone(), &evidence)
            .unwrap()
            .signers()
            .to_vec();
        let evidence = serde_json::from_slice(&evidence.to_bytes().unwrap()).unwrap();
        Self {
            name,
            policy,
            pinned,
            manifest,
            evidence,
            signers,
        }
    }

    fn verify(&self, evidence: &Value, place: &str, counts: &mut Counts) {
        counts.tried += 1;
        let Ok(evidence) = Evidence::from_bytes(evidence.to_string().as_bytes()) else {
            return;
        };
        let judging =
            || Verified::verify(&self.policy, &self.pinned, self.manifest.clone(), &evidence);
        let judged = catch_unwind(AssertUnwindSafe(judging))
            .unwrap_or_else(|_| panic!("{}: {place} panics", self.name));
        let Ok(verified) = judged else { return };
        let (field, how) = place.split_once('~').unwrap();
        let meaningless = MEANINGLESS.iter().find(|(signature, of, ways, _)| {
            let way = ways.is_empty() || ways.split(' ').any(|way| way == how);
            way && self.name.contains(signature) && field.ends_with(of)
        });
        let Some((.., why)) = meaningless else {
            counts.unexpected.push(place.to_owned());
            return;
        };
        // The time may be lost with its proof, and is never another one.
        let untimed = |one: &Signer| Signer {
            signed_at: None,
            ..one.clone()
        };
        let [signer, good] = [verified.signers(), self.signers.as_slice()];
        assert_eq!(
            untimed(&signer[0]),
            untimed(&good[0]),
            "{}: {place} changes who signed",
            self.name
        );
        let lost = signer[0].signed_at.is_none() && why.ends_with("the time is lost");
        assert!(
            lost || signer[0].signed_at == good[0].signed_at,
            "{}: {place} changes the time",
            self.name
        );
        *counts.accepted.entry(why).or_default() += 1;
    }

    /// The bundle bent, and attached as whoever bent it would.
    fn bend_bundle(&self, counts: &mut Counts) {
        let attached = &self.evidence["bundles"][0];
        let decode = |part: &str| STANDARD.decode(attached[part].as_str().unwrap()).unwrap();
        let (bundle, referrer) = (decode("bundle"), decode("referrer"));
        let bundle: Value = serde_json::from_slice(&bundle).unwrap();
        let referrer: Value = serde_json::from_slice(&referrer).unwrap();
        for (place, bent) in Node::of(&bundle).bent() {
            let text = bent.text();
            let mut referrer = referrer.clone();
            let layer = json!(Descriptor::of(
                referrer["layers"][0]["mediaType"].as_str().unwrap(),
                text.as_bytes()
            ));
            referrer["layers"] = json!([layer]);
            let mut evidence = self.evidence.clone();
            evidence["bundles"][0] = json!({
                "bundle": STANDARD.encode(text), "referrer": STANDARD.encode(referrer.to_string()),
            });
            self.verify(&evidence, place.trim_start_matches('.'), counts);
        }
    }

    fn bend_legacy(&self, counts: &mut Counts) {
        for (place, bent) in Node::of(&self.evidence["legacy"][0]).bent() {
            // This level is the gateway's own record, in which nothing is there twice.
            if place.matches('.').count() == 1 && place.ends_with("~twice") {
                continue;
            }
            let bent: Value = serde_json::from_str(&bent.text()).unwrap();
            let mut evidence = self.evidence.clone();
            evidence["legacy"][0] = bent;
            self.verify(&evidence, &format!("legacy{place}"), counts);
        }
    }

    fn tell(&self, counts: &Counts) {
        let accepted: usize = counts.accepted.values().sum();
        println!(
            "{:28} {:6} bent, {} refused, {accepted} accepted",
            self.name,
            counts.tried,
            counts.tried - accepted
        );
        counts
            .accepted
            .iter()
            .for_each(|(why, number)| println!("{:28} {number:6} {why}", ""));
        assert!(counts.tried > 200, "{} was hardly bent", self.name);
        assert!(
            counts.unexpected.is_empty(),
            "{}: accepted although bent: {:?}",
            self.name,
            counts.unexpected
        );
    }
}

#[tokio::test]
async fn no_field_of_a_bundle_can_be_bent() {
    let fixture = Fixture::new().await;
    let forge = &fixture.forge;
    let statement = fixture.statement();
    let (by, envelope) = (
        By::Certificate(&fixture.signer),
        Envelope::sign(&fixture.signer.key, &statement),
    );
    let (by_key, by_key_envelope) = (
        By::Key(&fixture.key),
        Envelope::sign(&fixture.key, &statement),
    );
    let stamp = [forge.stamp(&envelope.signature)];
    let workflow = || fixture.trusts_workflow();
    for (name, bundle, policy) in [
        (
            "keyless, log, timestamp",
            envelope.bundle(by, &[forge.log_envelope(by, &envelope)], &stamp),
            workflow(),
        ),
        (
            "keyless, log v2, timestamp",
            envelope.bundle(by, &[forge.log2_envelope(by, &envelope)], &stamp),
            workflow(),
        ),
        (
            "keyed",
            by_key_envelope.bundle(by_key, &[], &[]),
            fixture.trusts_key(),
        ),
        (
            "keyed, log",
            by_key_envelope.bundle(by_key, &[forge.log_envelope(by_key, &by_key_envelope)], &[]),
            policy([keyed_in_log(&fixture.key, forge.trust())]),
        ),
    ] {
        fixture.registry.put_bundles(&fixture.digest, &[bundle]);
        let (good, mut counts) = (Good::new(name, &fixture, policy).await, Counts::default());
        good.bend_bundle(&mut counts);
        good.tell(&counts);
    }
}

#[tokio::test]
async fn no_field_of_a_legacy_signature_can_be_bent() {
    let fixture = Fixture::new().await;
    let forge = &fixture.forge;
    let by_key = Legacy::sign(&fixture.key, &fixture.payload());
    let entry = forge.log_payload(By::Key(&fixture.key), &by_key.payload, &by_key.signature());
    let keyless_legacy = fixture.legacy_keyless(&fixture.payload());
    let stamped = {
        let legacy =
            Legacy::sign(&fixture.signer.key, &fixture.payload()).certified(&fixture.signer);
        let stamp = forge.stamp(&legacy.signature());
        legacy.stamped(&stamp)
    };
    for (name, legacy, policy) in [
        (
            "legacy keyed",
            by_key.clone(),
            policy([keyed(&fixture.key)]),
        ),
        (
            "legacy keyed, log",
            by_key.logged(&entry),
            policy([keyed_in_log(&fixture.key, forge.trust())]),
        ),
        (
            "legacy keyless, log",
            keyless_legacy,
            fixture.trusts_workflow(),
        ),
        (
            "legacy keyless, timestamp",
            stamped,
            policy([Authority {
                tlog: TlogPolicy::None,
                ..keyless(forge.trust())
            }]),
        ),
    ] {
        fixture.registry.put_legacy(&fixture.digest, &[legacy]);
        let (good, mut counts) = (Good::new(name, &fixture, policy).await, Counts::default());
        good.bend_legacy(&mut counts);
        good.tell(&counts);
    }
}

#[tokio::test]
async fn a_referrer_that_is_bent_attaches_nothing_else() {
    let fixture = Fixture::new().await;
    fixture
        .registry
        .put_bundles(&fixture.digest, &[fixture.bare(&fixture.statement())]);
    let good = Good::new("referrer", &fixture, fixture.trusts_key()).await;
    let referrer = good.evidence["bundles"][0]["referrer"].as_str().unwrap();
    let referrer: Value = serde_json::from_slice(&STANDARD.decode(referrer).unwrap()).unwrap();
    let mut accepted = BTreeMap::<String, usize>::new();
    let mut tried = 0;
    for (place, bent) in Node::of(&referrer).bent() {
        let mut evidence = good.evidence.clone();
        evidence["bundles"][0]["referrer"] = STANDARD.encode(bent.text()).into();
        let evidence = Evidence::from_bytes(evidence.to_string().as_bytes()).unwrap();
        tried += 1;
        if Verified::verify(&good.policy, &good.pinned, good.manifest.clone(), &evidence).is_ok() {
            *accepted.entry(place).or_default() += 1;
        }
    }
    let number: usize = accepted.values().sum();
    println!(
        "referrer: {tried} bent, {number} accepted, none of which ties other bytes to it or it to another artifact"
    );
    let tied = [
        "schemaVersion",
        "config.digest",
        "layers~",
        "layers.0.digest",
        "subject~",
        "subject.digest",
    ];
    for place in accepted.keys().filter(|place| !place.ends_with("~more")) {
        assert!(
            !tied
                .iter()
                .any(|tied| place.trim_start_matches('.').starts_with(tied)),
            "{place}"
        );
    }
}
