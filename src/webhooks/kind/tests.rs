//! Notifications of each sender, and what they say.

use hyper::header::HeaderName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::webhooks::{Push, Pushed};

const SAMPLES: [(&str, &str); 13] = [
    (
        "distribution",
        include_str!("../../../tests/shared/notifications/distribution-2.json"),
    ),
    (
        "distribution",
        include_str!("../../../tests/shared/notifications/distribution-3.json"),
    ),
    (
        "zot",
        include_str!("../../../tests/shared/notifications/zot.json"),
    ),
    (
        "harbor",
        include_str!("../../../tests/shared/notifications/harbor.json"),
    ),
    (
        "github",
        include_str!("../../../tests/shared/notifications/github.json"),
    ),
    (
        "gitlab",
        include_str!("../../../tests/shared/notifications/gitlab.json"),
    ),
    (
        "docker_hub",
        include_str!("../../../tests/shared/notifications/docker_hub.json"),
    ),
    (
        "quay",
        include_str!("../../../tests/shared/notifications/quay.json"),
    ),
    (
        "jfrog",
        include_str!("../../../tests/shared/notifications/jfrog.json"),
    ),
    (
        "ecr",
        include_str!("../../../tests/shared/notifications/ecr.json"),
    ),
    (
        "acr",
        include_str!("../../../tests/shared/notifications/acr.json"),
    ),
    (
        "artifact_registry",
        include_str!("../../../tests/shared/notifications/artifact_registry.json"),
    ),
    (
        "generic",
        include_str!("../../../tests/shared/notifications/generic.json"),
    ),
];

#[derive(Deserialize)]
struct Sample {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    headers: std::collections::BTreeMap<String, String>,
    body: Value,
    pushes: Option<Value>,
    ignored: Option<usize>,
    error: Option<String>,
}

impl Case {
    fn headers(&self) -> HeaderMap {
        self.headers
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }
}

fn kinds() -> [Kind; 12] {
    [
        Kind::Distribution,
        Kind::Zot,
        Kind::Harbor,
        Kind::Github,
        Kind::Gitlab,
        Kind::DockerHub,
        Kind::Quay,
        Kind::Jfrog,
        Kind::Ecr,
        Kind::Acr,
        Kind::ArtifactRegistry,
        Kind::Generic(Pointer::new("/image/name").unwrap()),
    ]
}

fn samples() -> impl Iterator<Item = (Kind, Case)> {
    SAMPLES.into_iter().flat_map(|(label, text)| {
        let kind = kinds().into_iter().find(|kind| kind.label() == label);
        let sample: Sample = serde_json::from_str(text).unwrap();
        let kind = kind.unwrap();
        sample
            .cases
            .into_iter()
            .map(move |case| (kind.clone(), case))
    })
}

fn shown(push: &Push) -> Value {
    let pushed = match &push.pushed {
        Pushed::Tag(tag) => json!({ "tag": tag }),
        Pushed::Evidence(subject) => json!({ "evidence": subject }),
        Pushed::Unknown => json!("unknown"),
    };
    json!({
        "hosts": push.hosts, "repositories": push.repositories, "prefix": push.is_prefix,
        "pushed": pushed,
    })
}

#[test]
fn every_sender_is_understood() {
    let mut checked = 0;
    for (kind, case) in samples() {
        let parsed = kind.parse(&case.headers(), case.body.to_string().as_bytes());
        let what = format!("{}: {}", kind.label(), case.name);
        match (&case.error, parsed) {
            (Some(error), parsed) => {
                assert_eq!(parsed.unwrap_err().to_string(), *error, "{what}");
            }
            (None, parsed) => {
                let Notification { pushes, ignored } =
                    parsed.unwrap_or_else(|error| panic!("{what}: {error}"));
                let pushes: Value = pushes.iter().map(shown).collect();
                assert_eq!(Some(pushes), case.pushes, "{what}");
                assert_eq!(Some(ignored), case.ignored, "{what}");
            }
        }
        checked += 1;
    }
    assert!(checked > 80, "{checked}");
}

/// Whatever is sent to the wrong webhook, or cut short, is an error or says nothing else.
#[test]
fn no_body_breaks_another_parser() {
    for (_, case) in samples() {
        let (headers, body) = (case.headers(), case.body.to_string());
        for kind in kinds() {
            let _ = kind.parse(&headers, body.as_bytes());
            for length in (0..body.len()).step_by(17) {
                let cut = kind.parse(&headers, &body.as_bytes()[..length]);
                assert!(
                    cut.is_err() || length == 0,
                    "{}: {}",
                    kind.label(),
                    &body[..length]
                );
            }
        }
    }
    for kind in kinds() {
        for body in [
            "",
            "null",
            "[]",
            "0",
            "\"text\"",
            "{",
            "\u{0}",
            "{\"events\":{}}",
        ] {
            let parsed = kind.parse(&HeaderMap::new(), body.as_bytes());
            assert!(parsed.is_err() || parsed.unwrap().pushes.is_empty());
        }
    }
}
