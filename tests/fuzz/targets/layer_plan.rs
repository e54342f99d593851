//! Artifacts of other tools, and the bundles that are assembled from them. An input is a list of
//! layers; each is a byte for its type, a line with its title, and its content.

#![no_main]

use bundlegate::{
    bundle::{LayerPlan, Limits},
    oci::{Blob, Descriptor, Manifest, NewBlob, NewManifest, media_type},
};
use bundlegate_fuzz::{SEPARATOR, blob, fix_checksums, gzip};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    bundle: 1 << 20,
    unpacked: 1 << 20,
    files: 50,
    bundle_manifest: 1 << 20,
};
const TITLE: &str = "org.opencontainers.image.title";
const UNPACK: &str = "io.deis.oras.content.unpack";

fuzz_target!(|bytes: &[u8]| {
    let layers: Vec<_> = split(bytes).into_iter().filter_map(layer).take(8).collect();
    let (descriptors, blobs): (Vec<Descriptor>, Vec<Blob>) = layers.into_iter().unzip();
    // The layers of an image, which has a config, are applied over one another.
    for (config, root) in [
        ("{}", None),
        ("{}", Some("policy")),
        ("{\"rootfs\":{}}", None),
    ] {
        let manifest = NewManifest::new(media_type::IMAGE_CONFIG, descriptors.clone())
            .configured(config.as_bytes())
            .to_bytes()
            .expect("it has bytes");
        let manifest = Manifest::parse(manifest, None, 1 << 20).expect("we made it");
        let Ok(plan) = LayerPlan::of(&manifest, root) else {
            continue;
        };
        let needed: Vec<_> = plan
            .layers()
            .iter()
            .filter_map(|layer| chosen(layer, &descriptors, &blobs))
            .collect();
        let assemble = || plan.assemble(&needed, &LIMITS, NewBlob::system_space());
        let Ok(assembled) = assemble() else {
            continue;
        };
        let again = assemble().expect("it succeeded before");
        assert_eq!(assembled.blob().digest(), again.blob().digest());
        assert_eq!(assembled.provenance(), again.provenance());
        let _ = assembled.open(&LIMITS);
    }
});

fn split(bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest
        .windows(SEPARATOR.len())
        .position(|window| window == SEPARATOR.as_bytes())
    {
        parts.push(&rest[..at]);
        rest = &rest[at + SEPARATOR.len()..];
    }
    parts.push(rest);
    parts
}

fn layer(bytes: &[u8]) -> Option<(Descriptor, Blob)> {
    let (kind, rest) = bytes.split_first()?;
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let title = String::from_utf8_lossy(&rest[..end]).into_owned();
    let content = &rest[end + 1..];
    let (media_type, content) = match kind {
        b'r' => (
            "application/vnd.cncf.openpolicyagent.policy.layer.v1+rego",
            content.to_vec(),
        ),
        b'd' => (
            "application/vnd.cncf.openpolicyagent.data.layer.v1+json",
            content.to_vec(),
        ),
        b'm' => (
            "application/vnd.cncf.openpolicyagent.manifest.layer.v1+json",
            content.to_vec(),
        ),
        b't' => (media_type::LAYER_TAR_GZIP, gzip(&fix_checksums(content))),
        b'l' => (
            "application/vnd.oci.image.layer.v1.tar",
            fix_checksums(content),
        ),
        b'z' => (
            "application/vnd.oci.image.layer.v1.tar+zstd",
            content.to_vec(),
        ),
        _ => ("application/octet-stream", content.to_vec()),
    };
    let mut descriptor = Descriptor::of(media_type, &content);
    let mut annotations = vec![(TITLE.to_owned(), title)];
    if *kind == b't' {
        annotations.push((UNPACK.to_owned(), "true".to_owned()));
    }
    descriptor.annotations = Some(annotations.into_iter().collect());
    Some((descriptor, blob(content)))
}

fn chosen(layer: &Descriptor, descriptors: &[Descriptor], blobs: &[Blob]) -> Option<Blob> {
    descriptors
        .iter()
        .position(|one| one == layer)
        .map(|at| blobs[at].clone())
}
