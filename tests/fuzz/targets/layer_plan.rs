//! Artifacts of other tools, and the bundles that are assembled from them. An input is a list of
//! layers; each is a byte for its type, a line with its title, and its content.

#![no_main]

use bundlegate::{
    bundle::{Bundle, LayerPlan, Limits},
    oci::{Blob, Descriptor, Manifest, NewManifest, media_type},
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
    let manifest = NewManifest::new(media_type::IMAGE_CONFIG, descriptors.clone())
        .to_bytes()
        .expect("it has bytes");
    let manifest = Manifest::parse(manifest, None, 1 << 20).expect("we made it");
    for root in [None, Some("policy")] {
        let Ok(plan) = LayerPlan::of(&manifest, root) else {
            continue;
        };
        let needed: Vec<_> = plan
            .layers()
            .iter()
            .filter_map(|layer| chosen(layer, &descriptors, &blobs))
            .collect();
        let Ok(assembled) = plan.assemble(&needed, &LIMITS) else {
            continue;
        };
        let again = plan
            .assemble(&needed, &LIMITS)
            .expect("it succeeded before");
        assert_eq!(assembled.digest(), again.digest());
        let _ = Bundle::open(assembled, &LIMITS);
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
