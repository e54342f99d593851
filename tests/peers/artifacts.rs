//! Artifacts of every supported shape, each made by its own tool and signed by cosign, are decided
//! on by a real OPA that knows nothing of registries.

use serde_json::{Value, json};

use crate::{
    interop::opa_downloads,
    support::{Author, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry, TestGateway},
};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry, an author with a policy, and a key that the gateway will trust.
struct Workplace {
    registry: Registry,
    author: Author,
    key: KeyPair,
}

impl Workplace {
    async fn new() -> Self {
        let author = Author::with_policy();
        author.write("config.json", "{}");
        author.write("nothing", "");
        // Outside the roots, so that only shapes of which tests are left out can have it.
        author.line("rm policy/authz/authz_test.rego").await;
        author
            .line("opa build -b policy -r r1 -o bundle.tar.gz")
            .await;
        Self {
            registry: Registry::start(Kind::Distribution).await,
            author,
            key: KeyPair::generate().await,
        }
    }

    fn reference(&self, shape: &str) -> String {
        self.registry.reference(&artifact(shape))
    }

    /// Types a line in which `{R}` is the reference of a shape.
    async fn make(&self, shape: &str, line: &str) {
        let line = line.replace("{R}", &self.reference(shape));
        self.author.line(&line).await;
    }

    async fn digest(&self, shape: &str) -> String {
        let reference = self.reference(shape);
        self.author
            .line(&format!("crane digest --insecure {reference}"))
            .await
    }

    async fn manifest(&self, shape: &str) -> Value {
        let reference = self.reference(shape);
        let text = self
            .author
            .line(&format!("crane manifest --insecure {reference}"))
            .await;
        serde_json::from_str(&text).unwrap()
    }

    /// Puts a manifest or an index that no tool writes any more.
    async fn put(&self, shape: &str, kind: &str, document: &Value) {
        self.author.write("document.json", &document.to_string());
        let line =
            format!("oras manifest push --plain-http --media-type {kind} {{R}} document.json");
        self.make(shape, &line).await;
    }

    async fn sign(&self, shape: &str) {
        self.sign_digest(shape, &self.digest(shape).await).await;
    }

    async fn sign_digest(&self, shape: &str, digest: &str) {
        let name = format!("acme/{shape}@{digest}");
        self.key.sign(&self.registry, &name).await;
    }

    /// A gateway for these shapes.
    async fn gateway(
        &self,
        shapes: &[&str],
        bend: impl Fn(GatewayConfig) -> GatewayConfig,
    ) -> TestGateway {
        let mut config = GatewayConfig::trusting(&self.key);
        for shape in shapes {
            config = config.bundle(shape, &self.registry, &artifact(shape));
        }
        TestGateway::start(bend(config)).await
    }

    /// Signs all shapes, and has an OPA decide on each. Returns the bytes that are served.
    async fn decide(
        &self,
        shapes: &[&str],
        bend: impl Fn(GatewayConfig) -> GatewayConfig,
    ) -> Vec<Vec<u8>> {
        for shape in shapes {
            self.sign(shape).await;
        }
        let gate = self.gateway(shapes, bend).await;
        let mut served = Vec::new();
        for shape in shapes {
            decides(&gate, shape).await;
            let status = gate.bundle_status(shape).await;
            assert_eq!(status["manifest"], self.digest(shape).await, "{shape}");
            assert_eq!(status["signers"][0]["authority"], "release-key", "{shape}");
            let url = format!("{}/bundles/{shape}", gate.url);
            let bytes = gate
                .http
                .get(url)
                .send()
                .await
                .unwrap()
                .bytes()
                .await
                .unwrap();
            served.push(bytes.to_vec());
            println!("artifacts | {shape} | {} bytes | OPA decides", bytes.len());
        }
        served
    }
}

fn artifact(shape: &str) -> String {
    format!("acme/{shape}:v1")
}

/// The decisions of the policy: without input nothing is allowed.
async fn decides(gate: &TestGateway, name: &str) {
    gate.status_when(name, "to be served", |status| status["state"] == "serving")
        .await;
    let opa = Opa::polling(OpaVersion::Newest, &gate.url, name).await;
    opa.decides("authz/allow", &json!(false)).await;
    opa.decides("roles/reader", &json!(["read"])).await;
}

fn same(config: GatewayConfig) -> GatewayConfig {
    config
}

/// Rows 1, 2, 3, 7, 8 and 9: OPA gets the bytes that the author pushed.
#[tokio::test(flavor = "multi_thread")]
async fn one_layer_stays_byte_for_byte() {
    let place = Workplace::new().await;
    let policy =
        "--annotation org.openpolicyregistry.type=policy --annotation rego.version=rego.v1";
    let trivy = "application/vnd.cncf.openpolicyagent";
    let shapes = [
        ("policy-cli-b", format!("--config config.json:{CONFIG} {policy} bundle.tar.gz:{GZIP}")),
        ("policy-cli-c", format!("--artifact-type {MANIFEST} {policy} bundle.tar.gz:{GZIP}")),
        ("opas-recipe", format!("--config config.json:{CONFIG} bundle.tar.gz:{GZIP}")),
        ("oras-without-types", "bundle.tar.gz".to_owned()),
        ("trivy-checks", format!("--config nothing:{trivy}.config.v1+json bundle.tar.gz:{trivy}.layer.v1.tar+gzip")),
        ("home-grown", "--artifact-type application/vnd.opa.bundle bundle.tar.gz:application/vnd.opa.bundle.layer.v1+gzip".to_owned()),
        ("wasm-type", "bundle.tar.gz:application/vnd.wasm.content.layer.v1+wasm".to_owned()),
    ];
    for (shape, arguments) in &shapes {
        let line = format!("oras push --plain-http {{R}} {arguments}");
        place.make(shape, &line).await;
    }
    // Era A of the policy CLI has no mediaType, which oras never leaves out.
    let mut era_a = place.manifest("policy-cli-b").await;
    for key in ["mediaType", "annotations"] {
        era_a.as_object_mut().unwrap().remove(key).unwrap();
    }
    place
        .make(
            "policy-cli-a",
            &format!(
                "oras push --plain-http {{R}} --config config.json:{CONFIG} bundle.tar.gz:{GZIP}"
            ),
        )
        .await;
    place.put("policy-cli-a", MANIFEST, &era_a).await;
    let mut names: Vec<_> = shapes.iter().map(|(shape, _)| *shape).collect();
    names.push("policy-cli-a");
    for bytes in place.decide(&names, same).await {
        assert_eq!(bytes, place.author.bytes("bundle.tar.gz"));
    }
    // flux packs the folder itself.
    place.make("flux", "flux-push {R} policy").await;
    let manifest = place.manifest("flux").await;
    assert_eq!(
        manifest["config"]["mediaType"],
        "application/vnd.cncf.flux.config.v1+json"
    );
    place.decide(&["flux"], same).await;
}

/// Row 4.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_oras_loses_its_own_name() {
    let place = Workplace::new().await;
    place
        .author
        .write("policy/authz/authz_test.rego", "package authz_test\n");
    place
        .make(
            "folder",
            &format!("oras push --plain-http {{R}} policy/:{GZIP}"),
        )
        .await;
    let layer = place.manifest("folder").await["layers"][0].clone();
    assert_eq!(layer["annotations"]["io.deis.oras.content.unpack"], "true");
    place.decide(&["folder"], same).await;
}

/// Rows 5 and 6. Two gateways make the same tag of them.
#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_conftest() {
    let place = Workplace::new().await;
    place
        .make(
            "conftest",
            "conftest push {R} --policy policy/authz --data policy/roles",
        )
        .await;
    let mut old = place.manifest("conftest").await;
    old["config"]["mediaType"] = "application/vnd.cncf.openpolicyagent.config.v1+json".into();
    place
        .make(
            "conftest-before-2022",
            "conftest push {R} --policy policy/authz --data policy/roles",
        )
        .await;
    place.put("conftest-before-2022", MANIFEST, &old).await;
    let shapes = ["conftest", "conftest-before-2022"];
    let bend = |mut config: GatewayConfig| {
        for shape in shapes {
            config = config.with(&format!("/bundles/{shape}/data_root"), json!("policy"));
        }
        config
    };
    place.decide(&shapes, bend).await;
    let gates = [
        place.gateway(&shapes, bend).await,
        place.gateway(&shapes, bend).await,
    ];
    let mut tags = Vec::new();
    for gate in &gates {
        let status = gate
            .status_when("conftest", "to be served", |status| {
                status["state"] == "serving"
            })
            .await;
        tags.push(status["etag"].clone());
    }
    assert_eq!(tags[0], tags[1]);
}

impl Workplace {
    /// Runs buildah without an engine: its storage is in the author's home.
    async fn buildah(&self, line: &str) -> String {
        self.author.write(
            "any.json",
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        );
        let buildah = "buildah --root $HOME/root --runroot $HOME/run --storage-driver vfs";
        self.author
            .line(
                &line
                    .replace("buildah ", &format!("{buildah} "))
                    .replace("{ANY}", "--signature-policy any.json"),
            )
            .await
    }

    async fn push_image(&self, image: &str, shape: &str, flags: &str) {
        let reference = self.reference(shape);
        let push = format!("buildah push {{ANY}} --tls-verify=false {flags} {image}");
        if !flags.contains("zstd") {
            self.buildah(&format!("{push} docker://{reference}")).await;
            return;
        }
        // Where the registry has the layers in gzip, buildah does not push them in zstd.
        let other = Registry::start(Kind::Distribution).await;
        let there = other.reference(&artifact(shape));
        self.buildah(&format!("{push} docker://{there}")).await;
        self.author
            .line(&format!("crane copy --insecure {there} {reference}"))
            .await;
    }
}

/// Row 10. An image of buildah in each format and compression, with a file that a later layer
/// removes, and one that is squashed to a single layer.
#[tokio::test(flavor = "multi_thread")]
async fn images_of_buildah() {
    let place = Workplace::new().await;
    build_images(&place).await;
    let kinds = [
        (
            "buildah-oci",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            5,
        ),
        (
            "buildah-docker",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            5,
        ),
        (
            "buildah-zstd",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            5,
        ),
        (
            "buildah-one-layer",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            1,
        ),
        (
            "buildah-one-layer-zstd",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            1,
        ),
    ];
    for (shape, kind, count) in kinds {
        let manifest = place.manifest(shape).await;
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), count, "{shape}: {manifest}");
        assert!(
            layers.iter().all(|layer| layer["mediaType"] == kind),
            "{shape}: {manifest}"
        );
    }
    let served = place.decide(&kinds.map(|(shape, ..)| shape), same).await;
    // The same files, so the same bytes of one compressor.
    assert_eq!(served[0], served[1]);
    assert_eq!(served[0], served[2]);
}

async fn build_images(place: &Workplace) {
    place
        .author
        .write("wrong/authz/later.rego", "package authz\n\nallow := true\n");
    place.author.write(
        "Containerfile",
        "FROM scratch\nCOPY policy/authz /authz\nCOPY wrong/authz /authz\nCOPY policy/roles /roles\nCOPY policy/.manifest /\n",
    );
    let build = "buildah build {ANY} --isolation chroot --timestamp 0";
    place
        .buildah(&format!("{build} --layers -t layers ."))
        .await;
    // With the file that would allow everything, which the last layer removes.
    place
        .buildah(
            "name=$(buildah from {ANY} layers) && mounted=$(buildah mount $name) && rm $mounted/authz/later.rego \
             && buildah umount $name && buildah commit {ANY} --timestamp 0 $name removed",
        )
        .await;
    place
        .buildah("buildah rm --all >/dev/null; buildah images")
        .await;
    place
        .push_image("removed", "buildah-oci", "--format oci")
        .await;
    place
        .push_image("removed", "buildah-docker", "--format v2s2")
        .await;
    place
        .push_image(
            "removed",
            "buildah-zstd",
            "--format oci --compression-format zstd",
        )
        .await;
    place
        .author
        .write("Containerfile", "FROM scratch\nCOPY policy /\n");
    place
        .buildah(&format!("{build} --squash -t squashed ."))
        .await;
    place
        .push_image("squashed", "buildah-one-layer", "--format v2s2")
        .await;
    place
        .push_image(
            "squashed",
            "buildah-one-layer-zstd",
            "--format oci --compression-format zstd",
        )
        .await;
}

/// Row 10, with an index as buildx writes it. OPA's own downloader, which verifies nothing, walks
/// it to the same bundle.
#[tokio::test(flavor = "multi_thread")]
async fn indexes_as_buildx_writes_them() {
    let place = Workplace::new().await;
    let push =
        format!("oras push --plain-http {{R}} --config config.json:{CONFIG} bundle.tar.gz:{GZIP}");
    let attested = |amd: &Value, provenance: &Value| {
        let mut amd = amd.clone();
        amd["platform"] = json!({ "os": "linux", "architecture": "amd64" });
        let mut provenance = provenance.clone();
        provenance["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
        provenance["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": amd["digest"],
        });
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [amd, provenance] })
    };
    let descriptor = async |shape: &str| {
        let name = place.reference(shape);
        let text = place
            .author
            .line(&format!(
                "oras manifest fetch --plain-http --descriptor {name}"
            ))
            .await;
        serde_json::from_str::<Value>(&text).unwrap()
    };
    // One index is signed itself, of the other the image.
    for shape in ["index-signed", "image-signed"] {
        place.make(shape, &push).await;
        let image = descriptor(shape).await;
        place.author.write("statement.json", "{}");
        place.make(shape, "oras push --plain-http {R} --artifact-type application/vnd.in-toto+json statement.json").await;
        let provenance = descriptor(shape).await;
        place
            .put(shape, INDEX, &attested(&image, &provenance))
            .await;
        let index = place.digest(shape).await;
        let signed = if shape == "index-signed" {
            index.as_str()
        } else {
            image["digest"].as_str().unwrap()
        };
        place.sign_digest(shape, signed).await;
        let gate = place.gateway(&[shape], same).await;
        decides(&gate, shape).await;
        let status = gate.bundle_status(shape).await;
        assert_eq!(
            (&status["manifest"], &status["image"]),
            (&json!(index), &image["digest"])
        );
        assert_eq!(status["verdict"]["digest"], signed);
        opa_downloads(OpaVersion::Newest, &place.registry, &place.reference(shape)).await;
        println!("artifacts | {shape} | OPA decides, and OPA's own downloader decides the same");
    }
}

/// An index of two platforms, of which the configuration chooses one.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_cranes_for_two_platforms() {
    let place = Workplace::new().await;
    let shape = "two-platforms";
    place
        .author
        .line("mkdir other && opa build -b policy -r other -o other/bundle.tar.gz")
        .await;
    for (platform, folder) in [("amd64", "."), ("arm64", "other")] {
        let name = place
            .registry
            .reference(&format!("acme/{shape}:{platform}"));
        place
            .author
            .line(&format!(
                "cd {folder} && crane append --insecure --oci-empty-base --new_layer bundle.tar.gz --new_tag {name} \
                 && crane mutate --insecure --set-platform linux/{platform} {name} --tag {name}"
            ))
            .await;
    }
    let base = place.registry.reference(&format!("acme/{shape}"));
    place
        .make(
            shape,
            &format!("crane index append --insecure -m {base}:amd64 -m {base}:arm64 -t {{R}}"),
        )
        .await;
    let manifests = place.manifest(shape).await["manifests"].clone();
    assert_eq!(manifests.as_array().map(Vec::len), Some(2), "{manifests}");
    place.sign(shape).await;
    let gate = place
        .gateway(&[shape], |config| {
            config.with(&format!("/bundles/{shape}/platform"), json!("linux/arm64"))
        })
        .await;
    decides(&gate, shape).await;
    assert_eq!(gate.bundle_status(shape).await["revision"], "other");
    // Without the key nothing is served, and the reason names it.
    let gate = place.gateway(&[shape], same).await;
    let status = gate
        .status_when(shape, "to be refused", |status| {
            !status["last_failure"].is_null()
        })
        .await;
    let message = status["last_failure"]["message"].as_str().unwrap();
    assert!(message.contains("set `platform`"), "{message}");
}

/// Rows 11 and 12, and a delta.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_bundle_is_refused_with_the_reason() {
    let place = Workplace::new().await;
    place
        .author
        .write("chart/Chart.yaml", "name: chart\nversion: 1.0.0\n");
    place
        .author
        .write("templates/t.yaml", "kind: ConstraintTemplate\n");
    place.author.write("delta/patch.json", r#"{"data": []}"#);
    place
        .author
        .line("tar czf chart.tgz chart && tar czf delta.tar.gz -C delta patch.json")
        .await;
    let helm = "application/vnd.cncf.helm";
    place
        .make("helm", &format!("oras push --plain-http {{R}} --config config.json:{helm}.config.v1+json chart.tgz:{helm}.chart.content.v1.tar+gzip"))
        .await;
    place
        .make(
            "gatekeeper",
            &format!("oras push --plain-http {{R}} templates/:{GZIP}"),
        )
        .await;
    place
        .make(
            "delta",
            &format!(
                "oras push --plain-http {{R}} --config config.json:{CONFIG} delta.tar.gz:{GZIP}"
            ),
        )
        .await;
    let shapes = [
        ("helm", "a Helm chart"),
        ("gatekeeper", "none of its 1 files is Rego"),
        ("delta", "makes this a delta bundle"),
    ];
    for (shape, _) in shapes {
        place.sign(shape).await;
    }
    let gate = place.gateway(&shapes.map(|(shape, _)| shape), same).await;
    for (shape, reason) in shapes {
        let status = gate
            .status_when(shape, "to be refused", |status| {
                !status["last_failure"].is_null()
            })
            .await;
        let failure = &status["last_failure"];
        assert_eq!(failure["class"], "defect", "{failure}");
        assert!(
            failure["message"].as_str().unwrap().contains(reason),
            "{failure}"
        );
    }
}
