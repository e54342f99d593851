//! Explains why a certificate is refused, the registry's or the client's, and how to correct it.

use std::{error::Error, io};

use reqwest::StatusCode;
use rustls::CertificateError;

/// webpki's name for a CA certificate that a server presents as its own; rustls has no variant for
/// it (rustls 0.23, `webpki/mod.rs`, `pki_error`).
const CA_AS_SERVER: &str = "CaUsedAsEndEntity";

const NEEDS_CLIENT_CERTIFICATE: &str = "the server requires a client certificate; set \
     registries.HOST.client_certificate and .client_key";
const REFUSES_CLIENT_CERTIFICATE: &str = "the server does not accept the client certificate, or requires one; \
     check registries.HOST.client_certificate and .client_key";
/// The answer of a proxy that requires a user.
pub(super) const REFUSED_BY_PROXY: &str =
    "the proxy refuses the user; check registries.HOST.proxy, or HTTPS_PROXY";

const NOT_FOR_SERVERS: &str =
    "its certificate is not for servers; issue one with extendedKeyUsage serverAuth";

/// The explanation, where the certificate is why a connection failed.
pub(super) fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let Some(found) = rustls_error(error) else {
        return explain_text(error);
    };
    match found {
        rustls::Error::InvalidCertificate(reason) => Some(explain_reason(reason)),
        rustls::Error::AlertReceived(alert) => explain_alert(&format!("{alert:?}")),
        rustls::Error::NoCertificatesPresented => {
            Some("the server presents no certificate; configure one there".to_owned())
        }
        _ => None,
    }
}

/// As [`explain`], where h2 has made a text of the error of rustls: over TLS 1.3 a server refuses a
/// client certificate after the handshake.
fn explain_text(error: &(dyn Error + 'static)) -> Option<String> {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    let text = causes.last()?.to_string();
    explain_alert(text.split_once("received fatal alert: ")?.1)
}

/// The explanation of an alert, by its name in rustls, that is about the client certificate:
/// servers send no other alert about certificates.
fn explain_alert(alert: &str) -> Option<String> {
    let reason = match alert {
        "CertificateRequired" => NEEDS_CLIENT_CERTIFICATE,
        "BadCertificate"
        | "UnsupportedCertificate"
        | "CertificateRevoked"
        | "CertificateExpired"
        | "CertificateUnknown"
        | "AccessDenied"
        | "DecryptError"
        | "UnknownCA" => REFUSES_CLIENT_CERTIFICATE,
        _ => return None,
    };
    Some(reason.to_owned())
}

/// The detail of a refusal by what stands before a registry: nginx answers 400 after a handshake
/// without the client certificate that it requires, and a proxy 407.
pub(super) fn refused_by_proxy(status: StatusCode, body: &[u8]) -> Option<String> {
    let body = String::from_utf8_lossy(body);
    let reason = match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => REFUSED_BY_PROXY,
        StatusCode::BAD_REQUEST if body.contains("No required SSL certificate") => {
            NEEDS_CLIENT_CERTIFICATE
        }
        StatusCode::BAD_REQUEST if body.contains("The SSL certificate error") => {
            REFUSES_CLIENT_CERTIFICATE
        }
        _ => return None,
    };
    Some(format!(" ({reason})"))
}

/// The error of rustls among the causes. An `io::Error` skips the error that it wraps: its `source`
/// is the source of that error.
fn rustls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn explain_reason(reason: &CertificateError) -> String {
    let names = |presented: &[String]| match presented {
        [] => "no name".to_owned(),
        names => names
            .iter()
            .take(5)
            .map(|name| printable(name))
            .collect::<Vec<_>>()
            .join(", "),
    };
    match reason {
        CertificateError::UnknownIssuer => "its certificate is issued by an authority that is not trusted here; set \
             --ca-file FILE or registries.HOST.ca_file to the authority's certificate, or to a self-signed one"
            .to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; renew it there, or correct this machine's clock".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; correct this machine's clock, or renew it there".to_owned()
        }
        CertificateError::NotValidForName => {
            "its certificate is for another name; issue one with this host among its subjectAltNames".to_owned()
        }
        CertificateError::NotValidForNameContext { presented, .. } => format!(
            "its certificate is for {}; issue one with this host among its subjectAltNames, or use that name",
            names(presented)
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => NOT_FOR_SERVERS.to_owned(),
        CertificateError::Revoked => "its certificate is revoked; renew it there".to_owned(),
        other => explain_other(&format!("{other:?}")),
    }
}

/// The explanation of an error that rustls passes on from webpki as text.
fn explain_other(reason: &str) -> String {
    if reason.contains(CA_AS_SERVER) {
        return "its certificate is a CA certificate (CA:TRUE), which is not accepted from a server; create one with \
                CA:FALSE (openssl req -x509 -addext basicConstraints=critical,CA:FALSE …) and set --ca-file or \
                registries.HOST.ca_file to it, or issue a server certificate with this CA"
            .to_owned();
    }
    if reason.contains("EkuError") || reason.contains("EkuNotFound") {
        return NOT_FOR_SERVERS.to_owned();
    }
    if reason.contains("UnsupportedCertVersion") {
        return "its certificate is X.509 version 1; issue one of version 3, with a subjectAltName"
            .to_owned();
    }
    format!("its certificate is not accepted: {}", printable(reason))
}

/// Text from a server, cut and without control characters.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|shown| !shown.is_control())
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa,
        KeyPair,
    };
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        metrics::Metrics,
        registry::{Options, ReadLimits, Registries, RegistryMetrics},
    };

    /// The error of a client that trusts `root` at a server with this certificate.
    async fn connection_error(
        certificate: &rcgen::Certificate,
        key: &KeyPair,
        root: Option<&str>,
    ) -> String {
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let server = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
        let options = Options {
            extra_roots: root.unwrap_or_default().into(),
            ..Options::default()
        };
        let limits = ReadLimits {
            manifest: 1,
            evidence: 1,
            bundle: 1,
        };
        let registries = Registries::new(
            [(host.clone(), options)].into(),
            limits,
            RegistryMetrics::new(&Metrics::new()).unwrap(),
        );
        let error = registries
            .repositories(&host)
            .await
            .unwrap_err()
            .to_string();
        serving.abort();
        error
    }

    fn parameters(names: &[&str]) -> CertificateParams {
        CertificateParams::new(
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
        .unwrap()
    }

    #[tokio::test]
    async fn a_certificate_error_says_how_to_correct_it() {
        let key = KeyPair::generate().unwrap();
        let mut parameters = parameters(&["127.0.0.1"]);
        let good = parameters.self_signed(&key).unwrap();
        assert!(
            connection_error(&good, &key, None)
                .await
                .contains("not trusted here")
        );
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = parameters.self_signed(&key).unwrap();
        let error = connection_error(&authority, &key, Some(&authority.pem())).await;
        assert!(
            error.contains("CA:TRUE") && error.contains("CA:FALSE") && error.contains("--ca-file"),
            "{error}"
        );
        parameters.is_ca = IsCa::NoCa;
        parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_before = rcgen::date_time_ymd(2019, 1, 1);
        let expired = parameters.self_signed(&key).unwrap();
        assert!(
            connection_error(&expired, &key, Some(&expired.pem()))
                .await
                .contains("has expired")
        );
    }

    #[tokio::test]
    async fn a_certificate_for_another_name_or_purpose_is_reported_as_such() {
        let mut authority = parameters(&[]);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let elsewhere = parameters(&["registry.example"])
            .signed_by(&key, &issuer)
            .unwrap();
        let error = connection_error(&elsewhere, &key, Some(&issuer.pem())).await;
        assert!(
            error.contains("registry.example") && error.contains("subjectAltNames"),
            "{error}"
        );
        let mut client = parameters(&["127.0.0.1"]);
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let client = client.signed_by(&key, &issuer).unwrap();
        let error = connection_error(&client, &key, Some(&issuer.pem())).await;
        assert!(error.contains("serverAuth"), "{error}");
    }

    #[test]
    fn no_control_character_of_a_certificate_error_is_printed() {
        assert!(!explain_other("Other(\u{1b}[2J)").contains('\u{1b}'));
        assert!(explain_other("UnsupportedCertVersion").contains("version 3"));
    }
}
