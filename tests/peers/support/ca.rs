//! A certificate authority that nobody knows.

use std::{fs, path::PathBuf, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tempfile::TempDir;

/// Issues certificates for loopback.
#[derive(Debug)]
pub(crate) struct Ca {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// The files of a certificate.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificate {
    /// The configuration of a server in the process of the test.
    pub(crate) fn server_tls(&self) -> Arc<rustls::ServerConfig> {
        let chain = CertificateDer::pem_slice_iter(&fs::read(&self.certificate).unwrap())
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(&fs::read(&self.key).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(
            folder.path().join("ca.pem"),
            params.self_signed(&key).unwrap().pem(),
        )
        .unwrap();
        Self {
            folder,
            issuer: Issuer::new(params, key),
        }
    }

    /// The file of the certificate that clients have to trust.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A server's certificate for 127.0.0.1 and localhost.
    pub(crate) fn issue(&self, name: &str) -> Certificate {
        self.issue_for(name, &["127.0.0.1", "localhost"])
    }

    /// A certificate for these hosts, with which a client can identify itself as well.
    pub(crate) fn issue_for(&self, name: &str, hosts: &[&str]) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        // OpenSSL takes a certificate with the name of its issuer for a self-signed one.
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = Certificate {
            certificate: self.folder.path().join(format!("{name}.crt")),
            key: self.folder.path().join(format!("{name}.key")),
        };
        fs::write(&files.certificate, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}
