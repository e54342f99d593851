//! Signatures made to specification where no real program can make them: a Sigstore of its
//! own, with every ingredient open to be bent.

// The fuzz targets use the forge, too, and have no registry.
#[cfg(not(fuzzing))]
mod attached;
mod certificates;
mod der;
mod keys;
mod logs;
#[cfg(test)]
mod proof;
mod signatures;
mod sigstore;
mod timestamps;

pub(crate) use certificates::{Certified, Content, San, Sct, Window};
pub(crate) use der::{integer, sequence};
pub(crate) use keys::{Key, pem};
pub(crate) use logs::{Entry, Generation, Log, Proof};
pub(crate) use signatures::{
    By, CERTIFICATE, CHAIN, Envelope, LOGGED, Legacy, SIGNATURE, TIMESTAMP, payload, statement,
};
pub(crate) use sigstore::{ISSUER, SUBJECT, Sigstore, ca, minutes, trust, window};
pub(crate) use timestamps::TimestampAuthority;
