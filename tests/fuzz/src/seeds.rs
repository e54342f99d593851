//! Writes the seeds of the fuzz targets: `seeds FOLDER`, one folder in it for each target.
//! Signatures are made by bundlegate's own code; samples of other programs come from
//! `BUNDLEGATE_FIXTURES`, if that is set.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bundlegate::{
    oci::{Descriptor, LayoutIndex, media_type},
    sign::KeyPair,
};
// The instrumentation of the fuzzing flags needs libFuzzer to link.
use libfuzzer_sys as _;

use bundlegate_fuzz::{
    Case, PROOFS, Parts, SEPARATOR, TrustedMaterial, forge, gzip, key, proof, sparse_tar, tar,
};
use serde_json::json;

const HEADERS: &[&str] = &[
    r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push""#,
    r#"basic realm="a \"quoted\" one", BEARER REALM="https://t/", service=plain"#,
    r#"</v2/a/tags/list?n=1&last=b>; rel="next""#,
    r#"</first>; rel="prev", </v2/_catalog?last=x>;type=json; REL=next"#,
    "120",
    "Sun, 06 Nov 1994 08:49:47 GMT",
    "modes=snapshot,delta;wait=60",
    r#"Wait = "5", respond-async"#,
    r#"W/"a", "b",c"#,
    "Bearer s3cret",
    "/authz/ma%69n",
];
// The first byte chooses where the rest is split.
const REQUESTS: &[&str] = &[
    "\0GET /bundles/authz/main HTTP/1.1\r\nHost: x\r\nIf-None-Match: @\r\n\r\n",
    "\0GET /authz/main?x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nPrefer: wait=1\r\n\r\n",
    "\0GET /bundles/none HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "\0GET /bundles/authz/main HTTP/1.1\r\nHost: x\r\nIf-None-Match: W/@, \"y\"\r\nUser-Agent: Open Policy Agent/0.38.1\r\n\r\nHEAD / HTTP/1.1\r\n\r\n",
    "\0POST /bundles/authz/main HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n1",
    "\0PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];
const RESPONSES: &[&str] = &[
    r#"{"token":"t","access_token":"a","expires_in":300}"#,
    r#"{"errors":[{"code":"DENIED","message":"no","detail":[{}]}]}"#,
    r#"{"name":"a/b","tags":["v1","v2"]}"#,
    r#"{"repositories":["a","b/c"]}"#,
    r#"{"auths":{"r.example":{"auth":"dTpw"},"https://index.docker.io/v1/":{"identitytoken":"t"}},"credHelpers":{"r.example":"x"},"credsStore":"desktop"}"#,
    r#"{"ServerURL":"r.example","Username":"<token>","Secret":"s"}"#,
];
const VERSIONS: &[&str] = &[
    "^1 || ^3\n1.2.0\nv3.0.0\n3.0.0_build.7\n2.0.0\nlatest",
    "1.2 - 2.0, !=1.3.x\n1.2.9\n1.3.0\n2.0.7",
    ">=1.0.0-0 <2\n1.1.0-rc.1\n1.1.0-rc.99999999999999999999\n1.1.0",
];
const REFERENCES: &[&str] = &[
    "ghcr.io/acme/authz:v1",
    "localhost/a:latest",
    "127.0.0.1:5000/a/b-c__d.e:x@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    "oci-layout:/a:b/c:v1",
    "oci-layout:x@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    "[::1]:5000/a:b",
    "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
];
const BUNDLE_MANIFESTS: &[&str] = &[
    "{}",
    r#"{"revision":"r1","roots":["a/b","c"],"rego_version":1,"file_rego_versions":{"/a/*.rego":0},"wasm":[{"entrypoint":"a/allow","module":"/policy.wasm"}],"metadata":{"a":[1]}} x"#,
    r#"{"Revision":"r1","ROOTS":["","/x/"]}"#,
];
const REGO: &[&str] = &[
    "\u{1}package authz.api\n\nimport rego.v1\n\n# METADATA\n# entrypoint: true\ndefault allow := false\n\nallow if {\n\tsome role in data.roles[input.user]\n\trole.name == \"admin\"\n\tnot input.x[_] > 1 + 2 * 3\n}\n",
    "\u{0}package authz\n\nallow { input.x == [1, {\"a\": `b`}, {2}][_]; f(1) }\n\nf(x) = y { y := x | 1 } else = 2\n",
    "\u{1}package a[\"b c\"].d\n\nx contains y if { y := [z | z := input[_]; every k, v in z { k != v }] with input.a as 3 }\n",
];
const LAYER_PLANS: &[&str] = &[
    "rpolicy/main.rego\npackage main\n\n---\ndpolicy/a/data.json\n{\"x\":{\"y\":1e3}}\n---\ndpolicy/a/more.yaml\nx:\n  z: [1]\n---\nm.manifest\n{\"revision\":\"r\"}",
    "rmain.rego\npackage main\n---\nrb_test.rego\npackage b",
];
const JSON: &[&str] = &[
    r#"{"a":[1,-0.5e+3,1e400,true,false,null,"x\u00e9\ud83d\ude00\ud800\n"],"b":{"c":[],"a":{}},"b":{"d":12345678901234567890}}"#,
    " [ [ ] , { } ] null ",
];
/// Two documents each.
const DELTAS: &[&str] = &[
    "{\"a\":{\"b\":[1,{\"c\":2}],\"~/%\":1.0}}\0{\"a\":{\"b\":[0,1,{\"c\":3}],\"\":1},\"d\":null}",
    "[1,2,3,4]\0[1,3,4,5,{}]",
];
const YAML: &[&str] = &[
    "a: &x {b: [1, 0x_1F, 1e3, .5, 0o17, NO, ~, 2023-01-01], c: !!binary aGk=}\nd: {<<: *x, e: 'f''g', h: \"\\u00e9\\n\"}\n",
    "%YAML 1.1\n%TAG !e! tag:yaml.org,2002:\n---\n? !e!str 1\n: - |2-\n     a\n\n    b\n  - >+\n    c\n    d\n\n# e\n---\n[a: b, ? c]\n...\n",
    "<<: [{1: a}, {true: b, 1.5: c}]\n1: d\n'1': e # f\nlist:\n- - g\n  - h: i\n    j:\n    - k\n",
];
const LAYOUTS: &[&str] = &[
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"DIGEST","size":300,"annotations":{"org.opencontainers.image.ref.name":"r.example/acme/authz:v1","io.bundlegate.received":"2026-01-01T00:00:00Z"}},{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"DIGEST","size":300,"annotations":{"org.opencontainers.image.ref.name":"r.example/acme/authz@DIGEST"}}]}"#,
    r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"DIGEST","size":3,"annotations":{"dev.bundlegate.bundle":"a","dev.bundlegate.reference":"r.example/a:v1","dev.bundlegate.identity":"i","dev.bundlegate.layer":"DIGEST","dev.bundlegate.layer.size":"7","dev.bundlegate.evidence":"DIGEST","dev.bundlegate.checked":"2026-01-01T00:00:00Z"}}]}"#,
];
const CONFIGURATION: &str = "version: 1\nclients: [{name: a, bearer_token_file: token, bundles: [\"**\"]}, {name: b, anonymous: true, bundles: [x]}]\ntrust:\n  authorities:\n    release: {keys: [release.pub], tlog: none}\n  policies:\n    release: {require: {any_of: [release]}, match: \"r.example/**\"}\n    dev: unsigned\nbundles:\n  authz: {reference: \"r.example/acme/authz:v1\"}\n  other: {reference: \"oci-layout:x\", trust: dev, poll: 30s}\n  ranged: {reference: r.example/acme/authz, semver: \"^1\", suspend: true, filter_tags: {pattern: \"^v(.*)$\", extract: \"$1\"}}\nlimits: {bundle: 1MiB}\n";

fn main() -> io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1) else {
        return Err(io::Error::other("seeds FOLDER"));
    };
    let seeds = Seeds(folder.into());
    fs::create_dir_all(&seeds.0)?;
    for (target, texts) in [
        ("headers", HEADERS),
        ("answers", RESPONSES),
        ("reference", REFERENCES),
        ("versions", VERSIONS),
        ("fast_path", REQUESTS),
        ("bundle_manifest", BUNDLE_MANIFESTS),
        ("rego", REGO),
        ("layer_plan", LAYER_PLANS),
        ("yaml", YAML),
        ("json", JSON),
        ("delta", DELTAS),
        (
            "config",
            &[
                CONFIGURATION,
                include_str!("../../../config/bundlegate.yaml"),
            ],
        ),
    ] {
        texts
            .iter()
            .try_for_each(|text| seeds.add(target, text.as_bytes()))?;
    }
    signatures(&seeds)?;
    keys(&seeds)?;
    bundles(&seeds)?;
    manifests(&seeds)?;
    notifications(&seeds)?;
    status_reports(&seeds)?;
    if let Some(fixtures) = std::env::var_os("BUNDLEGATE_FIXTURES") {
        samples(&seeds, Path::new(&fixtures))?;
    }
    Ok(())
}

/// The body of each sample, as each sender would send it: the first byte chooses the sender.
fn notifications(seeds: &Seeds) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/notifications");
    for entry in fs::read_dir(folder)? {
        let sample: serde_json::Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
        for case in sample["cases"].as_array().into_iter().flatten() {
            let body = case["body"].to_string();
            for choice in (0..14_u8).filter(|_| body.len() < 4096) {
                seeds.add("webhooks", &[&[choice], body.as_bytes()].concat())?;
            }
        }
    }
    Ok(())
}

/// Each captured report, whole and cut: the first byte chooses where.
fn status_reports(seeds: &Seeds) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/status_reports");
    for entry in fs::read_dir(folder)? {
        let body = fs::read(entry?.path())?;
        for choice in [255, 128] {
            seeds.add("status_report", &[&[choice], body.as_slice()].concat())?;
        }
    }
    Ok(())
}

struct Seeds(PathBuf);

impl Seeds {
    fn add(&self, target: &str, bytes: &[u8]) -> io::Result<()> {
        let folder = self.0.join(target);
        fs::create_dir_all(&folder)?;
        let name = bundlegate::oci::Digest::sha256(bytes);
        fs::write(folder.join(name.hex()), bytes)
    }
}

/// The trust material is made once; signatures under other material would not be accepted.
fn signatures(seeds: &Seeds) -> io::Result<()> {
    let file = seeds.0.join("case.json");
    if !file.exists() {
        let forged = forge();
        forged.trusted.write(&file);
        let case = Case::new(&forged.trusted);
        for text in &forged.legacy {
            seeds.add("legacy", text.as_bytes())?;
            let parts: Vec<_> = text.split(SEPARATOR).collect();
            let evidence = case.legacy_evidence(&Parts {
                signature: parts[0],
                payload: parts[1].as_bytes(),
                certificate: parts[2],
                chain: parts[3],
                log_entry: parts[4],
                timestamp: parts[5],
            });
            assert!(case.accepts(&evidence), "a valid signature is accepted");
            seeds.add("evidence", evidence.to_string().as_bytes())?;
        }
    }
    let trusted = TrustedMaterial::read(&file);
    let case = Case::new(&trusted);
    seeds.add("trusted_root", trusted.trusted_root().as_bytes())?;
    for (choice, bundle) in trusted.bundles.iter().enumerate() {
        let bytes = bundle.to_string().into_bytes();
        let evidence = case.bundle_evidence(&bytes);
        assert!(case.accepts(&evidence), "a valid signature is accepted");
        seeds.add("bundle_v03", &bytes)?;
        seeds.add("evidence", evidence.to_string().as_bytes())?;
        for (at, place) in PROOFS.into_iter().enumerate() {
            let Some(proof) = proof(bundle, place) else {
                continue;
            };
            let choice = u8::try_from(choice * PROOFS.len() + at).map_err(io::Error::other)?;
            seeds.add("proofs", &[&[choice], proof.as_slice()].concat())?;
            if at == 0 {
                seeds.add("trusted_root", &proof)?;
            }
        }
    }
    let (payload, signature) = case.legacy();
    let parts = Parts {
        signature: &signature,
        payload: &payload,
        ..Parts::default()
    };
    seeds.add(
        "legacy",
        &[signature.as_bytes(), SEPARATOR.as_bytes(), &payload].concat(),
    )?;
    let bundle = case.attachment().bundle;
    seeds.add("bundle_v03", &bundle)?;
    case.signed()
        .iter()
        .try_for_each(|signed| seeds.add("bundle_v03", signed))?;
    for evidence in [case.legacy_evidence(&parts), case.bundle_evidence(&bundle)] {
        assert!(case.accepts(&evidence), "a valid signature is accepted");
        seeds.add("evidence", evidence.to_string().as_bytes())?;
    }
    Ok(())
}

fn keys(seeds: &Seeds) -> io::Result<()> {
    let generated = KeyPair::generate().map_err(io::Error::other)?;
    let file = generated.to_key_file(b"").map_err(io::Error::other)?;
    for text in [key().public_pem(), &file] {
        seeds.add("keys", text.as_bytes())?;
        seeds.add("keys", &bundlegate_fuzz::unpem(text))?;
    }
    seeds.add("keys", &bundlegate_fuzz::pkcs8())
}

fn bundles(seeds: &Seeds) -> io::Result<()> {
    let files = tar(&[
        (
            ".manifest",
            br#"{"revision":"r1","roots":["a"]}"#.as_slice(),
        ),
        ("a/data.json", br#"{"x":[1,{"y":null}]}"#),
        ("a/main.rego", b"package a\n\nx := 1\n"),
    ]);
    seeds.add("bundle", &[b"\x01", files.as_slice()].concat())?;
    seeds.add("bundle", &[b"\x00", gzip(&files).as_slice()].concat())?;
    let long = "d/".repeat(80) + "data.json";
    seeds.add(
        "bundle",
        &[
            b"\x01",
            tar(&[(long.as_str(), b"{}".as_slice())]).as_slice(),
        ]
        .concat(),
    )?;
    seeds.add(
        "bundle",
        &[b"\x01", sparse_tar("data.json", b"{}").as_slice()].concat(),
    )?;
    seeds.add(
        "layer_plan",
        &[
            b"tfolder\n",
            tar(&[("folder/data.json", b"{}".as_slice())]).as_slice(),
        ]
        .concat(),
    )
}

fn manifests(seeds: &Seeds) -> io::Result<()> {
    let case = Case::new(&TrustedMaterial::read(&seeds.0.join("case.json")));
    let mut index = LayoutIndex::default();
    index.set("v1", case.manifest.as_referrer());
    let attachment = case.attachment();
    let docker = json!({
        "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST,
        "config": Descriptor::of("x", b"{}"), "layers": [],
    });
    let index = index.to_bytes().map_err(io::Error::other)?;
    for bytes in [
        case.manifest.raw(),
        &attachment.referrer,
        &attachment.index,
        &index,
    ] {
        seeds.add("manifest", bytes)?;
    }
    seeds.add("manifest", docker.to_string().as_bytes())?;
    seeds.add("answers", &attachment.index)?;
    for layout in LAYOUTS {
        seeds.add(
            "layout",
            &[layout.as_bytes(), b"\n---\n", case.manifest.raw()].concat(),
        )?;
    }
    Ok(())
}

/// Adds samples of other programs.
fn samples(seeds: &Seeds, folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            samples(seeds, &path)?;
            continue;
        }
        let bytes = fs::read(&path)?;
        match path.file_name().and_then(|name| name.to_str()) {
            Some("bundle.sigstore.json") => seeds.add("bundle_v03", &bytes)?,
            Some("trusted_root.json") => seeds.add("trusted_root", &bytes)?,
            Some("index.json") => seeds.add("layout", &bytes)?,
            Some(name) if name.ends_with(".pub") => seeds.add("keys", &bytes)?,
            _ if bytes.starts_with(&[0x1f, 0x8b]) => {
                seeds.add("bundle", &[b"\0", bytes.as_slice()].concat())?
            }
            _ if bytes.starts_with(b"{\"schemaVersion\"") => seeds.add("manifest", &bytes)?,
            _ => {}
        }
    }
    Ok(())
}
