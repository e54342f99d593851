//! Blobs by digest, from memory, disk or the registry; concurrent requests for a blob share one
//! fetch. Also the cache folder, whose on-disk format is documented here.
//!
//! A blob that one repository delivered is handed out for that repository and credential only:
//! otherwise the manifest of one tenant could name the private layer of another.
//!
//! # The cache folder
//!
//! `cache.directory` is an OCI image layout (image-spec, `image-layout.md`) with further files
//! beside it, so `oras`, `skopeo` and `crane` can read it, and a copy of it seeds another machine.
//! It belongs to one process at a time and has mode 0700. An existing folder is used only if it is
//! empty (except for `lost+found`) or is recognised as a cache; nothing in a foreign folder is
//! changed.
//!
//! | path | content | if it is lost or damaged |
//! |---|---|---|
//! | `oci-layout` | `{"imageLayoutVersion":"1.0.0","dev.bundlegate.cache":1}`; the second key marks the folder as a cache; a beginning of it is left by a crash | the folder is refused; without the second key, the entries of `index.json` prove a cache of an earlier version |
//! | `index.json` | the entries below; at most 256 MiB | the cache starts empty |
//! | `blobs/sha256/HEX` | layers, manifests, evidence and histories, by digest; hashed whenever they are read | a damaged blob is removed and fetched again |
//! | `.lock` | empty; locked (`flock`) as long as the process lives | created again |
//! | `.index.lock` | empty; locked while `index.json` is replaced | created again |
//! | `.tmp-*` | a file that is being written; removed when the cache is opened | – |
//! | `attempts.log` | the steps that are running, see below | crashes are forgotten |
//! | `opa-check/HEX.json` | results of `opa_check`, see below | the check is repeated |
//! | `tuf/NAME.json` | the TUF metadata of the trust root `NAME` (percent-encoded), written by [`crate::verify`]: `{"format":1,"files":{FILE: TEXT}}` | the root is fetched again |
//!
//! Blobs beyond `cache.memory` are in unlinked files of this folder, which no listing shows and
//! which vanish with the process.
//!
//! ## Entries of `index.json`
//!
//! Of several entries with the same bundle and reference, the first counts. A changed reference
//! does not find the entry of the former one.
//!
//! A **bundle** that is served has an entry that names the manifest to which its reference resolved
//! (`mediaType` `application/vnd.oci.image.manifest.v1+json`, or of an index
//! `application/vnd.oci.image.index.v1+json`; `digest`, `size`), with these annotations. An
//! entry that lacks a required one, or in which one can't be parsed, is foreign, and a folder with
//! a foreign entry is refused.
//!
//! | annotation | value | |
//! |---|---|---|
//! | `dev.bundlegate.bundle` | the bundle's name | required |
//! | `dev.bundlegate.reference` | the reference as configured | required |
//! | `dev.bundlegate.identity` | repository and credential that delivered the blobs ([`Source::identity`](crate::registry::Source::identity)); other identities do not get them from the cache | required |
//! | `dev.bundlegate.layer` | digest of the layer that the bundle is, or of the first that it was made from | required |
//! | `dev.bundlegate.layer.size` | its size in bytes, decimal | required |
//! | `dev.bundlegate.layers` | digest and size of every layer that the bundle was made from, in order, all separated by spaces | where there are several |
//! | `dev.bundlegate.manifests` | digests of the manifests to which an index leads, in order, that of the image last | of an index |
//! | `dev.bundlegate.evidence` | digest of the evidence: [`Evidence`](crate::verify::Evidence) as JSON, never a verdict | required |
//! | `dev.bundlegate.evidences` | digests of the evidence of the index and of the manifests below it, in order | where there are several |
//! | `dev.bundlegate.checked` | when the registry last confirmed the digest, RFC 3339; set only where `max_stale` needs it | optional |
//! | `dev.bundlegate.policy` | revision of the policy that accepted the manifest | optional; counts with `.roots` only |
//! | `dev.bundlegate.roots` | revisions of the trust roots that accepted it, separated by spaces | optional; counts with `.policy` only |
//!
//! A bundle that was made from layers is not stored: it is made again from them, so that nothing but
//! the digests in a verified manifest decides what is served.
//!
//! The **history** of a bundle has an entry of its own, which outlives the bundle: `mediaType`
//! `application/vnd.bundlegate.history.v1+json`, `digest` and `size` of the history, and the two
//! annotations `dev.bundlegate.bundle` and `dev.bundlegate.reference`. Its blob is JSON of at most
//! 64 KiB, which [`crate::watch`] reads and writes: `floor` (`"version 1.2.0"`, `"created TIME"`,
//! `"signed TIME"` or null), `served` (the last 64 digests, oldest first) and `withdrawn`
//! (`{"reason", "lost": {"manifest", "etag"}}` or null).
//!
//! ## Order of writes
//!
//! A change writes its blobs first: each into a `.tmp-*` file that is renamed. The next write of
//! the index then syncs these blobs, replaces `index.json` (temporary file, fsync, rename, fsync of
//! the folder) and removes the blobs that no entry names any more. A crash in between leaves the
//! old index and blobs that nothing names, which are removed when the cache is opened. One write of
//! the index serves all changes that wait for it.
//!
//! ## `attempts.log`
//!
//! The first line is `version VERSION`; the log of another version is ignored. `STEP` is `verify`
//! or `open`, `LIMITS` a word that identifies the limits, `DIGEST` the digest of the manifest. A
//! log beyond 1 MiB is rewritten, and one beyond 8 MiB is ignored.
//!
//! | line | meaning |
//! |---|---|
//! | `begin NUMBER STEP LIMITS DIGEST` | the step begins |
//! | `end NUMBER` | the step with this number has ended |
//! | `died COUNT STEP LIMITS DIGEST` | COUNT processes in a row died during the step |
//! | `absolve STEP LIMITS DIGEST` | the step has ended, so its crashes no longer count |
//! | `exit` | orderly exit: the steps that are still running did not crash |
//!
//! ## `opa-check/HEX.json`
//!
//! `HEX` is the SHA-256 of `BUNDLE OPTIONS`: the digest of the tarball, and `load` or `load,tests`.
//! A file is `{"format":1,"bundle","options","results":[{"program","result"}]}`, the newest of at
//! most four results last, where `program` is the digest of the `opa` executable and `result` a
//! [`Verdict`](crate::opa_check::Verdict): `{"passed":{"tests":N}}` or
//! `{"refused":{"first":[{"place":{"file","row"},"message"}],"more":N}}`. At most 10 000 files are
//! kept, for 180 days.

mod attempts;
mod blob_store;
mod check_results;
mod commit;
mod disk;
mod error;
mod folder;
#[cfg(fuzzing)]
pub mod fuzzing;
mod health;
mod index;
mod memory;
mod metrics;
mod record;
mod spool;
mod stored_bundle;

pub use attempts::{Attempt, SetAside};
pub use blob_store::{Change, Options, Store};
pub use check_results::CheckResults;
pub use error::{FolderError, StoreError};
pub use folder::check as check_folder;
pub use metrics::StoreMetrics;
pub use stored_bundle::{Acceptance, LoadedBundle, StoredBundle};

#[cfg(test)]
mod tests;
