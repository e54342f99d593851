//! The chart and the plain manifests: as helm and kustomize render them, against the schemas of
//! Kubernetes, the types of the Prometheus operator, and the configuration's own check.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{PUBLIC_KEY, check_config, deploy, documents, ran, with_input};
use crate::support::program;

/// The oldest version that the manifests support, and the newest.
const VERSIONS: [&str; 2] = ["1.27.0", "1.37.0"];
/// helm knows no cluster here, whose version it could ask for.
const KUBE_VERSION: &str = "--kube-version=1.37.0";
/// Values that turn on everything, and those that turn off everything.
const VALUES: [&str; 2] = ["full", "existing"];

fn chart() -> String {
    let chart = deploy().join("helm/bundlegate");
    chart.to_str().unwrap().to_owned()
}

fn values(name: &str) -> String {
    format!("--values={}/ci/{name}-values.yaml", chart())
}

/// What `helm template` prints.
fn rendered(flags: &[&str]) -> String {
    let chart = chart();
    let mut arguments = vec![
        "template",
        "bundlegate",
        &chart,
        "--namespace=policy",
        KUBE_VERSION,
    ];
    arguments.extend(flags);
    ran("helm", &arguments).ok()
}

fn is_of_the_operator(document: &Value) -> bool {
    document["apiVersion"] == "monitoring.coreos.com/v1"
}

/// kubeconform finds nothing in `text`, nor does the operator in its own resources.
fn assert_valid(what: &str, text: &str) {
    let (operators, others): (Vec<_>, Vec<_>) =
        documents(text).into_iter().partition(is_of_the_operator);
    let others: Vec<_> = others.iter().map(Value::to_string).collect();
    let schemas = schemas();
    for version in VERSIONS {
        let location = format!(
            "--schema-location={}/v{version}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json",
            schemas.display()
        );
        let flags = [
            "-strict",
            "-summary",
            "-kubernetes-version",
            version,
            &location,
        ];
        let checked = with_input("kubeconform", &flags, &others.join("\n---\n")).ok();
        println!("kubernetes | {what}, {version}: {}", checked.trim());
        let valid = format!("Valid: {}, Invalid: 0, Errors: 0, Skipped: 0", others.len());
        assert!(checked.contains(&valid), "{what}: {checked}");
    }
    for document in operators {
        with_input("deploy-check", &["monitoring"], &document.to_string()).ok();
    }
}

/// The schemas that `tests/peers/install` leaves beside the programs.
fn schemas() -> PathBuf {
    let programs = program("kubeconform").parent().unwrap().to_owned();
    let schemas = programs.parent().unwrap().join("kubernetes-schemas");
    assert!(
        schemas.is_dir(),
        "{} is missing; run tests/peers/install",
        schemas.display()
    );
    schemas
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    let mut found = documents.iter().filter(|document| document["kind"] == kind);
    found.next().unwrap_or_else(|| panic!("no {kind}"))
}

#[test]
fn helm_lints_the_chart_and_kubernetes_knows_every_field() {
    let chart = chart();
    ran("helm", &["lint", "--strict", KUBE_VERSION, &chart]).ok();
    assert_valid("defaults", &rendered(&[]));
    for name in VALUES {
        let values = values(name);
        ran("helm", &["lint", "--strict", KUBE_VERSION, &chart, &values]).ok();
        assert_valid(name, &rendered(&[&values]));
    }
}

/// Otherwise the silence of the test above would be worth nothing.
#[test]
fn a_field_that_kubernetes_does_not_know_is_found() {
    let mut service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "x" }, "spec": { "ports": [{ "port": 80 }] } });
    assert_valid("a service", &service.to_string());
    service["spec"]["prots"] = json!([]);
    let location = format!(
        "--schema-location={}/v1.37.0/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json",
        schemas().display()
    );
    let flags = ["-strict", "-kubernetes-version", "1.37.0", &location];
    let checked = with_input("kubeconform", &flags, &service.to_string());
    assert!(
        !checked.success && checked.stdout.contains("prots"),
        "{checked:?}"
    );
    let monitor = json!({ "apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "spec": { "selectr": {} } });
    with_input("deploy-check", &["monitoring"], &monitor.to_string()).refused("selectr");
}

#[test]
fn values_that_make_no_working_release_are_refused_with_the_key() {
    let chart = chart();
    for (flag, why) in [
        ("--set=replicaCounts=3", "replicaCounts"),
        ("--set=replicaCount=0", "replicaCount"),
        ("--set=image.digest=sha256:1", "digest"),
        ("--set=config.version=2", "version"),
        ("--set=config.server.listen=8080", "listen"),
        ("--set-json=config.clients=[]", "clients"),
        ("--set=service.type=ExternalName", "type"),
        (
            "--set=persistence.accessModes={ReadWriteMany}",
            "accessModes",
        ),
        ("--set=networkPolicy.egressPorts={0}", "egressPorts"),
        ("--set=metrics.serviceMonitor.interval=often", "interval"),
        (
            "--set-json=existingSecrets=[{\"name\":\"A B\"}]",
            "existingSecrets",
        ),
        ("--set-json=files={\"bundlegate.yaml\":\"x\"}", "files"),
        // Beyond what a schema can tell.
        (
            "--set=config.server.admin=127.0.0.1:8090",
            "config.server.admin: \"127.0.0.1:8090\" is an address within the pod",
        ),
        (
            "--set=config.server.admin=unix:/tmp/admin.sock",
            "config.server.admin",
        ),
        (
            "--set=config.server.drain.over=2m",
            "terminationGracePeriodSeconds: 60 is less than config.server.drain takes; write 140 or more",
        ),
        (
            "--set=config.server.drain.notice=soon",
            "config.server.drain: \"soon\" is no duration",
        ),
    ] {
        ran(
            "helm",
            &["template", "bundlegate", &chart, KUBE_VERSION, flag],
        )
        .refused(why);
    }
}

/// The configuration in each ConfigMap passes the check of the program, with the mounted secrets.
#[test]
fn the_configuration_of_each_release_passes_the_check() {
    for flags in [vec![], vec![values("full")]] {
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let documents = documents(&rendered(&flags));
        let data = &of_kind(&documents, "ConfigMap")["data"];
        if let Some(key) = data["release.pub"].as_str() {
            assert_eq!(key.trim(), PUBLIC_KEY.trim());
        }
        let (certificate, key) = certificate();
        check_config(
            data["bundlegate.yaml"].as_str().unwrap(),
            &[
                ("secrets/gate-tls/tls.crt", &certificate),
                ("secrets/gate-tls/tls.key", &key),
                (
                    "secrets/edge-tokens/tokens",
                    "a-token-of-more-than-16-bytes\n",
                ),
                (
                    "secrets/ghcr/.dockerconfigjson",
                    r#"{"auths":{"ghcr.io":{"auth":"dTpw"}}}"#,
                ),
            ],
        );
    }
}

fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["gate.example".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// The pod under the restricted profile of Pod Security, in every variant.
#[test]
fn the_pod_is_restricted_and_outlives_its_drain() {
    for (flags, kind) in [
        (vec![], "Deployment"),
        (vec![values("full")], "StatefulSet"),
        (vec![values("existing")], "Deployment"),
    ] {
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let documents = documents(&rendered(&flags));
        let workload = of_kind(&documents, kind);
        let pod = &workload["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["runAsUser"], 65532);
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert!(container["resources"]["limits"]["memory"].is_string());
        for probe in ["startupProbe", "livenessProbe"] {
            assert_eq!(container[probe]["httpGet"]["path"], "/livez");
        }
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
        // A mount with a subPath would keep its first content.
        let mounts = container["volumeMounts"].as_array().unwrap();
        assert!(mounts.iter().all(|mount| mount.get("subPath").is_none()));
        let selector = &workload["spec"]["selector"]["matchLabels"];
        for service in documents
            .iter()
            .filter(|document| document["kind"] == "Service")
        {
            assert_eq!(&service["spec"]["selector"], selector);
        }
    }
}

/// A change that running pods apply must not replace them, and one that they can't apply must.
#[test]
fn pods_are_replaced_for_the_keys_that_need_a_restart_and_no_others() {
    let pod = |flag: &str| {
        let documents = documents(&rendered(&[flag]));
        of_kind(&documents, "Deployment")["spec"]["template"].clone()
    };
    let unchanged = pod("--set=config.server.max_connections=20000");
    for flag in [
        "--set=config.server.max_connections=30000",
        "--set=config.bundles.authz.reference=r.example/acme/authz:v1",
        "--set-string=files.release\\.pub=x",
        "--set=config.cache.disk=2GiB",
    ] {
        assert_eq!(pod(flag), unchanged, "{flag}");
    }
    for flag in [
        "--set=config.server.listen=:9080",
        "--set=config.server.admin=:9090",
        "--set=config.server.ready_after=1m",
        "--set=config.cache.required=false",
    ] {
        assert_ne!(pod(flag), unchanged, "{flag}");
    }
    // The keys are those of the program.
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/bundlegate.yaml");
    let reference = fs::read_to_string(source).unwrap();
    let sentence = "except `server.listen`, `server.admin`, `server.ready_after`, `cache.directory`\n# and `cache.required`";
    assert!(
        reference.contains(sentence),
        "other keys need a restart now"
    );
}

/// The rules and the dashboard of a release are those of `config/deploy`, which helm follows links to.
#[test]
fn the_rules_and_the_dashboard_are_the_files_beside_the_chart() {
    let documents = documents(&rendered(&[&values("full")]));
    let read = |name: &str| fs::read_to_string(deploy().join(name)).unwrap();
    let rules: Value = serde_saphyr::from_str(&read("prometheus/alerts.yaml")).unwrap();
    assert_eq!(of_kind(&documents, "PrometheusRule")["spec"], rules);
    let dashboard = documents
        .iter()
        .find_map(|document| document["data"]["bundlegate.json"].as_str());
    let dashboard: Value = serde_json::from_str(dashboard.unwrap()).unwrap();
    let wanted: Value = serde_json::from_str(&read("grafana/bundlegate.json")).unwrap();
    assert_eq!(dashboard, wanted);
    // A package has the files instead of the links.
    let folder = TempDir::new().unwrap();
    let destination = format!("--destination={}", folder.path().display());
    ran("helm", &["package", &chart(), &destination]).ok();
    let package = folder
        .path()
        .join(format!("bundlegate-{}.tgz", env!("CARGO_PKG_VERSION")));
    let from_package = ran(
        "helm",
        &[
            "template",
            "bundlegate",
            package.to_str().unwrap(),
            "--namespace=policy",
            KUBE_VERSION,
            &values("full"),
        ],
    );
    assert_eq!(super::documents(&from_package.ok()), documents);
}

/// The documents by kind and name, without what only helm or only kustomize adds.
fn comparable(text: &str) -> BTreeMap<(String, String), Value> {
    let mut all = BTreeMap::new();
    for mut document in documents(text) {
        let metadata = document["metadata"].as_object_mut().unwrap();
        metadata.remove("namespace");
        let labels = metadata["labels"].as_object_mut().unwrap();
        labels.remove("helm.sh/chart");
        labels.remove("app.kubernetes.io/managed-by");
        if let Some(pod) = document.pointer_mut("/spec/template/metadata") {
            pod.as_object_mut().unwrap().remove("annotations");
        }
        if document["kind"] == "ConfigMap" {
            // As the program reads it.
            let config = document["data"]["bundlegate.yaml"].take();
            let config: Value = serde_saphyr::from_str(config.as_str().unwrap()).unwrap();
            document["data"]["bundlegate.yaml"] = config;
        }
        let name = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        let metadata = document["metadata"]["name"].as_str().unwrap().to_owned();
        all.insert((name("kind"), metadata), document);
    }
    all
}

#[test]
fn the_plain_manifests_are_the_default_release_of_the_chart() {
    let folder = deploy().join("kubernetes");
    let built = ran("deploy-check", &["kustomize", folder.to_str().unwrap()]).ok();
    assert_valid("kustomize", &built);
    let (plain, released) = (comparable(&built), comparable(&rendered(&[])));
    assert_eq!(
        plain.keys().collect::<Vec<_>>(),
        released.keys().collect::<Vec<_>>()
    );
    for (name, document) in &released {
        assert_eq!(&plain[name], document, "{name:?}");
    }
}
