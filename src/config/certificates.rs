//! The certificates that the configuration names, with the time at which each file expires.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{files::Base, raw};
use crate::{access::CertificateExpiry, registry, server::CertificateInUse};

/// The files of certificates, by their keys, without those of `registries`.
#[derive(Debug)]
pub(super) struct CertificateFiles(Vec<(String, PathBuf)>);

impl CertificateFiles {
    /// Those of `server` and `trust.authorities`.
    pub(super) fn named_in(server: &raw::Server, trust: &raw::Trust) -> Self {
        let mut files = Vec::new();
        let mut name = |key: &str, file: &Path| files.push((key.to_owned(), file.to_owned()));
        if let Some(tls) = &server.tls {
            name("server.tls.certificate", &tls.certificate);
            if let Some(client_ca) = &tls.client_ca {
                name("server.tls.client_ca", client_ca);
            }
        }
        if let Some(tls) = &server.admin_tls {
            name("server.admin_tls.certificate", &tls.certificate);
        }
        for (authority, raw) in &trust.authorities {
            if let Some(x509) = &raw.x509 {
                name(
                    &format!("trust.authorities.{authority}.x509.roots"),
                    &x509.roots,
                );
            }
        }
        Self(files)
    }

    /// Reads the files, and those of `registries`. One that can't be read is left out: it is an error
    /// of its key, for the code that reads that key.
    pub(super) fn read(
        self,
        registries: &BTreeMap<String, registry::Options>,
        base: Base<'_>,
    ) -> Vec<CertificateInUse> {
        let of_registries = registries.iter().filter_map(|(host, options)| {
            let files = options.client_certificate.as_ref()?;
            let key = format!("registries.{host}.client_certificate");
            Some((key, files.certificate.clone()))
        });
        let files = self.0.into_iter().chain(of_registries);
        let certificates = files.filter_map(|(key, file)| {
            let expiry = CertificateExpiry::earliest(&base.certificates(&file).ok()?)?;
            Some(CertificateInUse { key, expiry })
        });
        certificates.collect()
    }
}
