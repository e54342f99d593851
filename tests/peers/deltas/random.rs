//! Random JSON documents, and random changes of them.

use std::collections::BTreeMap;

use fastrand::Rng;

/// A JSON value; a scalar is its text.
#[derive(Debug, Clone)]
pub(super) enum Json {
    Scalar(String),
    Array(Vec<Json>),
    Object(BTreeMap<&'static str, Json>),
}

const NAMES: [&str; 22] = [
    "a",
    "b",
    "c",
    "a b",
    "~",
    "~1",
    "~0",
    "/",
    "a/b",
    "%",
    "%41",
    "%2f",
    "-",
    "0",
    "1",
    "",
    "\u{e9}",
    "\u{1f600}",
    "\u{2028}",
    "\"",
    "\\",
    ".",
];
const SCALARS: [&str; 22] = [
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "1.0",
    "1.00",
    "1e3",
    "1E+3",
    "1000",
    "0.1",
    "-1.5e-7",
    "12345678901234567890123",
    "9007199254740993",
    "\"\"",
    "\"a\"",
    "\"~1\"",
    "\"\\u2028\\n\\u0001\"",
    "\"\u{e9}<>&\"",
    "[]",
    "{}",
];

impl Json {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Scalar(text) => text.clone(),
            Self::Array(items) => {
                let items: Vec<_> = items.iter().map(Self::text).collect();
                format!("[{}]", items.join(","))
            }
            Self::Object(members) => {
                let member = |(name, value): (&&str, &Self)| {
                    format!("{}:{}", serde_json::to_string(name).unwrap(), value.text())
                };
                let members: Vec<_> = members.iter().map(member).collect();
                format!("{{{}}}", members.join(","))
            }
        }
    }
}

pub(super) fn object(rng: &mut Rng, depth: usize) -> Json {
    let members = (0..rng.usize(0..6)).map(|_| (*rng.choice(NAMES.iter()).unwrap(), rng.fork()));
    let members: Vec<_> = members.collect();
    let value = |(name, mut rng): (&'static str, Rng)| (name, value(&mut rng, depth));
    Json::Object(members.into_iter().map(value).collect())
}

fn value(rng: &mut Rng, depth: usize) -> Json {
    match (depth.checked_sub(1), rng.usize(0..4)) {
        (Some(below), 0) => object(rng, below),
        (Some(below), 1) => Json::Array((0..rng.usize(0..6)).map(|_| value(rng, below)).collect()),
        _ => Json::Scalar(rng.choice(SCALARS.iter()).unwrap().to_string()),
    }
}

/// Changes a document at up to three places. An object at the top stays one.
pub(super) fn edited(rng: &mut Rng, document: &mut Json) {
    for _ in 0..rng.usize(1..4) {
        edit(rng, document, true);
    }
}

fn edit(rng: &mut Rng, place: &mut Json, is_top: bool) {
    let descends = rng.usize(0..3) > 0;
    match place {
        Json::Object(members) if descends && !members.is_empty() => {
            let at = rng.usize(0..members.len());
            edit(rng, members.values_mut().nth(at).unwrap(), false);
        }
        Json::Array(items) if descends && !items.is_empty() => {
            let at = rng.usize(0..items.len());
            edit(rng, &mut items[at], false);
        }
        Json::Object(members) => match rng.usize(0..4) {
            0 if !members.is_empty() => {
                let at = rng.usize(0..members.len());
                let name = *members.keys().nth(at).unwrap();
                members.remove(name);
            }
            1 if !is_top => *place = value(rng, 2),
            _ => drop(members.insert(*rng.choice(NAMES.iter()).unwrap(), value(rng, 2))),
        },
        Json::Array(items) => match rng.usize(0..4) {
            0 if !items.is_empty() => drop(items.remove(rng.usize(0..items.len()))),
            1 => *place = value(rng, 2),
            2 => items.push(value(rng, 2)),
            _ => items.insert(rng.usize(0..=items.len()), value(rng, 2)),
        },
        scalar @ Json::Scalar(_) => *scalar = value(rng, 2),
    }
}
