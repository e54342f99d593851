//! Artifacts that bundlegate pushes are read by other clients, and theirs are pulled and saved.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Author, Kind, Opa, OpaVersion, READER, Registry, WRITER};

#[tokio::test(flavor = "multi_thread")]
async fn everybody_reads_what_is_pushed_to_debians_registry() {
    everybody_reads(Kind::Debian, Kind::Referrers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_reads_what_is_pushed_to_distribution_3() {
    everybody_reads(Kind::Distribution, Kind::Debian).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_reads_what_is_pushed_to_a_registry_that_lists_referrers() {
    everybody_reads(Kind::Referrers, Kind::Distribution).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_push_to_debians_registry_is_pulled_and_saved() {
    others_are_read(Kind::Debian).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_push_to_distribution_3_is_pulled_and_saved() {
    others_are_read(Kind::Distribution).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_push_to_a_registry_that_lists_referrers_is_pulled_and_saved() {
    others_are_read(Kind::Referrers).await;
}

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Of the two bytes `{}`.
const EMPTY: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

async fn everybody_reads(kind: Kind, other: Kind) {
    let (registry, second) = (Registry::start(kind).await, Registry::start(other).await);
    let author = Author::with_policy();
    let name = registry.reference("acme/authz:v1");
    let built = author
        .json(&format!("bundlegate build policy -t {name}"))
        .await;
    author
        .line(&format!("bundlegate push {name} --plain-http"))
        .await;
    author.line(&format!("bundlegate save {name}")).await;
    let digest = built["digest"].as_str().unwrap();
    let manifest = author
        .line(&format!("crane manifest --insecure {name}"))
        .await;
    has_the_policy_clis_shape(&serde_json::from_str(&manifest).unwrap(), &built);

    author
        .line(&format!("mkdir oras && oras pull --plain-http {name} -o oras && cmp oras/bundle.tar.gz bundle.tar.gz"))
        .await;
    author
        .line(&format!(
            "conftest pull --policy conftest {name} && cmp conftest/bundle.tar.gz bundle.tar.gz"
        ))
        .await;
    let (skopeo, crane) = (
        second.reference("skopeo/authz:v1"),
        second.reference("crane/authz:v1"),
    );
    let insecure =
        "--insecure-policy copy --preserve-digests --src-tls-verify=false --dest-tls-verify=false";
    author
        .line(&format!(
            "skopeo {insecure} docker://{name} docker://{skopeo}"
        ))
        .await;
    author
        .line(&format!("crane copy --insecure {name} {crane}"))
        .await;
    for copy in [&skopeo, &crane] {
        assert_eq!(
            author
                .line(&format!("crane digest --insecure {copy}"))
                .await,
            digest,
            "{copy}"
        );
        assert!(
            author
                .line(&format!("bundlegate pull {copy} --plain-http"))
                .await
                .ends_with(digest),
            "{copy}"
        );
        author
            .line(&format!(
                "bundlegate save {copy} -f - | cmp - bundle.tar.gz"
            ))
            .await;
    }
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        for (registry, name) in [(&registry, &name), (&second, &crane)] {
            opa_downloads(version, registry, name).await;
            println!(
                "interop | OPA {version:?} downloads from {:?}, and decides",
                registry.kind
            );
        }
    }
}

/// Era B of the policy CLI, which both OPA's downloader and all of its releases read.
fn has_the_policy_clis_shape(manifest: &Value, built: &Value) {
    let annotations = json!({
        "org.opencontainers.image.created": "1970-01-01T00:00:00Z",
        "org.opencontainers.image.revision": built["revision"],
        "org.opencontainers.image.title": "bundle.tar.gz",
        "org.openpolicyregistry.type": "policy",
        "rego.version": "rego.v1",
    });
    // Whole: neither an artifactType nor anything else that the CLI's allow-list lacks.
    let shape = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": EMPTY, "size": 2 },
        "layers": [
            { "mediaType": GZIP, "digest": built["layer"], "size": built["size"], "annotations": annotations },
        ],
        "annotations": annotations,
    });
    assert_eq!(*manifest, shape);
}

/// OPA itself fetches the artifact from the registry, without us, and decides.
pub(crate) async fn opa_downloads(version: OpaVersion, registry: &Registry, name: &str) {
    let config = json!({
        "services": { "registry": { "url": format!("http://{}", registry.host), "type": "oci" } },
        "bundles": { "authz": {
            "service": "registry",
            "resource": name,
            "polling": { "min_delay_seconds": 1, "max_delay_seconds": 2 },
        } },
    });
    let opa = Opa::start(version, &config).await;
    opa.decides("authz/allow", &json!(false)).await;
    opa.decides("roles/reader", &json!(["read"])).await;
}

/// The same bundle in every shape of one layer: a name, and what is given to `oras push`.
/// `config.json` is `{}`, `nothing` is empty.
const SHAPES: [(&str, &str); 7] = [
    (
        "opas-own-recipe",
        "--config config.json:{CONFIG} bundle.tar.gz:{GZIP}",
    ),
    ("no-types", "bundle.tar.gz"),
    (
        "policy-cli-b",
        "--config config.json:{CONFIG} {ANNOTATIONS} bundle.tar.gz:{GZIP}",
    ),
    (
        "policy-cli-c",
        "--artifact-type {MANIFEST} {ANNOTATIONS} bundle.tar.gz:{GZIP}",
    ),
    (
        "trivy",
        "--config nothing:application/vnd.cncf.openpolicyagent.config.v1+json \
         bundle.tar.gz:application/vnd.cncf.openpolicyagent.layer.v1.tar+gzip",
    ),
    (
        "home-grown",
        "--artifact-type application/vnd.opa.bundle bundle.tar.gz:application/vnd.opa.bundle.layer.v1+gzip",
    ),
    (
        "flux",
        "--config config.json:application/vnd.cncf.flux.config.v1+json bundle.tar.gz:application/vnd.cncf.flux.content.v1.tar+gzip",
    ),
];

async fn others_are_read(kind: Kind) {
    let registry = Registry::start(kind).await;
    let (theirs, ours) = (Author::with_policy(), Author::new());
    theirs.write("config.json", "{}");
    theirs.write("nothing", "");
    theirs
        .line("opa build -b policy --ignore '*_test.rego' -r r1 -o bundle.tar.gz")
        .await;
    for (shape, arguments) in SHAPES {
        let name = registry.reference(&format!("others/{shape}:v1"));
        let arguments = arguments
            .replace("{CONFIG}", CONFIG)
            .replace("{GZIP}", GZIP)
            .replace("{MANIFEST}", MANIFEST);
        let arguments = arguments.replace(
            "{ANNOTATIONS}",
            "--annotation org.openpolicyregistry.type=policy --annotation rego.version=rego.v1",
        );
        theirs
            .line(&format!("oras push --plain-http {name} {arguments}"))
            .await;
        is_saved_as_it_is(&ours, &theirs, &name).await;
    }
    // Era A has no mediaType, which oras never leaves out.
    let name = registry.reference("others/policy-cli-b:a");
    let manifest = theirs
        .line(&format!(
            "oras manifest fetch --plain-http {}",
            name.replace(":a", ":v1")
        ))
        .await;
    let mut manifest: Value = serde_json::from_str(&manifest).unwrap();
    for key in ["mediaType", "annotations"] {
        manifest.as_object_mut().unwrap().remove(key).unwrap();
    }
    theirs.write("era-a.json", &manifest.to_string());
    theirs
        .line(&format!(
            "oras manifest push --plain-http --media-type {MANIFEST} {name} era-a.json"
        ))
        .await;
    is_saved_as_it_is(&ours, &theirs, &name).await;

    // A folder, below whose own name oras puts everything: tests as well, which lie outside
    // the roots here.
    theirs.line("rm policy/authz/authz_test.rego").await;
    let name = registry.reference("others/folder:v1");
    theirs
        .line(&format!("oras push --plain-http {name} policy/:{GZIP}"))
        .await;
    decides_once_saved(&ours, &name, "", &["opa"]).await;
    let seen = ours.json(&format!("bundlegate inspect {name}")).await;
    assert_eq!(
        (&seen["packages"], &seen["manifest"]["roots"]),
        (&json!(["authz"]), &json!(["authz", "roles"]))
    );
    // conftest's single files; its data begins where it was told to look.
    let name = registry.reference("others/conftest:v1");
    theirs
        .line(&format!(
            "conftest push {name} --policy policy/authz --data policy/roles"
        ))
        .await;
    decides_once_saved(&ours, &name, "--data-root policy", &["opa"]).await;
    println!(
        "interop | {kind:?} | {} shapes of one layer, a folder of oras's, conftest's files: saved",
        SHAPES.len() + 1
    );
}

async fn is_saved_as_it_is(ours: &Author, theirs: &Author, name: &str) {
    let told = theirs
        .line(&format!("crane digest --insecure {name}"))
        .await;
    let pulled = ours
        .line(&format!("bundlegate pull {name} --plain-http"))
        .await;
    assert!(pulled.ends_with(&told), "{pulled} is not {told}");
    decides_once_saved(ours, name, "", &["opa", "opa-0.70"]).await;
    assert_eq!(
        ours.bytes("bundle.tar.gz"),
        theirs.bytes("bundle.tar.gz"),
        "{name}"
    );
}

/// Nobody told an OPA from before 1.0 how to read what did not come from `opa build`.
async fn decides_once_saved(ours: &Author, name: &str, flags: &str, opas: &[&str]) {
    ours.line(&format!("bundlegate pull {name} --plain-http"))
        .await;
    let _ = fs::remove_file(ours.path("bundle.tar.gz"));
    ours.line(&format!("bundlegate save {name} {flags}")).await;
    for opa in opas {
        assert_eq!(
            ours.decides(opa, "data.authz.allow", READER).await,
            true,
            "{name}, {opa}"
        );
        assert_eq!(
            ours.decides(opa, "data.authz.allow", WRITER).await,
            false,
            "{name}, {opa}"
        );
    }
}
