//! An artifact in a registry with forged signatures, and its verification.

use bundlegate::{
    oci::{Digest, Manifest, PinnedReference},
    verify::{
        self, Authority, AuthorityKind, Evidence, Identity, Pattern, PublicKey, Reason, Report,
        Requirements, TlogPolicy, TrustPolicy, TrustRoot, VerificationContext, VerificationError,
        Verified,
    },
};
use serde_json::Value;

use crate::{
    faulty::FaultyRegistry,
    forge::{By, Certified, Envelope, ISSUER, Key, Legacy, SUBJECT, Sigstore, payload, statement},
};

pub(crate) struct Fixture {
    pub(crate) registry: FaultyRegistry,
    pub(crate) digest: Digest,
    pub(crate) forge: Sigstore,
    pub(crate) key: Key,
    pub(crate) signer: Certified,
}

/// The result of a verification.
pub(crate) struct Outcome {
    pub(crate) verdict: Result<Verified<Manifest>, VerificationError>,
    pub(crate) report: Report,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let registry = FaultyRegistry::start().await;
        let (digest, _) = registry.put_artifact("live", b"bundle");
        let forge = Sigstore::new();
        Self {
            registry,
            digest,
            signer: forge.signer(),
            forge,
            key: Key::p256(),
        }
    }

    /// The repository, as a signer names it.
    pub(crate) fn repository(&self) -> String {
        format!("{}/acme/authz", self.registry.address)
    }

    /// The content of a good statement.
    pub(crate) fn statement(&self) -> Value {
        statement(&self.digest)
    }

    /// The content of a good payload.
    pub(crate) fn payload(&self) -> Value {
        payload(&self.digest, &self.repository())
    }

    /// A bundle of this statement by the key alone.
    pub(crate) fn bare(&self, statement: &Value) -> Value {
        Envelope::sign(&self.key, statement).bundle(By::Key(&self.key), &[], &[])
    }

    /// A bundle of this statement by the signer with the certificate, in the log.
    pub(crate) fn keyless(&self, statement: &Value) -> Value {
        self.keyless_by(&self.signer, statement)
    }

    pub(crate) fn keyless_by(&self, signer: &Certified, statement: &Value) -> Value {
        let (by, envelope) = (
            By::Certificate(signer),
            Envelope::sign(&signer.key, statement),
        );
        envelope.bundle(by, &[self.forge.log_envelope(by, &envelope)], &[])
    }

    /// A legacy signature by the signer with the certificate, in the log.
    pub(crate) fn legacy_keyless(&self, payload: &Value) -> Legacy {
        let legacy = Legacy::sign(&self.signer.key, payload).certified(&self.signer);
        let entry = self.forge.log_payload(
            By::Certificate(&self.signer),
            &legacy.payload,
            &legacy.signature(),
        );
        legacy.logged(&entry)
    }

    /// Attaches a bundle that holds exactly this text.
    pub(crate) fn attach_text(&self, text: &str) {
        let entry = self
            .registry
            .put_referrer(&self.digest, text.as_bytes(), |_| {});
        self.registry
            .list_referrers(&self.digest, &Value::from(vec![entry]));
    }

    /// Whoever has the key may release.
    pub(crate) fn trusts_key(&self) -> TrustPolicy {
        policy([keyed(&self.key)])
    }

    /// The release workflow may release.
    pub(crate) fn trusts_workflow(&self) -> TrustPolicy {
        policy([keyless(self.forge.trust())])
    }

    /// Gathers what the registry has, and judges.
    pub(crate) async fn verify(&self, policy: &TrustPolicy) -> Outcome {
        self.verify_at(policy, VerificationContext::now()).await
    }

    pub(crate) async fn verify_at(
        &self,
        policy: &TrustPolicy,
        circumstances: VerificationContext,
    ) -> Outcome {
        let (pinned, manifest, evidence) = self.gather().await;
        let (verdict, report) =
            Verified::verify_with_report(policy, &pinned, manifest, &evidence, circumstances);
        Outcome { verdict, report }
    }

    /// The artifact that the tag names.
    pub(crate) async fn gather_pin(&self) -> PinnedReference {
        self.registry
            .source()
            .resolve(&self.registry.reference("live"))
            .await
            .unwrap()
    }

    pub(crate) async fn gather(&self) -> (PinnedReference, Manifest, Evidence) {
        let source = self.registry.source();
        let pinned = source
            .resolve(&self.registry.reference("live"))
            .await
            .unwrap();
        let manifest = source.manifest(&pinned).await.unwrap();
        let evidence = verify::collect(&source, &pinned, 8 << 20).await.unwrap();
        (pinned, manifest, evidence)
    }

    /// Judges these bundles and no other.
    pub(crate) async fn bundles(&self, bundles: &[Value], policy: &TrustPolicy) -> Outcome {
        self.registry.put_bundles(&self.digest, bundles);
        self.verify(policy).await
    }

    /// Judges these legacy signatures and no other.
    pub(crate) async fn legacy(&self, signatures: &[Legacy], policy: &TrustPolicy) -> Outcome {
        self.registry.put_legacy(&self.digest, signatures);
        self.verify(policy).await
    }
}

impl Outcome {
    #[track_caller]
    pub(crate) fn accepted(self) -> Verified<Manifest> {
        self.verdict
            .unwrap_or_else(|rejection| panic!("{rejection}\n{:#?}", self.report))
    }

    /// Refused for this reason, found by this check, in these words.
    #[track_caller]
    pub(crate) fn refused(self, reason: Reason, check: &str, words: &str) {
        let Err(rejection) = &self.verdict else {
            panic!("accepted: {:#?}", self.report)
        };
        assert_eq!(rejection.reason, reason, "{rejection}");
        let failed = self
            .report
            .signatures
            .iter()
            .flat_map(|finding| finding.checks.last());
        let told: Vec<_> = failed
            .filter(|check| !check.ok)
            .map(|check| (check.name, &check.detail))
            .collect();
        let found = told
            .iter()
            .any(|(name, detail)| *name == check && detail.contains(words));
        assert!(found, "no {check} says {words:?}: {told:?}; {rejection}");
    }

    /// Refused although nothing is wrong with any single candidate.
    #[track_caller]
    pub(crate) fn refused_as_a_whole(self, reason: Reason, words: &str) {
        let Err(rejection) = &self.verdict else {
            panic!("accepted: {:#?}", self.report)
        };
        assert_eq!(rejection.reason, reason, "{rejection}\n{:#?}", self.report);
        assert!(
            rejection.to_string().contains(words),
            "{rejection} does not say {words:?}"
        );
    }
}

pub(crate) fn public(key: &Key) -> PublicKey {
    PublicKey::from_pem(&key.pem()).unwrap()
}

/// Whoever has this key, without a log.
pub(crate) fn keyed(key: &Key) -> Authority {
    Authority::with_keys("key".into(), [public(key)])
}

/// Whoever has this key, as the log of `root` saw.
pub(crate) fn keyed_in_log(key: &Key, root: TrustRoot) -> Authority {
    Authority {
        tlog: TlogPolicy::Require,
        root: Some(root),
        ..keyed(key)
    }
}

/// The release workflow, as `root` vouches.
pub(crate) fn keyless(root: TrustRoot) -> Authority {
    let exactly = |text| Pattern::exact(text).unwrap();
    identified(root, exactly(ISSUER), exactly(SUBJECT))
}

pub(crate) fn identified(root: TrustRoot, issuer: Pattern, subject: Pattern) -> Authority {
    let kind = AuthorityKind::Keyless(Identity {
        issuer,
        subject,
        claims: [].into(),
    });
    Authority {
        name: "workflow".into(),
        kind,
        tlog: TlogPolicy::Require,
        root: Some(root),
    }
}

/// Any one of these.
pub(crate) fn policy(authorities: impl IntoIterator<Item = Authority>) -> TrustPolicy {
    policy_with(authorities, |_| {})
}

pub(crate) fn policy_with(
    authorities: impl IntoIterator<Item = Authority>,
    bend: impl FnOnce(&mut Requirements),
) -> TrustPolicy {
    let mut requirements = Requirements::any_of(authorities.into_iter().collect());
    bend(&mut requirements);
    TrustPolicy::signed("test".into(), requirements).unwrap()
}
