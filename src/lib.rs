//! bundlegate: an OPA bundle service in front of any OCI registry, which serves only
//! what a cosign signature vouches for.
//!
//! OPA pulls policy from a *bundle service*: plain HTTP with entity tags and long polling.
//! Teams keep versioned artifacts in OCI registries and sign them with cosign. This is the
//! gateway between the two. In one sentence: **watchers turn a moving reference into an
//! immutable, verified snapshot; the server only ever looks at snapshots.**
//!
//! # Rooms
//!
//! | module | owns | may use |
//! |---|---|---|
//! | [`cli`] | the verbs, all terminal output | everything |
//! | [`gateway`] | watchers, trust roots and server, made from a configuration and changed with it | everything but `cli` |
//! | [`config`] | from YAML to checked values; builds the option types of the rooms below | their option types |
//! | [`oci`] | the specification's nouns; the image layout on disk; reading files that somebody names | – |
//! | [`bundle`] | OPA bundle bytes: opening within limits, packing reproducibly, the artifact around them; evaluating them for a look | `oci` |
//! | [`opa_check`] | running the real `opa` on a bundle, within limits | `bundle`, `oci` |
//! | [`images`] | the author's image store on this machine | `bundle`, `oci` |
//! | [`registry`] | the only code that talks to a registry, be it a server or a layout folder | `oci` |
//! | [`verify`] | trust policy, evidence, verdicts: the only maker of [`verify::Verified`] | `oci`, `registry` |
//! | [`sign`] | cosign's key files and signatures in both its formats, made and attached; decides nothing | `oci`, `registry` |
//! | [`store`] | content-addressed blobs, memory over disk | `oci`, `registry` |
//! | [`transfer`] | copies an artifact with what vouches for it, between any two places | `oci`, `registry` |
//! | [`watch`] | one task per bundle: what to fetch, publish, withdraw, and when | all of the above but `cli`, `config`, `images`, `sign`, `transfer` |
//! | [`catalog`] | which name means which bundle, while bundles come and go | `oci`, `watch` |
//! | [`server`] | the bundle API, the admin API, listeners, drain | `catalog` and what a snapshot holds; never `registry`, `verify`, `store` |
//! | [`metrics`], [`telemetry`] | Prometheus and logs | – ; every room may use `metrics` |
//!
//! A test reads the sources and holds the last column.
//!
//! # What an answer can't do
//!
//! Anybody who may push can attach referrers, and write into the image of signatures. Evidence is
//! therefore bounded in bytes (`limits.evidence`) and not in number: likely candidates first, then
//! small ones, and a piece that is missing, malformed, too large or contradicts itself is noted
//! beside the others ([`verify::collect()`]). Only what a matching digest proves is final for a
//! version; every other answer is asked for again. A registry's wish for patience is cut to a
//! quarter of an hour, and to what `max_stale` leaves. No answer leads to a link-local address or
//! a cloud's metadata service, whatever name it gives it. Text from outside is cut
//! ([`telemetry::cut`]) where it becomes a label, a header, a log field or a status value.
//!
//! # Types that rule out mistakes
//!
//! - [`oci::Reference`] may mean another digest tomorrow; resolving it once gives an
//!   [`oci::PinnedReference`], and only that can be verified or fetched.
//! - [`oci::Manifest`] keeps its raw bytes, and its digest is computed from them.
//! - [`verify::Verified`] has no constructor but the judge. What is unverified can't be
//!   published, because the code that would do it does not compile.
//! - [`oci::Blob`] is bytes whose digest and size equal a descriptor, in memory or in a file
//!   without a name; [`bundle::Bundle`] is a blob that opens as a bundle within limits.
//! - [`watch::Snapshot`] joins a verified manifest and a bundle that is one of its layers,
//!   with response headers made up beforehand. It is all that the server ever sees.
//!
//! # Life of a bundle
//!
//! A refresh is straight-line code ([`watch::Pipeline`]); each step consumes what the one
//! before it made:
//!
//! ```text
//! resolve (HEAD) → the digest being served? done
//!   → manifest → evidence → judge → blob → open → snapshot → `opa`, where configured → publish
//! ```
//!
//! Verification comes before the download: a refused artifact costs a manifest, not its
//! layers. Clients see [`watch::State`], `Pending | Serving | Withdrawn`, which is changed by
//! one pure function, [`watch::next`]. What is being served survives every trouble of the
//! registry and every bad push; it is withdrawn only when it lost its trust, when its tag is
//! gone and the configuration says so, or when it became too stale.
//!
//! A request subscribes to that state, marks it as seen, compares, and waits: no change falls
//! between looking and waiting. A client that runs something else than we serve, on whichever
//! side of a push or rollback, is answered after a look at the registry that is no older than
//! `confirm_within` ([`watch::Handle::confirm`]). That is why replicas which poll at different
//! moments need not know of each other.
//!
//! A bundle is opened as OPA 1.22 loads it ([`bundle::Bundle::open`]), by a reader of JSON and a
//! parser of YAML that take and refuse what Go's do: otherwise the gateway would serve what no
//! OPA can load, or withhold what every OPA can.
//!
//! The entity tag is a hash of the served bytes alone: signing or tagging the same bytes
//! again wakes nobody, and replicas agree.
//!
//! Where `opa_check` is configured, the real `opa` loads each new version once before it is
//! published ([`opa_check`]). What it refuses is a defect of the bytes, as far as this program
//! and these options go: another program is asked again. That it gives no answer says nothing
//! about the bytes, so the version waits, and what is served stays. Results lie in the cache
//! folder, by bundle, program and options, so that a restart repeats no check; what any `opa`
//! accepted before is served again after a restart, whatever the `opa` of that day says.
//!
//! # Trust
//!
//! A policy ([`verify::TrustPolicy`]) is a checked value: one that nothing could meet, or
//! anything, can't be made. Its revision is a hash of all that it decides by, trust roots
//! included. Signatures are gathered without being judged ([`verify::collect`]) and judged
//! without asking anybody ([`verify::Verified::explain`]), so that the same evidence can be
//! judged again: after a restart, by another policy, when a verdict is over.
//!
//! ```text
//! candidate, taken apart within bounds (bundle v0.3 or simple signing)
//!   → each authority of the policy: is it yours? (key | keyless | private CA; log; timestamp; identity)
//!   → only then what it says: statement, digest, referrer, repository, annotations, age
//!   → votes, one for each authority and each key → attestations → Verified, until when
//! ```
//!
//! Certificates, transparency logs and timestamps are judged by sigstore-verify alone, and by
//! the same calls for the gateway, for `verify` and for sigstore-conformance
//! ([`verify::conformance`]). It does not look at the validity of trusted certificates
//! themselves, so a root is narrowed when it is read: no certificate vouches beyond its own
//! time, or that of those above it.
//!
//! # Trust that changes
//!
//! Whom to trust is part of the configuration that changes while it is served:
//! on SIGHUP, when a file that it names becomes another one, or when a trust root was
//! refreshed, everything is read anew, and applied as a whole or refused as a whole
//! (`gateway::reload`). Each watcher gets its policy through [`watch::Handle::trust`], and judges
//! what it serves again from the evidence in hand, before anybody is asked; so it does when the
//! verdict is over that it serves by ([`verify::Verified::valid_until`]). What is refused then
//! is withdrawn at once, and evidence is collected afresh: it may have been signed again.
//!
//! A verdict that was reached before a change can't be published after it: publishing compares
//! the revision of the policy while holding what a change of the policy waits for. Nor does the
//! server hand out anything by a verdict that is over, however late its watcher comes to that.
//! Verdicts are reached off the async threads, by a few threads for all watchers, so that five
//! hundred of them at once delay no answer ([`watch::Court`]).
//!
//! # Bundles that change
//!
//! Bundles are added, removed and changed by the same reload (`gateway::plan`, `gateway::bundles`).
//! Requests that are held for other bundles don't notice. A removed bundle is an unknown one at
//! once, for held requests too; its history and what it served stay on disk, and it resumes from
//! them when it is added again. A bundle whose reference or options change gets a second watcher.
//! What is served stays until the second watcher serves its first version, and then the second one
//! takes its place ([`catalog::Entry`]); until then `/status` shows the new reference and its last
//! failure, beside what is served from the earlier one. What is served under an earlier reference
//! keeps the policy of that time, or the present one of its name, but without the keys and digests
//! that the same edit revokes and the trust roots that it removes, whatever else it renames
//! ([`verify::TrustPolicy::restricted`]): revoked, it is withdrawn at once.
//!
//! # Memory and disk
//!
//! The cache folder is an OCI image layout with a lock. Blobs are hashed whenever they are
//! read; the index is replaced in one step after the blobs it names. With each served bundle
//! it keeps manifest and evidence, never a verdict: after a restart everything is judged
//! again by the policy of that day, and shown only once the registry had its say or did not
//! answer in time. Where `max_stale` is set it notes when the registry last confirmed a bundle,
//! so that a restart does not begin that time anew. What is published is on disk first, where
//! the disk is in order, so that it outlives a crash; a disk that hangs delays it by two
//! seconds. The index is held in memory, and one write of it serves all who wait, so that a
//! change costs the same among five bundles and five thousand. A folder that can't be used
//! costs persistence, not service.
//!
//! Before an artifact is verified or opened, that is noted in a file of the folder. What the
//! process died of twice in the same step is set aside by its digest (a defect), until the
//! limits or the version change: nothing that was accepted once makes every start fail.
//!
//! Beside it lies, a few KiB for each bundle, what was served before: the floor that
//! [`watch::Expect`] has reached and the last digests. It outlives the bundle and its
//! withdrawal, so that neither a restart nor a tag that is deleted first brings an old version
//! back. On a machine without a cache only a configured `minimum` does that.
//!
//! What a blob weighs in memory counts for as long as anything refers to it; beyond
//! `cache.memory` bodies lie in files without a name. A blob is handed out only for the
//! repository and credential that delivered it.
//!
//! # Budgets
//!
//! Whatever comes from outside has a limit, and what exceeds it is refused by name. Nothing is
//! held in memory beyond these sizes, apart from what `cache.memory` counts.
//!
//! | what is parsed | limit | set by |
//! |---|---|---|
//! | tarball of a bundle; what it unpacks to; files in it | 64 MiB; 512 MiB; 20 000 | `limits.bundle`, `.unpacked`, `.files` |
//! | `.manifest` in a bundle, of which metadata is not kept | 1 MiB | `limits.bundle_manifest` |
//! | `.signatures.json` in a bundle; a file's name | 16 MiB; 4 096 bytes | – |
//! | JSON data | read a token at a time, 10 000 levels deep | – |
//! | keys that are compared, of data files that overlap or lie outside of the roots | 1 048 576 | – |
//! | YAML data; its nodes; its JSON | 16 MiB; 4 194 304; 16 MiB and 8 times the text | – |
//! | manifest or index of a registry | 4 MiB | `limits.manifest` |
//! | signature material of one artifact | 16 MiB | `limits.evidence` |
//! | page of tags; pages | 16 MiB; 1 000 | – |
//! | `index.json` of a layout; of the cache | 16 MiB, and 256 MiB where it is served from or kept | – |
//! | history of a bundle in the cache | 64 KiB | – |
//! | configuration, and each file that it names | 1 MiB | – |
//! | token of a registry; what an error of its says | 1 MiB; 16 KiB | – |
//! | TUF metadata of a root | 16 MiB | – |
//! | what `opa` prints; its memory | 1 MiB; 2 GiB | – |
//! | headers of a request over HTTP/1; over HTTP/2 | 64 KiB; 16 KiB | – |
//! | text that becomes a label or status value; a header; a sentence | 256 bytes; 1 024; 4 096 | – |
//!
//! # Trust roots
//!
//! A root that a TUF repository delivers is fetched in the background; the last good one stays
//! through every failure, in memory and, with all metadata that proves it, in one file of the
//! cache folder (`tuf/NAME.json`), which is verified again whenever it is read. When the
//! metadata expires, the root accepts nothing new; what it has accepted stays, across restarts
//! too. A refresh that finds the same root prolongs it in place; another root is another
//! policy, and goes the way of every change of the configuration.
//!
//! # What withdrawing does not do
//!
//! It stops distribution, not enforcement: OPA keeps its last policy on every error. Only an
//! OPA that restarts comes up without one. `/status` tells how many clients still run what was
//! withdrawn; `on_withdraw` names a bundle that is served in its place, which is the only way
//! to take a policy out of a running fleet. Clients that run nothing, or the fallback, get it
//! whenever the bundle is withdrawn. Clients that run something else get it where this replica has
//! served the bundle itself and then withdrawn it. A replica without such a history, with an empty
//! cache say, gives it only to clients whose first tag is that of a version which is revoked
//! ([`watch::Withdrawal::lost`]): the others may run a good version that other replicas serve, and
//! neither a push before its signature nor a tag that somebody moves to an old revoked artifact
//! takes that away.

pub mod bundle;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod gateway;
pub mod images;
pub mod metrics;
pub mod oci;
pub mod opa_check;
pub mod registry;
pub mod server;
pub mod sign;
pub mod store;
pub mod telemetry;
pub mod transfer;
pub mod verify;
pub mod watch;
