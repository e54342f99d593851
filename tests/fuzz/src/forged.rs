//! Valid signatures of every kind, by a forged Sigstore instance.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use crate::{
    Case, TrustedMaterial,
    forge::{By, Envelope, Key, Legacy, Sct, Sigstore, minutes},
};

/// The verification material of a bundle: the JSON pointer of each part, and whether the part is
/// text instead of base64.
pub const PROOFS: [(&str, bool); 7] = [
    ("/verificationMaterial/certificate/rawBytes", false),
    (
        "/verificationMaterial/tlogEntries/0/canonicalizedBody",
        false,
    ),
    (
        "/verificationMaterial/tlogEntries/0/inclusionPromise/signedEntryTimestamp",
        false,
    ),
    (
        "/verificationMaterial/tlogEntries/0/inclusionProof/checkpoint/envelope",
        true,
    ),
    (
        "/verificationMaterial/tlogEntries/0/inclusionProof/rootHash",
        false,
    ),
    (
        "/verificationMaterial/timestampVerificationData/rfc3161Timestamps/0/signedTimestamp",
        false,
    ),
    ("/dsseEnvelope/signatures/0/sig", false),
];

/// Trust material, and signatures that are valid under it.
pub struct Forged {
    pub trusted: TrustedMaterial,
    pub legacy: Vec<String>,
}

/// # Panics
/// When the forge fails.
pub fn forge() -> Forged {
    let (forge, logged) = (Sigstore::new(), Key::p256());
    let mut trusted =
        TrustedMaterial::new(&forge, logged.pem(), By::Certificate(&forge.root).pem());
    let case = Case::new(&trusted);
    let ci = forge.signer();
    let mut content = forge.content();
    content.valid.until = forge.then + minutes(60 * 24);
    let team = forge
        .root
        .issue("team", Key::p256(), &content, &Sct::Missing);

    let (by_ci, by_key, by_team) = (
        By::Certificate(&ci),
        By::Key(&logged),
        By::Certificate(&team),
    );
    let statement = case.forged_statement();
    let [of_ci, of_key, of_team] =
        [&ci.key, &logged, &team.key].map(|key| Envelope::sign(key, &statement));
    let stamp = |envelope: &Envelope| [forge.stamp(&envelope.signature)];
    trusted.bundles = vec![
        of_ci.bundle(by_ci, &[forge.log_envelope(by_ci, &of_ci)], &[]),
        of_ci.bundle(by_ci, &[forge.log2_envelope(by_ci, &of_ci)], &stamp(&of_ci)),
        of_key.bundle(by_key, &[forge.log_envelope(by_key, &of_key)], &[]),
        of_key.bundle(by_key, &[forge.log2_envelope(by_key, &of_key)], &[]),
        of_team.bundle(by_team, &[], &stamp(&of_team)),
    ];

    let payload = case.forged_payload();
    let [of_ci, of_key, of_team] =
        [&ci.key, &logged, &team.key].map(|key| Legacy::sign(key, &payload));
    let logged = |by, legacy: &Legacy| forge.log_payload(by, &legacy.payload, &legacy.signature());
    let legacy = [
        of_ci.clone().certified(&ci).logged(&logged(by_ci, &of_ci)),
        of_ci
            .clone()
            .certified(&ci)
            .logged(&logged(by_ci, &of_ci))
            .stamped(&forge.stamp(&of_ci.signature())),
        of_key.clone().logged(&logged(by_key, &of_key)),
        of_team
            .clone()
            .certified(&team)
            .stamped(&forge.stamp(&of_team.signature())),
    ];
    Forged {
        legacy: legacy.iter().map(in_parts).collect(),
        trusted,
    }
}

/// In the order of [`crate::Parts`].
fn in_parts(legacy: &Legacy) -> String {
    let annotation = |name| legacy.annotations.get(name).cloned().unwrap_or_default();
    [
        annotation("dev.cosignproject.cosign/signature"),
        String::from_utf8(legacy.payload.clone()).expect("it is JSON"),
        annotation("dev.sigstore.cosign/certificate"),
        annotation("dev.sigstore.cosign/chain"),
        annotation("dev.sigstore.cosign/bundle"),
        annotation("dev.sigstore.cosign/rfc3161timestamp"),
    ]
    .join(crate::SEPARATOR)
}

/// One part of a bundle, as bytes.
///
/// # Panics
/// When it is not base64.
pub fn proof(bundle: &Value, (pointer, is_text): (&str, bool)) -> Option<Vec<u8>> {
    let text = bundle.pointer(pointer)?.as_str()?;
    Some(if is_text {
        text.as_bytes().to_vec()
    } else {
        STANDARD.decode(text).expect("it is base64")
    })
}
