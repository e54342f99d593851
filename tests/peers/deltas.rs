//! Delta bundles with real OPAs, which answer afterwards as OPAs that got whole bundles.

mod layout;
mod random;
mod traps;

use std::{collections::BTreeMap, env, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::{
    layout::{Files, Layout},
    random::{Json, edited, object},
};
use crate::support::{GatewayConfig, Opa, OpaVersion, TestGateway, http, poll_until};

/// Bytes that no compression makes smaller, so that a delta is smaller than its bundle.
fn ballast(rng: &mut fastrand::Rng, length: usize) -> String {
    (0..length).map(|_| rng.alphanumeric()).collect()
}

/// A gateway that serves bundles of a layout without signatures.
async fn gateway(layout: &Layout, names: &[String], delta: Option<Value>) -> TestGateway {
    let mut config = GatewayConfig::with_trust(json!({ "policies": { "dev": "unsigned" } }));
    for name in names {
        let mut bundle = json!({
            "reference": format!("oci-layout:{}:{name}", layout.path().display()),
            "trust": "dev", "poll": "500ms",
        });
        if let Some(delta) = &delta {
            bundle["delta"] = delta.clone();
        }
        config.0["bundles"][name] = bundle;
    }
    TestGateway::start(config).await
}

/// The configuration of an OPA with these bundles.
fn opa_config(gateway: &TestGateway, names: &[String]) -> Value {
    let mut bundles = BTreeMap::new();
    for name in names {
        bundles.insert(
            name,
            json!({
                "service": "gate", "resource": format!("/bundles/{name}"),
                "polling": { "min_delay_seconds": 1, "max_delay_seconds": 2, "long_polling_timeout_seconds": 30 },
            }),
        );
    }
    json!({ "services": { "gate": { "url": gateway.url } }, "bundles": bundles })
}

/// The sum of the samples with this name and this text in their labels.
async fn total(gateway: &TestGateway, name: &str, label: &str) -> f64 {
    let text = gateway.admin_text("/metrics").await;
    let samples = text
        .lines()
        .filter(|line| line.starts_with(name) && line.contains(label));
    let values = samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.fold(0.0, |sum, value| sum + value)
}

fn number(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// What `data` holds, as OPA writes it: numbers have any size.
async fn data(opa: &Opa) -> String {
    let url = format!("http://{}/v1/data", opa.address);
    let response = http().get(url).send().await.unwrap();
    response.text().await.unwrap()
}

/// Where two texts begin to differ.
fn difference(one: &str, other: &str) -> String {
    let mut pairs = one.chars().zip(other.chars());
    let at = pairs.position(|(one, other)| one != other);
    let at = at.unwrap_or_else(|| one.chars().count().min(other.chars().count()));
    let around = |text: &str| -> String {
        text.chars()
            .skip(at.saturating_sub(200))
            .take(400)
            .collect()
    };
    format!("{}\n\ninstead of\n\n{}", around(one), around(other))
}

/// Waits until an OPA has a round of every bundle, and returns all its data.
async fn data_of_round(opa: &Opa, round: usize, bundles: usize) -> String {
    let marker = format!("\"round\":\"r{round}.\"");
    let what = format!("{:?} to have round {round}", opa.version);
    let (text, _) = poll_until(&what, async || {
        let text = data(opa).await;
        // Reading all data takes OPA longer than a delta does.
        sleep(Duration::from_millis(100)).await;
        (text.matches(&marker).count() == bundles).then_some(text)
    })
    .await;
    text
}

/// Random trees and random edits: after each delta, OPA has the data that another OPA has after the whole bundle.
/// `BUNDLES` × `ROUNDS` are the edits, `SEED` selects others.
#[tokio::test(flavor = "multi_thread")]
async fn opa_has_the_same_data_after_a_delta_as_after_the_whole_bundle() {
    let (bundles, rounds) = (number("BUNDLES", 40), number("ROUNDS", 12));
    let mut rng = fastrand::Rng::with_seed(number("SEED", 24) as u64);
    let names: Vec<_> = (0..bundles).map(|index| format!("b{index}")).collect();
    let mut trees: Vec<Json> = names.iter().map(|_| object(&mut rng, 3)).collect();
    let ballasts: Vec<_> = names.iter().map(|_| ballast(&mut rng, 3000)).collect();
    let layout = Layout::new();
    let publish = |trees: &[Json], round: usize| {
        let files = names.iter().zip(trees).zip(&ballasts);
        let all = files.map(|((name, tree), ballast)| {
            let data = format!(
                r#"{{"tree":{},"round":"r{round}.","ballast":"{ballast}"}}"#,
                tree.text()
            );
            let manifest = json!({ "revision": format!("{round}"), "roots": [name] }).to_string();
            let files = Files::default()
                .with(".manifest", &manifest)
                .with(&format!("{name}/data.json"), &data);
            (name.clone(), files)
        });
        layout.publish(all);
    };
    publish(&trees, 0);
    let whole = gateway(&layout, &names, None).await;
    let deltas = gateway(&layout, &names, Some(json!({ "history": 2, "ratio": 1 }))).await;
    let mut opas = Vec::new();
    let mut others = Vec::new();
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        opas.push(Opa::start(version, &opa_config(&deltas, &names)).await);
        others.push(Opa::start(version, &opa_config(&whole, &names)).await);
    }
    let mut on_disk = opa_config(&deltas, &names);
    on_disk["storage"] = json!({ "disk": { "directory": "./store", "auto_create": true } });
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        opas.push(Opa::start(version, &on_disk).await);
    }
    let began = Instant::now();
    for round in 0..=rounds {
        if round > 0 {
            for tree in &mut trees {
                edited(&mut rng, tree);
            }
            publish(&trees, round);
        }
        let mut expected = Vec::new();
        for other in &others {
            expected.push(data_of_round(other, round, bundles).await);
        }
        for opa in &opas {
            let found = data_of_round(opa, round, bundles).await;
            let one_of = match opa.version {
                OpaVersion::Newest => &expected[0],
                OpaVersion::V0_70 => &expected[1],
            };
            assert!(
                &found == one_of,
                "{:?}, round {round}: {}",
                opa.version,
                difference(&found, one_of)
            );
        }
    }
    let sent = total(&deltas, "bundlegate_delta_responses_total", "sent").await;
    let refused = total(&deltas, "bundlegate_delta_responses_total", "refused").await;
    let computed = total(&deltas, "bundlegate_deltas_total", "computed").await;
    let not_proved = total(&deltas, "bundlegate_deltas_total", "not_proved").await;
    println!(
        "{} edits of {bundles} bundles, {} OPAs: {computed} deltas computed, {sent} sent, {refused} refused, in {:.0?}",
        rounds * bundles,
        opas.len(),
        began.elapsed()
    );
    assert_eq!(not_proved, 0.0);
    let possible = (rounds * bundles * opas.len()) as f64;
    // A publication does not wait long for the deltas of other bundles.
    assert!(sent > possible * 0.5, "{sent} of {possible}");
    assert!(refused < possible * 0.02, "{refused}");
}
