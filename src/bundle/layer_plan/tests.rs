//! One artifact of each shape, and the bundle that is made of it.

use serde_json::json;

use super::*;
use crate::bundle::{Bundle, BundleError, archive::walk, layer::content};

mod signed;

const REGO_TYPE: &str = "application/vnd.cncf.openpolicyagent.policy.layer.v1+rego";
const MANIFEST_TYPE: &str = "application/vnd.cncf.openpolicyagent.manifest.layer.v1+json";
const DATA_TYPE: &str = "application/vnd.cncf.openpolicyagent.data.layer.v1+json";

const LIMITS: Limits = Limits {
    bundle: 1 << 20,
    unpacked: 1 << 20,
    files: 100,
    bundle_manifest: 1 << 20,
};

fn output(level: u32) -> Output {
    Output {
        level: flate2::Compression::new(level),
        ..Output::to(crate::oci::NewBlob::system_space())
    }
}

struct Artifact {
    config: Descriptor,
    layers: Vec<serde_json::Value>,
    blobs: Vec<Blob>,
}

impl Artifact {
    fn new() -> Self {
        Self {
            config: Descriptor::of(media_type::EMPTY, b"{}"),
            layers: Vec::new(),
            blobs: Vec::new(),
        }
    }

    fn with(mut self, kind: &str, title: &str, content: &[u8]) -> Self {
        let descriptor = Descriptor::of(kind, content);
        self.blobs
            .push(Blob::check(&descriptor, content.to_vec().into()).unwrap());
        let mut layer = json!(descriptor);
        layer["annotations"] = json!({ TITLE_ANNOTATION: title });
        self.layers.push(layer);
        self
    }

    fn manifest(&self) -> Manifest {
        let text = json!({"schemaVersion": 2, "config": self.config, "layers": self.layers});
        Manifest::parse(text.to_string().into(), None, 1 << 20).unwrap()
    }

    fn bundle(&self, data_root: Option<&str>) -> Result<Blob, LayerError> {
        let plan = LayerPlan::of(&self.manifest(), data_root)?;
        Ok(plan
            .assemble_to(&self.blobs, &LIMITS, &output(6))?
            .blob()
            .clone())
    }
}

fn tarball(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tarball = output(6).tarball();
    files.iter().for_each(|(name, content)| {
        tarball
            .add(name, content.len() as u64, content.as_bytes())
            .unwrap()
    });
    content(&tarball.finish().unwrap()).unwrap()
}

fn files(blob: &Blob) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let walked = walk(blob, &LIMITS, |entry| -> Result<(), BundleError> {
        let content = String::from_utf8(entry.content()?).unwrap();
        found.push((entry.name().to_owned(), content));
        Ok(())
    });
    walked.unwrap();
    found
}

#[test]
fn a_tarball_is_copied_whatever_its_media_type() {
    let bytes = tarball(&[("p.rego", "package a\n")]);
    for kind in [
        media_type::LAYER_TAR_GZIP,
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.cncf.openpolicyagent.layer.v1.tar+gzip",
        "application/vnd.wasm.content.layer.v1+wasm",
        "application/vnd.opa.bundle.layer.v1+gzip",
    ] {
        let bundle = Artifact::new()
            .with(kind, "bundle.tar.gz", &bytes)
            .bundle(None)
            .unwrap();
        assert_eq!(content(&bundle).unwrap(), bytes, "{kind}");
    }
    let among_others = Artifact::new().with("text/plain", "README", b"x").with(
        media_type::LAYER_TAR_GZIP,
        "b",
        &bytes,
    );
    assert_eq!(
        content(&among_others.bundle_of_needed_layers()).unwrap(),
        bytes
    );
}

impl Artifact {
    /// The bundle, assembled from [`LayerPlan::layers`] only.
    fn bundle_of_needed_layers(&self) -> Blob {
        let plan = LayerPlan::of(&self.manifest(), None).unwrap();
        let wanted = |blob: &&Blob| {
            plan.layers()
                .iter()
                .any(|layer| layer.digest == *blob.digest())
        };
        let blobs: Vec<_> = self.blobs.iter().filter(wanted).cloned().collect();
        let assembled = plan.assemble_to(&blobs, &LIMITS, &output(6)).unwrap();
        assembled.blob().clone()
    }
}

#[test]
fn a_bare_tar_stream_is_compressed_the_same_way_every_time() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(10);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "p.rego", &b"package a\n"[..])
        .unwrap();
    let bare = builder.into_inner().unwrap();
    let artifact = Artifact::new().with("application/vnd.opa.bundle.layer.v1+tar", "b", &bare);
    let (one, two) = (
        artifact.bundle(None).unwrap(),
        artifact.bundle(None).unwrap(),
    );
    assert_eq!(one.digest(), two.digest());
    assert_eq!(
        files(&one),
        [("p.rego".to_owned(), "package a\n".to_owned())]
    );
}

#[test]
fn a_folder_that_oras_packed_loses_its_own_name() {
    let bytes = tarball(&[
        ("policies/a/p.rego", "package a\n"),
        ("policies/data.json", "{}"),
    ]);
    let mut artifact = Artifact::new().with(media_type::LAYER_TAR_GZIP, "policies", &bytes);
    artifact.layers[0]["annotations"][UNPACK_ANNOTATION] = "true".into();
    let names: Vec<_> = files(&artifact.bundle(None).unwrap())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["a/p.rego", "data.json"]);
}

fn conftest() -> Artifact {
    Artifact::new()
        .with(REGO_TYPE, "policy/deny.rego", b"package main\n")
        .with(REGO_TYPE, "policy/deny_test.rego", b"package main\n")
        .with(
            DATA_TYPE,
            "policy/exclusions/services.yaml",
            b"services: [a]\n",
        )
        .with(
            DATA_TYPE,
            "policy/exclusions/users.json",
            b"{\"users\":{\"n\":1.10}}",
        )
}

#[test]
fn conftests_files_become_a_bundle_in_any_order() {
    let artifact = conftest();
    let plan = LayerPlan::of(&artifact.manifest(), None).unwrap();
    assert_eq!(
        (plan.is_copy(), plan.guessed_root()),
        (false, Some("policy"))
    );
    let bundle = artifact.bundle(None).unwrap();
    let found = files(&bundle);
    assert_eq!(
        found[1],
        (
            "exclusions/data.json".into(),
            r#"{"services":["a"],"users":{"n":1.10}}"#.into()
        )
    );
    assert_eq!(found[2].0, "policy/deny.rego");
    assert!(
        found[0].1.contains(artifact.manifest().digest().as_str()),
        "{found:?}"
    );
    Bundle::open(bundle, &LIMITS).unwrap();
    let mut shuffled = conftest();
    shuffled.layers.reverse();
    shuffled.blobs.reverse();
    // The manifest differs, and with it the revision; everything else is the same.
    assert_eq!(files(&shuffled.bundle(None).unwrap())[1..], found[1..]);
    let rooted = files(&artifact.bundle(Some("policy/exclusions/")).unwrap());
    assert!(
        rooted.iter().any(|(name, _)| name == "data.json"),
        "{rooted:?}"
    );
}

#[test]
fn an_artifact_without_a_bundle_is_refused_in_one_line() {
    let bytes = tarball(&[]);
    for (artifact, expected) in [
        (Artifact::new(), "none of 0 layers"),
        (
            Artifact::new()
                .with("text/plain", "a", b"x")
                .with("text/plain", "b", b"x"),
            "none of 2 layers",
        ),
        (
            Artifact::new().with("text/plain", "README", b"hello"),
            "not a gzip tarball",
        ),
        (
            Artifact::new().with("x", "z", &[0x28, 0xb5, 0x2f, 0xfd, 0]),
            "zstd",
        ),
        (
            Artifact::new()
                .with(media_type::LAYER_TAR_GZIP, "a", &bytes)
                .with(media_type::LAYER_TAR_GZIP, "b", &bytes),
            "2 layers are tarballs",
        ),
        (
            Artifact::new().with(REGO_TYPE, "../../etc/passwd", b"package a"),
            "not a valid file name",
        ),
        (
            Artifact::new()
                .with(DATA_TYPE, "p/a.json", b"{\"x\":1}")
                .with(DATA_TYPE, "p/b.json", b"{\"x\":2}"),
            "another data file also sets data.p.x",
        ),
        (
            Artifact::new().with(DATA_TYPE, "p/a.json", b"{"),
            "p/a.json:1:2\": unexpected end of input",
        ),
        (
            Artifact::new()
                .with(REGO_TYPE, "p.rego", b"package a")
                .with(REGO_TYPE, "./p.rego", b"package b"),
            "layer \"./p.rego\": another layer is also p.rego",
        ),
        (
            Artifact::new().with(MANIFEST_TYPE, "one", b"{}").with(
                MANIFEST_TYPE,
                "two",
                b"{\"roots\":[]}",
            ),
            "layer \"two\": another layer is also .manifest",
        ),
        (
            Artifact::new()
                .with(REGO_TYPE, "data.json", b"{\"x\":1}")
                .with(DATA_TYPE, "a.json", b"{\"y\":2}"),
            "another layer is also data.json",
        ),
        (
            Artifact::new()
                .with(
                    media_type::LAYER_TAR_GZIP,
                    "x",
                    &tarball(&[("x/p.rego", REGO.1), ("x\\q.rego", REGO.1)]),
                )
                .unpacked(),
            "its name is not valid in a bundle",
        ),
        (
            (0..=MAX_LAYERS).fold(Artifact::new(), |artifact, _| {
                artifact.with(REGO_TYPE, "p.rego", b"package a")
            }),
            "1025 layers; at most 1024",
        ),
    ] {
        let error = artifact.bundle(None).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_layer_that_comes_twice_is_one_file() {
    let twice = Artifact::new()
        .with(REGO_TYPE, "p.rego", b"package a")
        .with(REGO_TYPE, "p.rego", b"package a");
    let found = files(&twice.bundle(None).unwrap());
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [".manifest", "p.rego"]);
}

#[test]
fn large_yaml_is_refused_before_it_is_parsed() {
    let large = format!("#{}\na: 1\n", " ".repeat(16 << 20));
    let limits = Limits {
        unpacked: 64 << 20,
        ..LIMITS
    };
    for several in [false, true] {
        let mut artifact = Artifact::new().with(DATA_TYPE, "p/a.yaml", large.as_bytes());
        if several {
            artifact = artifact.with(DATA_TYPE, "p/b.yaml", b"b: 1\n");
        }
        let plan = LayerPlan::of(&artifact.manifest(), None).unwrap();
        let made = plan.assemble_to(&artifact.blobs, &limits, &output(1));
        let error = made.unwrap_err().to_string();
        assert!(
            error.starts_with("layer \"p/a.yaml\": YAML of more than 16777216 bytes"),
            "{error}"
        );
    }
}

const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OCI_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const REGO: (&str, &str) = ("p.rego", "package a\n");

/// An uncompressed tarball.
fn bare(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn zstd(files: &[(&str, &str)]) -> Vec<u8> {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    compress_to_vec(bare(files).as_slice(), CompressionLevel::Fastest)
}

impl Artifact {
    /// With a config that is not empty.
    fn configured(mut self, kind: &str) -> Self {
        self.config = Descriptor::of(kind, br#"{"rootfs":{"type":"layers"}}"#);
        self
    }

    /// The last layer is a folder that oras packed.
    fn unpacked(mut self) -> Self {
        let layer = self.layers.last_mut().unwrap();
        layer["annotations"][UNPACK_ANNOTATION] = "true".into();
        self
    }

    fn assembled_at(&self, level: u32) -> Result<Assembled, LayerError> {
        let plan = LayerPlan::of(&self.manifest(), None)?;
        plan.assemble_to(&self.blobs, &LIMITS, &output(level))
    }
}

/// What each producer makes, and what becomes of it: the name of the transform, or nothing where
/// the bytes stay as they are.
#[test]
#[expect(clippy::too_many_lines, reason = "a flat table")]
fn every_known_shape_becomes_a_bundle() {
    let gz = tarball(&[REGO]);
    let image = || Artifact::new().configured(DOCKER_CONFIG);
    let shapes: Vec<(&str, Artifact, Option<&str>)> = vec![
        (
            "policy CLI, OPA's recipe",
            Artifact::new().with(media_type::LAYER_TAR_GZIP, "bundle.tar.gz", &gz),
            None,
        ),
        (
            "oras without types",
            Artifact::new().with("application/vnd.oci.image.layer.v1.tar", "b", &gz),
            None,
        ),
        (
            "oras, a folder",
            Artifact::new()
                .with(
                    media_type::LAYER_TAR_GZIP,
                    "x",
                    &tarball(&[("x/p.rego", REGO.1)]),
                )
                .unpacked(),
            Some("strip"),
        ),
        ("conftest", conftest(), Some("files")),
        (
            "conftest before 2022",
            Artifact::new().with(
                "application/vnd.cncf.openpolicyagent.rego.layer.v1+rego",
                "p.rego",
                b"package a",
            ),
            Some("files"),
        ),
        (
            "Trivy's checks",
            Artifact::new().with(
                "application/vnd.cncf.openpolicyagent.layer.v1.tar+gzip",
                "bundle.tar.gz",
                &gz,
            ),
            None,
        ),
        (
            "flux",
            Artifact::new().with("application/vnd.cncf.flux.content.v1.tar+gzip", "", &gz),
            None,
        ),
        (
            "docker, one layer",
            image().with(DOCKER_LAYER, "", &gz),
            None,
        ),
        (
            "docker, several layers",
            image()
                .with(DOCKER_LAYER, "", &gz)
                .with(DOCKER_LAYER, "", &tarball(&[])),
            Some("layers"),
        ),
        (
            "buildah, several layers, one of them zstd and one not compressed",
            Artifact::new()
                .configured(media_type::IMAGE_CONFIG)
                .with(OCI_ZSTD, "", &zstd(&[REGO]))
                .with(media_type::LAYER_TAR_GZIP, "", &gz)
                .with("application/vnd.oci.image.layer.v1.tar", "", &bare(&[REGO])),
            Some("layers"),
        ),
        (
            "one layer of zstd",
            Artifact::new().with(OCI_ZSTD, "", &zstd(&[REGO])),
            Some("gzip"),
        ),
        (
            "zstd behind another type",
            Artifact::new().with(media_type::LAYER_TAR_GZIP, "", &zstd(&[REGO])),
            Some("gzip"),
        ),
        (
            "not compressed",
            Artifact::new().with(
                "application/vnd.opa.bundle.layer.v1+tar",
                "",
                &bare(&[REGO]),
            ),
            Some("gzip"),
        ),
        (
            "a folder of zstd",
            Artifact::new()
                .with(OCI_ZSTD, "x", &zstd(&[("x/p.rego", REGO.1)]))
                .unpacked(),
            Some("strip"),
        ),
    ];
    for (what, artifact, transform) in shapes {
        let [one, other] = [6, 1].map(|level| artifact.assembled_at(level).unwrap());
        let made = |assembled: &Assembled| {
            let provenance = assembled.provenance()?;
            Some((provenance.transform().name(), provenance.digest()))
        };
        assert_eq!(made(&one).map(|(name, _)| name), transform, "{what}");
        // Another compressor makes other bytes, and the same entity tag.
        assert_eq!(made(&one), made(&other), "{what}");
        if transform.is_some() {
            assert_ne!(one.blob().digest(), other.blob().digest(), "{what}");
            assert_eq!(files(one.blob()), files(other.blob()), "{what}");
        }
        assert!(
            files(one.blob())
                .iter()
                .any(|(name, _)| name.ends_with(".rego")),
            "{what}"
        );
        one.open(&LIMITS).unwrap();
    }
}

#[test]
fn the_digest_before_the_layers_are_fetched_is_the_one_after() {
    for artifact in [
        Artifact::new().with(media_type::LAYER_TAR_GZIP, "", &tarball(&[REGO])),
        Artifact::new().with(OCI_ZSTD, "", &zstd(&[REGO])),
        conftest(),
        Artifact::new()
            .configured(DOCKER_CONFIG)
            .with(DOCKER_LAYER, "", &tarball(&[REGO]))
            .with(DOCKER_LAYER, "", &tarball(&[])),
    ] {
        let plan = LayerPlan::of(&artifact.manifest(), None).unwrap();
        let assembled = artifact.assembled_at(6).unwrap();
        let digest = assembled
            .provenance()
            .map_or_else(|| assembled.blob().digest().clone(), Provenance::digest);
        assert_eq!(plan.expected_digest(), Some(digest));
    }
}

#[test]
fn what_is_no_bundle_is_refused_with_the_reason() {
    let yaml = tarball(&[("x/template.yaml", "kind: ConstraintTemplate")]);
    let helm = Artifact::new().configured(HELM_CONFIG).with(
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        "",
        &tarball(&[REGO]),
    );
    let gatekeeper = Artifact::new()
        .with(media_type::LAYER_TAR_GZIP, "x", &yaml)
        .unpacked();
    let image = Artifact::new()
        .configured(DOCKER_CONFIG)
        .with(DOCKER_LAYER, "", &tarball(&[("bin/sh", "x")]))
        .with(DOCKER_LAYER, "", &tarball(&[]));
    let flux_file = Artifact::new().with(
        "application/vnd.cncf.flux.content.v1.rego",
        "",
        b"package a",
    );
    // Without a config of an image, it is not known that the layers belong together.
    let two = Artifact::new()
        .with(media_type::LAYER_TAR_GZIP, "a", &tarball(&[REGO]))
        .with(media_type::LAYER_TAR_GZIP, "b", &tarball(&[REGO]));
    for (artifact, words) in [
        (helm, "a Helm chart"),
        (gatekeeper, "none of its 1 files is Rego"),
        (image, "none of its 1 files is Rego"),
        (flux_file, "not a gzip tarball"),
        (two, "2 layers are tarballs instead of one"),
    ] {
        let error = artifact.assembled_at(6).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_delta_is_refused_in_every_shape() {
    let patch = ("patch.json", r#"{"data":[]}"#);
    for artifact in [
        Artifact::new().with(media_type::LAYER_TAR_GZIP, "", &tarball(&[patch])),
        Artifact::new().with(OCI_ZSTD, "", &zstd(&[patch])),
        Artifact::new()
            .with(
                media_type::LAYER_TAR_GZIP,
                "x",
                &tarball(&[("x/patch.json", patch.1)]),
            )
            .unpacked(),
        Artifact::new()
            .configured(DOCKER_CONFIG)
            .with(DOCKER_LAYER, "", &tarball(&[REGO]))
            .with(DOCKER_LAYER, "", &tarball(&[patch])),
    ] {
        let assembled = artifact.assembled_at(6).unwrap();
        let error = assembled.open(&LIMITS).unwrap_err();
        assert!(matches!(error, BundleError::Delta { .. }), "{error}");
    }
}

/// OPA's signature has a hash of every file.
#[test]
fn a_folder_with_opas_own_signatures_keeps_every_file() {
    let content = [
        ("x/p.rego", REGO.1),
        ("x/p_test.rego", "package a_test\n"),
        ("x/.signatures.json", r#"{"signatures":["a.b.c"]}"#),
    ];
    let names = |content: &[(&str, &str)]| {
        let layer = tarball(content);
        let folder = Artifact::new().with(media_type::LAYER_TAR_GZIP, "x", &layer);
        let found = files(folder.unpacked().assembled_at(6).unwrap().blob());
        found.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(
        names(&content),
        ["p.rego", "p_test.rego", ".signatures.json"]
    );
    assert_eq!(names(&content[..2]), ["p.rego"]);
}

#[test]
fn only_the_layers_of_the_manifest_are_used() {
    let [one, other] = ["package a\n", "package b\n"].map(|rego| {
        Artifact::new().with(
            media_type::LAYER_TAR_GZIP,
            "",
            &tarball(&[("p.rego", rego)]),
        )
    });
    let plan = LayerPlan::of(&one.manifest(), None).unwrap();
    for blobs in [
        &other.blobs[..],
        &[],
        &[one.blobs[0].clone(), one.blobs[0].clone()],
    ] {
        let error = plan.assemble_to(blobs, &LIMITS, &output(6)).unwrap_err();
        assert!(
            error.to_string().contains("not those of the manifest"),
            "{error}"
        );
    }
    plan.assemble_to(&one.blobs, &LIMITS, &output(6)).unwrap();
}

#[test]
fn whatever_is_repacked_stays_within_the_limits() {
    let half: String = " ".repeat(600 << 10);
    let large = [("data.json", half.as_str()), ("a/data.json", &half)];
    for artifact in [
        Artifact::new().with(OCI_ZSTD, "", &zstd(&large)),
        Artifact::new()
            .with(OCI_ZSTD, "x", &zstd(&large))
            .unpacked(),
        Artifact::new()
            .with(DATA_TYPE, "p/a.json", half.as_bytes())
            .with(DATA_TYPE, "p/b.json", half.as_bytes()),
    ] {
        let error = artifact.assembled_at(6).unwrap_err();
        assert!(
            matches!(
                error,
                LayerError::Refused(BundleError::UnpacksTooLarge { .. })
            ),
            "{error}"
        );
    }
}
