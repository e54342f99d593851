use std::path::Path;

use futures_util::FutureExt as _;
use prometheus::IntCounterVec;
use serde_json::{Value, json};

use super::*;
use crate::{
    gateway::metrics::GatewayMetrics,
    metrics::{BundleSeries, Metrics},
    store,
};

/// Bundles by name, each with its reference and perhaps a fallback. A reference without a tag has a
/// range. Nothing is ever fetched.
fn config(bundles: &[(&str, &str, Option<&str>)]) -> Config {
    let bundles = bundles.iter().map(|(name, reference, fallback)| {
        let mut bundle = json!({ "reference": reference, "trust": "dev" });
        if !reference.contains(':') {
            bundle["semver"] = json!("^1");
        }
        if let Some(fallback) = fallback {
            bundle["on_withdraw"] = json!({ "fallback": fallback });
        }
        ((*name).to_owned(), bundle)
    });
    let config = json!({
        "version": 1,
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
        "trust": { "policies": { "dev": "unsigned" } },
        "bundles": bundles.collect::<serde_json::Map<String, Value>>(),
    });
    Config::parse(&config.to_string(), Path::new("/")).unwrap()
}

/// Bundles whose watchers don't run.
struct Scene {
    bundles: Bundles,
    config: Config,
}

impl Scene {
    async fn new(configured: &[(&str, &str, Option<&str>)]) -> Self {
        let (empty, metrics) = (config(&[]), GatewayMetrics::new().unwrap());
        let limits = empty.limits.read_limits();
        let registries = Registries::new(BTreeMap::new(), limits, metrics.registries);
        let store = Store::open(
            store::Options {
                directory: None,
                disk: 0,
                memory: 1 << 20,
            },
            metrics.store,
        );
        let bundles = Bundles::new(
            &empty,
            registries,
            store,
            metrics.bundles,
            None,
            Traces::off(),
        );
        let mut scene = Self {
            bundles,
            config: empty,
        };
        scene.configure(configured).await;
        scene
    }

    async fn configure(&mut self, configured: &[(&str, &str, Option<&str>)]) -> Applied {
        let wanted = config(configured);
        let changes = plan::changes(&self.config, &wanted);
        let prepared = self.bundles.prepare(&changes, &wanted).await.unwrap();
        let applied = self
            .bundles
            .apply(&changes, prepared, &wanted)
            .await
            .unwrap();
        self.config = wanted;
        applied
    }

    fn entry(&self, name: &str) -> Arc<Entry> {
        self.bundles.catalog().get(name).unwrap()
    }
}

#[tokio::test]
async fn a_bundle_is_found_on_each_of_its_paths_and_by_its_reference() {
    let configured = [
        ("authz", "r.example/authz:v1", None),
        ("bundles/odd", "r.example/authz:v2", None),
        ("ranged", "r.example/authz", None),
        ("third", "r.example/other:v1", None),
    ];
    let scene = Scene::new(&configured).await;
    let catalog = scene.bundles.catalog();
    let found = |resource| catalog.find(resource).map(|entry| entry.name().to_owned());
    for resource in ["authz", "bundle/authz", "bundles/authz"] {
        assert_eq!(found(resource).as_deref(), Some("authz"), "{resource}");
    }
    for resource in ["bundles/odd", "bundles/bundles/odd"] {
        assert_eq!(
            found(resource).as_deref(),
            Some("bundles/odd"),
            "{resource}"
        );
    }
    assert_eq!((found("odd"), found("bundles/authz/x")), (None, None));
    let tagged = |tag: &str| {
        catalog.filter_map(|entry| {
            let is_tagged = entry.reference().tag() == Some(tag);
            is_tagged.then(|| entry.name().to_owned())
        })
    };
    assert_eq!(tagged("v2"), ["bundles/odd"]);
    assert_eq!(tagged("v3"), [""; 0]);
}

#[tokio::test]
async fn a_change_makes_only_the_entries_of_its_own_bundles_outdated() {
    let (a, b) = (("a", "r.example/a:v1", None), ("b", "r.example/b:v1", None));
    let mut scene = Scene::new(&[a, b]).await;
    let (first, other) = (scene.entry("a"), scene.entry("b"));
    assert_eq!(scene.configure(&[a, b]).await, Applied::default());
    assert!(Arc::ptr_eq(&first, &scene.entry("a")));
    let applied = scene
        .configure(&[
            ("a", "r.example/a:v2", None),
            b,
            ("c", "r.example/c:v1", None),
        ])
        .await;
    assert_eq!(
        applied,
        Applied {
            added: 1,
            replaced: 1,
            ..Applied::default()
        }
    );
    assert!(first.is_outdated() && first.outdated().now_or_never().is_some());
    let second = scene.entry("a");
    assert!(!second.is_outdated() && second.outdated().now_or_never().is_none());
    assert_eq!(second.status().reference.to_string(), "r.example/a:v2");
    let applied = scene.configure(&[b, ("c", "r.example/c:v1", None)]).await;
    assert_eq!(
        applied,
        Applied {
            removed: 1,
            ..Applied::default()
        }
    );
    assert!(second.is_outdated() && scene.bundles.catalog().get("a").is_none());
    assert!(Arc::ptr_eq(&other, &scene.entry("b")) && !other.is_outdated());
}

#[tokio::test]
async fn a_fallback_is_linked_anew_when_either_side_changes() {
    let deny = ("deny", "r.example/deny:v1", None);
    let mut scene = Scene::new(&[("a", "r.example/a:v1", None), deny]).await;
    let without = scene.entry("a");
    let applied = scene
        .configure(&[("a", "r.example/a:v1", Some("deny")), deny])
        .await;
    assert_eq!(
        applied,
        Applied {
            fallbacks: 1,
            ..Applied::default()
        }
    );
    let with = scene.entry("a");
    assert!(without.is_outdated() && !with.is_outdated());
    // Another watcher stands behind the fallback now.
    scene
        .configure(&[
            ("a", "r.example/a:v1", Some("deny")),
            ("deny", "r.example/deny:v2", None),
        ])
        .await;
    assert!(with.is_outdated());
}

#[tokio::test]
async fn a_promotion_wakes_the_bundle_and_those_that_fall_back_to_it_alone() {
    let configured = [
        ("a", "r.example/a:v1", Some("deny")),
        ("b", "r.example/b:v1", None),
        ("deny", "r.example/deny:v1", None),
    ];
    let mut scene = Scene::new(&configured).await;
    let [a, b, deny] = ["a", "b", "deny"].map(|name| scene.entry(name));
    scene.bundles.show_changed("deny");
    assert!(
        [&a, &b, &deny].iter().all(|entry| !entry.is_outdated()),
        "nothing has changed yet"
    );
    scene.bundles.bundles.get_mut("deny").unwrap().shown.number += 100;
    scene.bundles.show_changed("deny");
    assert_eq!(
        [&a, &b, &deny].map(|entry| entry.is_outdated()),
        [true, false, true]
    );
    assert!(Arc::ptr_eq(&b, &scene.entry("b")));
    assert!(!scene.entry("a").is_outdated() && !scene.entry("deny").is_outdated());
}

#[tokio::test]
async fn the_series_of_removed_bundles_go_at_once_and_what_still_counts_makes_none() {
    let names = ["a", "b", "c"];
    let configured = names.map(|name| (name, "r.example/a:v1", None));
    let mut scene = Scene::new(&configured).await;
    let metrics = Metrics::new();
    let family = metrics.counters("counted_total", "-", &["bundle"]).unwrap();
    let series = |scene: &Scene, name: &str| {
        let scope = &scene.bundles.bundles[name].shown.metrics.scope;
        BundleSeries::new(scope, &family)
    };
    let sample = |name: &str| metrics.sample(&format!(r#"counted_total{{bundle="{name}"}}"#));
    let count = |series: &BundleSeries<IntCounterVec>| {
        if let Some(counter) = series.with(&[]) {
            counter.inc();
        }
    };
    let before = names.map(|name| series(&scene, name));
    // One of them has counted nothing before the removal.
    count(&before[0]);
    count(&before[2]);
    scene.bundles.run();
    scene.configure(&configured[2..]).await;
    // As their watchers and held requests do until they have ended.
    before.iter().for_each(count);
    assert_eq!(names.map(sample), [None, None, Some(2.0)]);
    // Another reference is the same bundle, and one that comes back is another.
    let changed = [configured[0], ("c", "r.example/a:v2", None)];
    scene.configure(&changed).await;
    for name in ["a", "c"] {
        count(&series(&scene, name));
    }
    before.iter().for_each(count);
    assert_eq!(names.map(sample), [Some(1.0), None, Some(4.0)]);
}
