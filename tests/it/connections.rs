//! Connections to registries: HTTP/2, reuse, limits, client certificates, proxies.

mod certificates;
mod limits;
mod proxies;
mod reuse;

use std::sync::Arc;

use bundlegate::{
    metrics::Metrics,
    oci::Reference,
    registry::{Options, ReadLimits, Registries, RegistryMetrics, Source},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

/// A private certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Whether a server asks for a client certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clients {
    Anonymous,
    Known,
    /// It asks for one, and goes on without.
    Either,
}

impl Authority {
    fn new() -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap());
        Self(issuer.unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server for these names.
    fn server(&self, names: &[&str], clients: Clients) -> ServerConfig {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(names).unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let mut tls = ServerConfig::builder()
            .with_client_cert_verifier(self.client_verifier(clients))
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        tls
    }

    fn client_verifier(&self, clients: Clients) -> Arc<dyn ClientCertVerifier> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::clone(self.0.der())).unwrap();
        let known = WebPkiClientVerifier::builder(Arc::new(roots));
        match clients {
            Clients::Anonymous => WebPkiClientVerifier::no_client_auth(),
            Clients::Known => known.build().unwrap(),
            Clients::Either => known.allow_unauthenticated().build().unwrap(),
        }
    }

    /// A client certificate and its key as PEM.
    fn client(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (parameters.signed_by(&key, &self.0).unwrap(), key)
    }
}

/// The repository `acme/authz` at `host`.
fn source_at(host: &str, options: Options) -> Source {
    registries_at(host, options)
        .source(reference_at(host).repository())
        .unwrap()
}

fn registries_at(host: &str, options: Options) -> Registries {
    let limits = ReadLimits {
        manifest: 4 << 20,
        evidence: 8 << 20,
        bundle: 1 << 20,
    };
    let metrics = RegistryMetrics::new(&Metrics::new()).unwrap();
    Registries::new([(host.to_owned(), options)].into(), limits, metrics)
}

fn reference_at(host: &str) -> Reference {
    format!("{host}/acme/authz:live").parse().unwrap()
}
