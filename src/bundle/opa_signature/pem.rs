//! The first key of a PEM file (RFC 7468), as Go's `encoding/pem` finds it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::KeyError;

/// A PEM block. Its content is wiped from memory when it is dropped.
pub(super) struct PemBlock {
    pub(super) label: String,
    pub(super) der: Zeroizing<Vec<u8>>,
}

/// `openssl ecparam -genkey` writes a block of this label before the key.
const EC_PARAMETERS: &str = "EC PARAMETERS";

impl PemBlock {
    /// The first block of a file, after parameters of elliptic curves. `example` is a label for the
    /// message about a file without one.
    ///
    /// # Errors
    /// When there is none, or it is malformed or encrypted.
    pub(super) fn first(file: &[u8], example: &'static str) -> Result<Self, KeyError> {
        // Not UTF-8, so not PEM.
        let mut rest = str::from_utf8(file).map_err(|_| KeyError::NotPem(example))?;
        loop {
            let (block, after) = Self::next(rest, example)?;
            if block.label != EC_PARAMETERS {
                return Ok(block);
            }
            rest = after;
        }
    }

    fn next<'a>(text: &'a str, example: &'static str) -> Result<(Self, &'a str), KeyError> {
        let (_, begun) = text
            .split_once("-----BEGIN ")
            .ok_or(KeyError::NotPem(example))?;
        let (label, body) = begun
            .split_once("-----")
            .filter(|(label, _)| !label.contains('\n'))
            .ok_or_else(|| KeyError::Malformed("its first line has no end".to_owned()))?;
        let malformed = |what: &str| KeyError::Malformed(format!("{label}: {what}"));
        let (body, after) = body
            .split_once(&format!("-----END {label}-----"))
            .ok_or_else(|| malformed("it has no last line"))?;
        if label == "ENCRYPTED PRIVATE KEY" || body.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(KeyError::Encrypted);
        }
        let digits: Zeroizing<Vec<u8>> = Zeroizing::new(
            body.bytes()
                .filter(|byte| !byte.is_ascii_whitespace())
                .collect(),
        );
        // Of fixed capacity, so that no part of the key stays where a vector has grown from.
        let mut der = Zeroizing::new(Vec::with_capacity(digits.len()));
        STANDARD
            .decode_vec(&*digits, &mut der)
            .map_err(|_| malformed("it is not base64"))?;
        let label = label.to_owned();
        Ok((Self { label, der }, after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Result<String, KeyError> {
        PemBlock::first(text.as_bytes(), "PRIVATE KEY").map(|block| block.label)
    }

    #[test]
    fn the_first_key_of_a_file_counts() {
        let parameters = "-----BEGIN EC PARAMETERS-----\nBggq\n-----END EC PARAMETERS-----\n";
        let key = "-----BEGIN EC PRIVATE KEY-----\r\nAA\r\nAA\r\n-----END EC PRIVATE KEY-----\r\n";
        let other = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let text = format!("a comment\n{parameters}{key}{other}");
        assert_eq!(label(&text).unwrap(), "EC PRIVATE KEY");
        assert_eq!(
            *PemBlock::first(text.as_bytes(), "").unwrap().der,
            [0, 0, 0]
        );
        assert_eq!(label(&format!("{other}{key}")).unwrap(), "CERTIFICATE");
    }

    #[test]
    fn what_is_no_key_is_refused_without_a_quote() {
        let block = |body: &str| format!("-----BEGIN X-----\n{body}\n-----END X-----\n");
        for (text, reason) in [
            (String::new(), "no PEM key"),
            ("secret".to_owned(), "no PEM key"),
            ("-----BEGIN X\nsecret-----".to_owned(), "first line"),
            ("-----BEGIN X-----\nsecret".to_owned(), "no last line"),
            (block("secret!"), "not base64"),
            (
                block("Proc-Type: 4,ENCRYPTED\n\nsecret"),
                "an encrypted private key",
            ),
        ] {
            let error = label(&text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let encrypted = block("AAAA").replace(" X-", " ENCRYPTED PRIVATE KEY-");
        assert_eq!(label(&encrypted), Err(KeyError::Encrypted));
    }
}
