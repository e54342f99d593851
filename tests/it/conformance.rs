//! The verification tests of sigstore-conformance
//! (<https://github.com/sigstore/sigstore-conformance>, `test/assets/bundle-verify` at a73de497),
//! offline, over its own client protocol: one folder a case, `_fail` in its name means that it must
//! be refused.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use bundlegate::{
    oci::{Descriptor, media_type},
    verify::{
        self, Authority, AuthorityKind, Identity, Pattern, Requirements, SignatureReport,
        TlogPolicy, TrustPolicy, TrustRoot, VerificationContext, Verified,
    },
};
use serde_json::{Value, json};

use crate::{
    command::{Ran, fixture},
    faulty::FaultyRegistry,
};

// The suite's defaults for a case that names no values of its own.
const IDENTITY: &str = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main";
const ISSUER: &str = "https://token.actions.githubusercontent.com";
const CASES: usize = 70;

/// One folder of the suite.
struct Case {
    folder: PathBuf,
    artifact: PathBuf,
}

impl Case {
    fn name(&self) -> &str {
        self.folder.file_name().unwrap().to_str().unwrap()
    }

    fn must_fail(&self) -> bool {
        self.name().ends_with("_fail")
    }

    fn text(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(file)).ok()
    }

    fn bundle(&self) -> Vec<u8> {
        fs::read(self.folder.join("bundle.sigstore.json")).unwrap()
    }

    fn verify(&self, subject: &str) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
        command
            .env_clear()
            .arg("verify-bundle")
            .arg("--bundle")
            .arg(self.folder.join("bundle.sigstore.json"));
        let key = self.folder.join("key.pub");
        if key.exists() {
            command.arg("--key").arg(key);
        } else {
            let (identity, issuer) = self.signer();
            command.args([
                "--certificate-identity",
                &identity,
                "--certificate-oidc-issuer",
                &issuer,
            ]);
        }
        let root = self.folder.join("trusted_root.json");
        if root.exists() {
            command.arg("--trusted-root").arg(root);
        }
        Ran::of(command.arg(subject).output().unwrap())
    }

    fn signer(&self) -> (String, String) {
        (
            self.text("identity").unwrap_or_else(|| IDENTITY.to_owned()),
            self.text("issuer").unwrap_or_else(|| ISSUER.to_owned()),
        )
    }
}

fn cases() -> Option<Vec<Case>> {
    let suite =
        fixture("sigstore-conformance", "140 tests of sigstore-conformance")?.join("bundle-verify");
    let folders = fs::read_dir(&suite)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir());
    let artifact = |folder: &Path| Some(folder.join("artifact")).filter(|file| file.exists());
    let mut cases: Vec<_> = folders
        .map(|folder| Case {
            artifact: artifact(&folder).unwrap_or_else(|| suite.join("a.txt")),
            folder,
        })
        .collect();
    cases.sort_by(|one, other| one.folder.cmp(&other.folder));
    assert_eq!(
        cases.len(),
        CASES,
        "the suite has other cases than these tests were written for"
    );
    Some(cases)
}

#[test]
fn every_case_of_the_suite_comes_out_as_it_says_for_a_path_and_for_a_digest() {
    let Some(cases) = cases() else { return };
    let mut wrong = Vec::new();
    for case in &cases {
        let digest =
            bundlegate::oci::Digest::sha256(&fs::read(&case.artifact).unwrap()).to_string();
        for subject in [case.artifact.to_str().unwrap(), &digest] {
            let ran = case.verify(subject);
            // 2 would be a call that nobody understood.
            if ran.code != i32::from(case.must_fail()) {
                wrong.push(format!("{} {subject}: {ran:?}", case.name()));
            }
        }
    }
    println!(
        "sigstore-conformance: {} of {} as they should be",
        2 * cases.len() - wrong.len(),
        2 * cases.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn the_gateway_reads_no_bundle_of_an_older_version_or_without_an_envelope() {
    let Some(cases) = cases() else { return };
    let (mut narrower, mut read) = (0, 0);
    for case in cases
        .iter()
        .filter(|case| !case.must_fail() && case.text("key.pub").is_none())
    {
        let bundle: Value = serde_json::from_slice(&case.bundle()).unwrap();
        let version_3 = [
            "application/vnd.dev.sigstore.bundle.v0.3+json",
            "application/vnd.dev.sigstore.bundle+json;version=0.3",
        ]
        .contains(&bundle["mediaType"].as_str().unwrap());
        let finding = verified_by_the_gateway(case).await;
        let [format, rest @ ..] = finding.checks.as_slice() else {
            panic!("{finding:?}")
        };
        if version_3 && bundle.get("dsseEnvelope").is_some() {
            // It is about no OCI artifact of ours, and for this reason alone refused.
            let last = rest.last().unwrap();
            assert_eq!(
                (format.ok, last.name, last.ok),
                (true, "digest", false),
                "{}: {finding:?}",
                case.name()
            );
            read += 1;
        } else {
            assert_eq!(
                (format.name, format.ok),
                ("format", false),
                "{}: {finding:?}",
                case.name()
            );
            narrower += 1;
        }
    }
    println!(
        "the gateway's own profile: {narrower} good bundles of other kinds refused, {read} read"
    );
    assert!(narrower > 0 && read > 0);
}

/// The gateway's verdict on the bundle of a case, attached to an artifact.
async fn verified_by_the_gateway(case: &Case) -> SignatureReport {
    let registry = FaultyRegistry::start().await;
    let (digest, _) = registry.put_artifact("v1", b"bundle");
    let mut layer = json!(registry.put_blob(&case.bundle()));
    layer["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.3+json".into();
    let referrer = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": Descriptor::of(media_type::EMPTY, b"{}"), "layers": [layer],
        "subject": { "mediaType": media_type::OCI_MANIFEST, "size": 2, "digest": digest } });
    let entry = Descriptor::of(media_type::OCI_MANIFEST, referrer.to_string().as_bytes());
    registry.put(
        &format!("manifests/{}", entry.digest),
        media_type::OCI_MANIFEST,
        referrer.to_string(),
    );
    let index =
        json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry] });
    registry.put(
        &format!("referrers/{digest}"),
        media_type::OCI_INDEX,
        index.to_string(),
    );

    let source = registry.source();
    let pinned = source.resolve(&registry.reference("v1")).await.unwrap();
    let evidence = verify::collect(&source, &pinned, 16 << 20).await.unwrap();
    let manifest = source.manifest(&pinned).await.unwrap();
    let (verdict, report) = Verified::verify_with_report(
        &policy(case),
        &pinned,
        manifest,
        &evidence,
        VerificationContext::now(),
    );
    assert!(verdict.is_err(), "{}", case.name());
    report.signatures.into_iter().next().unwrap()
}

fn policy(case: &Case) -> TrustPolicy {
    let root = case
        .text("trusted_root.json")
        .map_or_else(TrustRoot::sigstore, |text| {
            TrustRoot::from_json("own", &text)
        });
    let (identity, issuer) = case.signer();
    let identity = Identity {
        issuer: Pattern::exact(&issuer).unwrap(),
        subject: Pattern::exact(&identity).unwrap(),
        claims: Default::default(),
    };
    let authority = Authority {
        name: "ci".into(),
        kind: AuthorityKind::Keyless(identity),
        tlog: TlogPolicy::Require,
        root: Some(root.unwrap()),
    };
    TrustPolicy::signed("conformance".into(), Requirements::any_of(vec![authority])).unwrap()
}
