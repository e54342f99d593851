//! The algorithms of OPA's bundle signatures (RFC 7518 §3; `v1/keys/keys.go`).

use std::fmt;

use aws_lc_rs::{
    hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED,
        ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED, ECDSA_P521_SHA512_FIXED_SIGNING,
        EcdsaSigningAlgorithm, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
        RSA_PKCS1_2048_8192_SHA512, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
        RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
        RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, VerificationAlgorithm,
    },
};

/// An algorithm that every OPA supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
}

/// The minimum size of RSA keys, in bits.
pub(super) const MIN_RSA_BITS: usize = 2048;

/// How an algorithm signs.
#[derive(Clone, Copy)]
pub(super) enum SigningMethod {
    Ecdsa(&'static EcdsaSigningAlgorithm),
    Rsa(&'static dyn RsaEncoding),
    Hmac(hmac::Algorithm),
}

/// How an algorithm verifies.
#[derive(Clone, Copy)]
pub(super) enum VerificationMethod {
    Ecdsa(&'static dyn VerificationAlgorithm),
    Rsa(&'static dyn VerificationAlgorithm),
    Hmac(hmac::Algorithm),
}

impl SigningAlgorithm {
    /// All algorithms with their names; the first is bundlegate's default. OPA's is RS256.
    pub const ALL: [(&'static str, Self); 12] = [
        ("ES256", Self::Es256),
        ("ES384", Self::Es384),
        ("ES512", Self::Es512),
        ("HS256", Self::Hs256),
        ("HS384", Self::Hs384),
        ("HS512", Self::Hs512),
        ("PS256", Self::Ps256),
        ("PS384", Self::Ps384),
        ("PS512", Self::Ps512),
        ("RS256", Self::Rs256),
        ("RS384", Self::Rs384),
        ("RS512", Self::Rs512),
    ];

    /// The algorithm of this name, such as `ES256`.
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|(known, _)| *known == name).map(|(_, this)| this)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|(_, algorithm)| *algorithm == self);
        found.map_or("", |(name, _)| name)
    }

    /// Whether the key that verifies also signs, so that every OPA that can check a signature can
    /// forge one.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }

    /// The kind of key that it needs, for a message.
    pub(super) fn needed_key(self) -> &'static str {
        match self {
            Self::Es256 => "an ECDSA key on P-256",
            Self::Es384 => "an ECDSA key on P-384",
            Self::Es512 => "an ECDSA key on P-521",
            Self::Hs256 | Self::Hs384 | Self::Hs512 => "a secret",
            _ => "an RSA key",
        }
    }

    pub(super) fn signing(self) -> SigningMethod {
        use SigningMethod::{Ecdsa, Hmac, Rsa};
        match self {
            Self::Es256 => Ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING),
            Self::Es384 => Ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING),
            Self::Es512 => Ecdsa(&ECDSA_P521_SHA512_FIXED_SIGNING),
            Self::Hs256 => Hmac(hmac::HMAC_SHA256),
            Self::Hs384 => Hmac(hmac::HMAC_SHA384),
            Self::Hs512 => Hmac(hmac::HMAC_SHA512),
            Self::Ps256 => Rsa(&RSA_PSS_SHA256),
            Self::Ps384 => Rsa(&RSA_PSS_SHA384),
            Self::Ps512 => Rsa(&RSA_PSS_SHA512),
            Self::Rs256 => Rsa(&RSA_PKCS1_SHA256),
            Self::Rs384 => Rsa(&RSA_PKCS1_SHA384),
            Self::Rs512 => Rsa(&RSA_PKCS1_SHA512),
        }
    }

    pub(super) fn verification(self) -> VerificationMethod {
        use VerificationMethod::{Ecdsa, Hmac, Rsa};
        match self {
            Self::Es256 => Ecdsa(&ECDSA_P256_SHA256_FIXED),
            Self::Es384 => Ecdsa(&ECDSA_P384_SHA384_FIXED),
            Self::Es512 => Ecdsa(&ECDSA_P521_SHA512_FIXED),
            Self::Hs256 => Hmac(hmac::HMAC_SHA256),
            Self::Hs384 => Hmac(hmac::HMAC_SHA384),
            Self::Hs512 => Hmac(hmac::HMAC_SHA512),
            Self::Ps256 => Rsa(&RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Rsa(&RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Rsa(&RSA_PSS_2048_8192_SHA512),
            Self::Rs256 => Rsa(&RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Rsa(&RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Rsa(&RSA_PKCS1_2048_8192_SHA512),
        }
    }
}

impl fmt::Display for SigningAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
