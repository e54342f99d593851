//! bundlegate: an OPA bundle service in front of any OCI registry that serves only bundles whose
//! cosign signatures satisfy a trust policy.
//!
//! OPA pulls policy from a *bundle service*: plain HTTP with entity tags and long polling. Teams
//! keep versioned artifacts in OCI registries and sign them with cosign. bundlegate is the gateway
//! between the two. In one sentence: **watchers turn a moving reference into an immutable, verified
//! snapshot; the server only ever looks at snapshots.**
//!
//! # Modules
//!
//! | module | owns | may use |
//! |---|---|---|
//! | [`cli`] | the subcommands, all terminal output | everything |
//! | [`gateway`] | composition: watchers, trust roots and server, made from a configuration and changed with it | everything but `cli` |
//! | [`config`] | parsing YAML to checked values, and the JSON Schema of it; builds the option types of the modules below | their option types |
//! | [`oci`] | the types of the OCI specifications; the image layout on disk; reading named files | – |
//! | [`bundle`] | OPA bundle bytes: opening within limits, reproducible packing, the artifact around them; a built-in evaluator | `oci` |
//! | [`opa_check`] | running `opa` on a bundle, within limits | `bundle`, `oci` |
//! | [`images`] | the author's image store on this machine | `bundle`, `oci` |
//! | [`registry`] | the only code that accesses a registry, which may be a server or a layout folder | `oci` |
//! | [`verify`] | trust policy, evidence, verdicts: the only constructor of [`verify::Verified`] | `oci`, `registry` |
//! | [`sign`] | cosign's key files, and signatures in both formats; makes no trust decision | `oci`, `registry` |
//! | [`store`] | content-addressed blobs in memory and on disk; the on-disk format of the cache folder | `oci`, `registry` |
//! | [`transfer`] | copies an artifact with its signatures between any two repositories | `oci`, `registry` |
//! | [`publish`] | the published state of a bundle: snapshots, the state machine, the view that a request subscribes to, the typed status; no I/O, no task | `bundle`, `oci`, `verify` (its `Verified`) |
//! | [`watch`] | one task per bundle: refresh, re-verification, persistence, schedule, expectations | `publish` and all of the above except `cli`, `config`, `gateway`, `images`, `sign`, `transfer` |
//! | [`catalog`] | maps names to bundles while bundles come and go; the patterns of bundles on demand | `oci`, `publish`, `rollout` |
//! | [`webhooks`] | notifications of registries: parsing, and authenticating their senders; no I/O | `oci` |
//! | [`access`] | how clients prove who they are: password files, certificates, tokens; fetches the keys of issuers | `verify` (its `Pattern`) |
//! | [`fleet`] | which client runs which version: the table of clients, their states, OPA's status reports; no I/O | `publish` (its `TagHash`) |
//! | [`rollout`] | which of two versions a client gets: plans, steps, criteria; no I/O | `fleet`, `oci`, `publish` |
//! | [`promql`] | instant queries of Prometheus' HTTP API | `oci` (to read files), `rollout` (its `Sample`) |
//! | [`server`] | the bundle API, the admin API, listeners, drain | `access`, `catalog`, `fleet`, `publish`, `oci`, `rollout`, `webhooks`; never `registry`, `verify`, `store`, `watch` |
//! | [`shared`] | the state that replicas share, in Valkey or Redis; the only code that names `redis` | `oci` (to read files) |
//! | [`service_manager`] | messages to systemd: ready, reloading, stopping, status, watchdog | – |
//! | [`metrics`], [`telemetry`], [`traces`] | the registry of Prometheus metrics, which each module declares itself; logs; spans and their export | – ; every module may use them |
//!
//! A test reads the sources and checks the last column.
//!
//! # Untrusted input
//!
//! Anyone who may push can attach referrers and extend the signature image. Evidence is therefore
//! bounded in bytes (`limits.evidence`), not in number: likely signatures are read first, then
//! small ones, and a piece that is missing, malformed, too large or contradictory is reported next
//! to the others ([`verify::collect()`]). Only content with a matching digest can be a final defect
//! of a version; every other answer is retried. A registry's `Retry-After` is honoured for at most
//! 15 minutes, or half of the time until `max_stale`. No registry answer can lead to a link-local
//! address or a cloud metadata service, under any name; through a proxy, which resolves names
//! itself, under none that is known here. Foreign text is truncated ([`telemetry::cut`]) where it
//! becomes a label, a header, a log field or a status value. The page of the admin listener is written
//! by a type that can write such a text only escaped (`server::page`).
//!
//! # Mirrors
//!
//! A registry may have mirrors, which are read before it. One rule holds for every read: a mirror
//! that lacks the content, fails or sends something else leads to the next host, and only the
//! registry itself, the origin, can say that something is missing (`registry::hosts`). The rest
//! follows from what is verified anyway: content has the requested digest or is fetched again
//! elsewhere, so a mirror can withhold and delay but not forge. What it names for a tag counts once
//! it has delivered that manifest. Lists of signatures have no digest, so those of a mirror suffice
//! to accept an artifact, and before a refusal counts the lists of every host are read; while the
//! origin fails, its failure is the reason. Writes, and reads that a write depends on, use the
//! origin alone; the source of a `copy` is resolved there while it answers. A host that does not
//! answer is skipped for some seconds, unless no other answers.
//!
//! # Types that rule out errors
//!
//! - An [`oci::Reference`] may resolve to another digest tomorrow; resolving it once gives an
//!   [`oci::PinnedReference`], and only that can be verified or fetched.
//! - An [`oci::Manifest`] keeps its raw bytes, and its digest is computed from them.
//! - A [`verify::Verified`] is constructed only by verification. Unverified content can't be
//!   published, because the code to do so does not compile.
//! - An [`oci::Blob`] is bytes whose digest and size equal a descriptor, in memory or in an
//!   unlinked file; a [`bundle::Bundle`] is a blob that opens as a bundle within limits.
//! - A bundle that was made from layers carries a [`bundle::Provenance`], which only
//!   [`bundle::LayerPlan::assemble`] makes, after comparing each layer with its descriptor.
//! - A [`publish::Snapshot`] joins a verified manifest and the [`publish::Content`] that is one of
//!   its layers or was made from them, with prebuilt response headers. The server sees nothing else.
//!
//! # Life of a bundle
//!
//! A refresh is straight-line code ([`watch::Pipeline`]); each step consumes the result of the one
//! before it:
//!
//! ```text
//! resolve (HEAD) → the digest being served? done
//!   → manifest, by way of image indexes → evidence → verify → layers → assemble → open
//!   → snapshot → `opa`, if configured → publish
//! ```
//!
//! A reference may have a rule (`semver`, `filter_tags`) instead of a tag ([`oci::TagRule`]). Then
//! each check begins with the list of tags, which the bundles of a repository share
//! ([`registry::Source::tags`]). The chosen tag is treated as a moved tag is: a refusal of its
//! artifact leaves the served version in place and leads to no lower tag. A lower tag is chosen only
//! if the one before, and the one that is served, are gone from the registry, and not merely from
//! the list. The history on disk has the served tag, for the time after a restart.
//!
//! Verification precedes the download: a rejected artifact costs a manifest, not its layers.
//! Clients see a [`publish::State`], `Pending | Serving | Withdrawn`, which is changed by one pure
//! function, [`publish::StateMachine::apply`]. A served bundle survives all registry failures and
//! every bad push; it is withdrawn only if it is no longer trusted, if its tag was deleted and
//! `on_missing` is `withdraw`, or if it is too stale.
//!
//! A suspended bundle (`suspend`) is not checked. It is still verified again when its policy
//! changes, and a client that runs another version waits for its deadline, as with a registry that
//! does not answer: otherwise two suspended replicas with two versions would send such a client
//! back and forth without a pause.
//!
//! A request subscribes to that state, marks it as seen, compares, and waits, so no change is
//! missed between comparing and waiting. A client that runs another version than the served one, on
//! either side of a push or rollback, is answered after a registry check that is no older than
//! `confirm_within` ([`publish::Handle::confirm`]). This is why replicas that poll at different
//! moments need no coordination.
//!
//! A bundle is opened as OPA 1.22 loads it ([`bundle::Bundle::open`]), with a JSON reader and a
//! YAML parser that accept and reject the same input as Go's: otherwise the gateway would serve
//! bundles that no OPA can load, or withhold bundles that every OPA can load.
//!
//! The entity tag is a hash of the served bytes alone: signing or tagging the same bytes again
//! wakes no client, and all replicas have the same tag. A bundle that was made from layers has a
//! hash of the layers and of the transform, with its version and parameters, because compressors
//! differ ([`publish::Content`]).
//!
//! With `resign` and `opa_signature` the plan for the layers ([`bundle::LayerPlan`]) has a verifier and a
//! signer of OPA's own signatures as well, so that whatever makes a bundle of layers, also from disk,
//! verifies it as it is in the registry and signs it anew. Signing is one more transform: the entity tag
//! has the algorithm, the name, the scope and the public part of the key in place of the signature,
//! which differs each time.
//!
//! A reference that names an image index leads to one image ([`oci::choose_manifest`]). The digest
//! of the index is the version: it is compared and shown. The history has the digest of the image,
//! since anyone can put a new index in front of an old image. A signature of the index covers the
//! image, since each index has the digests of the manifests that it lists; where it does not satisfy
//! the policy, the evidence of the next manifest of the [`oci::ManifestPath`] is collected as well
//! ([`verify::VerdictCache::verify_path`]).
//!
//! With `opa_check`, `opa` loads each new version once before it is published ([`opa_check`]). A
//! rejection is a defect of the bytes for this program and these options; another program checks
//! them again. A failure to run is not a verdict about the bytes: the new version waits, and the
//! served one stays. Results are stored in the cache folder, by bundle, program and options, so
//! that a restart repeats no check; a version that any `opa` has accepted is served again after a
//! restart, regardless of the current `opa`.
//!
//! # Trust
//!
//! A policy ([`verify::TrustPolicy`]) is a checked value: a policy that nothing or everything
//! satisfies can't be constructed. Its revision is a hash of all its inputs, including trust roots.
//! Signatures are collected without being verified ([`verify::collect`]) and verified without
//! network access ([`verify::Verified::verify_with_report`]), so the same evidence can be verified
//! again: after a restart, under another policy, when a verdict expires.
//!
//! ```text
//! candidate, parsed within bounds (bundle v0.3 or simple signing)
//!   → each authority of the policy: does it match? (key | keyless | private CA; log; timestamp; identity)
//!   → only then the content: statement, digest, referrer, repository, annotations, age
//!   → votes, one per authority and per key → attestations → Verified, with its expiry
//! ```
//!
//! Certificates, transparency logs and timestamps are verified by sigstore-verify alone, through
//! the same calls for the gateway, for `verify` and for sigstore-conformance
//! ([`verify::conformance`]). It does not check the validity of trusted certificates themselves, so
//! the validity of a root is limited when it is read: no certificate is accepted beyond its own
//! validity, or that of its issuers.
//!
//! # Live trust
//!
//! The trust policies change while serving: on SIGHUP, when a file that they name changes, or when
//! a trust root was refreshed, the whole configuration is read again, and applied as a whole or
//! rejected as a whole (`gateway::reload`). Each watcher gets its policy through
//! [`publish::Handle::set_policy`], and verifies what it serves again from the stored evidence,
//! before any network access; it does the same when the verdict that it serves by expires
//! ([`verify::Verified::valid_until`]). A bundle that is rejected then is withdrawn at once, and
//! its evidence is collected again: it may have been signed again.
//!
//! A verdict that was reached before a change can't be published after it: publishing compares the
//! revision of the policy while holding the lock that a change of the policy takes. The server does
//! not serve by an expired verdict either, even if its watcher is late. Verification runs on a few
//! threads of its own for all watchers, so that five hundred verifications at once delay no answer
//! ([`watch::VerificationPool`]).
//!
//! # Bundles that change
//!
//! The same reload adds, removes and changes bundles (`gateway::plan`, `gateway::bundles`) without
//! waking the requests that are held for other bundles. A removed bundle is unknown at once, also
//! to held requests; its history and its last version stay on disk, and it resumes from them when
//! it is added again. A bundle whose reference or options change gets a second watcher. The served
//! version stays until the second watcher serves its first version and takes the place of the first
//! ([`catalog::Entry`]); until then `/status` shows the new reference and its last failure beside
//! the served version. A version under an earlier reference keeps the policy of that time, or the
//! present policy of its name, without the keys and digests that the same edit revokes and the
//! trust roots that it removes ([`verify::TrustPolicy::restricted`]): if it is revoked, it is
//! withdrawn at once.
//!
//! Everything else that is live is a value that its readers fetch for each use: clients, TLS and
//! limits of the server ([`server::LiveSettings`]), registries ([`registry::LiveSource`]), sizes of
//! the store. What has begun ends by the value that it began with. Only addresses and the place of
//! the cache need a restart.
//!
//! # Bundles on demand
//!
//! A [`catalog::Pattern`] stands for all names that match it. When a client that may read such a name
//! asks for it, the server sends a [`catalog::Demand`], and `gateway::on_demand` makes a watcher and
//! an entry of the catalog. Access is checked before the pattern: to a client without access, a name
//! that matches looks like any other, and it can cause no request to a registry. The watcher is the
//! cache of failures: requests never make it check more often than its schedule says. It ends when
//! no request has used the entry for `idle`.
//!
//! # Clients
//!
//! One function decides what a client may read (`server::clients`), for each request and again when
//! a held one is answered. What a request keeps of its credential is never a secret: the hash of a
//! token, the user whose password was right for a certain hash, a JSON Web Token whose signature is
//! valid, the identity in a certificate. These are facts that do not change; whether they suffice is
//! compared each time with the clients, the keys of issuers and the clock. So nothing that is
//! remembered has to be invalidated when a file changes, and a removed user or an expired token is
//! refused without asking the client again.
//!
//! Checks that take time come before the bundle is looked up, and hold no thread that serves
//! clients: bcrypt (`server::password_checks`), and the keys of an issuer, which may have published
//! a new one a moment ago ([`access::RemoteKeys`]).
//!
//! # Fleet view
//!
//! A client names the version that it runs in the first tag of `If-None-Match`, and that is what the
//! fleet view records ([`fleet`]), with the versions that were sent to it completely. A client that goes
//! on with another version although it has downloaded the served one twice can't activate it; OPA's
//! status reports add the reason. A report is a hint, which changes nothing of what a client gets, and a
//! report without an error proves nothing: OPA forgets an error after any 304.
//!
//! A client is recognised by its credential and, of these, the first that it has: the name in the
//! identity header, the address. Its key is a hash of them, so that a request and a report of one client
//! have the same key on every replica. A connection remembers its last client, so that a repeated request costs a
//! comparison and two locks that no other connection uses.
//!
//! Each replica has the whole table in memory. With a shared state ([`shared`]) it writes what changes
//! to a log that the others follow, and to records that a new replica reads (`gateway::fleet_sync`).
//! Each change has a stamp that increases with every change of the same client, so that replicas agree
//! on the last one whatever their clocks say. The engine may lose everything: the replicas notice, and
//! write what they know again. No request waits for any of this.
//!
//! # Staged roll-outs
//!
//! With `rollout`, a new version reaches the clients of a bundle in steps ([`rollout`]). All replicas follow
//! one [`rollout::Plan`], which names two versions, *stable* and *candidate*, and says which clients get the
//! candidate. It is stored in the shared state, or by the only replica itself, and changes by
//! [`rollout::next`] and compare-and-swap, so that two replicas never continue from one plan in two ways.
//!
//! The watcher of the reference finds new versions and proposes them. What clients get comes from watchers
//! of digests (`gateway::staging`), which verify as every watcher does: a plan has digests and tags, never
//! bytes. A program that can write to the shared state can choose among the versions that the trust policy and
//! `expect` accept, and nothing else. `expect` compares with the last stable version, not with the candidate, so
//! that a roll-out can be taken back.
//!
//! One task (`gateway::rollouts`) reads the plans twice a second, and at once when a request needs it. It puts a
//! plan in force by another [`catalog::Entry`], so a request never sees a plan beside the versions of another one.
//! It counts the clients of the [`fleet`] view. The replica that holds a lease also observes the steps and evaluates
//! the checks ([`promql`]); each replica halts by itself when it counts too many failures, and the shared
//! state learns of it when it can.
//!
//! Five rules decide about a request ([`rollout::ActivePlan::decide`]): a version that is no longer trusted is not
//! offered, which needs neither plan nor shared state; a client that runs another version is moved only by a plan
//! that was read after its request; while the shared state does not answer, no client is moved between stable and
//! candidate; offers of a candidate and moves of one client are limited ([`fleet::Moves`]); a halt is local first.
//! A client that is not moved gets 304 with its own tag. No request waits for the shared state beyond its own
//! deadline, and none fails because of it.
//!
//! # Delta bundles
//!
//! OPA takes a patch of its data instead of a whole bundle. [`bundle::Difference::between`] computes one between two
//! bundles and proves it: the bytes of the patch are read again, applied to the earlier bundle by code that shares
//! nothing with what computed them, and must give the data of the later one. A [`publish::Delta`] is made only of two
//! snapshots, so both its ends were verified, and belongs to the later one: a request that is answered with a snapshot
//! gets the delta from its first tag, if that is known ([`publish::Snapshot::from_base`]). Policies never change by a
//! delta. The watcher compares a version with the one before it while it is published, and with an older one once a
//! client that runs it asks ([`publish::Snapshot::next_request`], `watch::deltas`); the limits are in `bundle::delta`.
//! `server::delta_guard` decides which clients get deltas, since OPA asks for them even where it refuses them.
//!
//! # Push
//!
//! A check can come before the next poll: when an operator asks for it (`POST /refresh/NAME`),
//! when a registry sends a notification ([`webhooks`]), or when an OCI layout folder changes
//! (inotify, [`registry::Source::watch`]). Every check is an ordinary refresh; a notification says
//! which bundles to check and nothing else. Push notifications are matched by host, repository
//! and tag ([`webhooks::Push`]); a signature or referrer wakes the bundles that lack evidence for
//! its artifact, or in its repository ([`publish::Hint::Evidence`]). One watcher follows push
//! hints at most once a second, and repeats a check that found nothing new once, because some
//! registries notify before they have written the tag. A `Retry-After` outlasts all of these
//! requests.
//!
//! # Operators
//!
//! The admin API shows everything to everyone who reaches it, and changes something only for a
//! program on this machine or with a token (`server::admin_access`): a request that a web page can
//! send is refused, with a token or without. `POST /reload` is answered with the outcome of a reload
//! that began after the request; any number of requests share one.
//!
//! A replica is ready once each bundle of the start's configuration is served, or was refused for
//! a reason that time does not mend, and after `server.ready_after` in any case. Nothing but the
//! drain makes it unready again: neither a bundle that is withdrawn nor one that a reload adds.
//!
//! # Memory and disk
//!
//! The cache folder is an OCI image layout with a lock. Blobs are hashed whenever they are read;
//! the index is replaced atomically after the blobs that it names. With each served bundle it
//! stores manifests, layers and evidence, never a verdict nor a bundle that was made from layers:
//! after a restart everything is verified again under the current policy, and published only after
//! the first registry check or its timeout. With `max_stale` it records when the registry last
//! confirmed a bundle, so that a restart does not start that time again. A published version is on disk first, if the disk works, so that it
//! survives a crash; a hanging disk delays publication by two seconds. The index is kept in memory,
//! and one write serves all pending changes, so that a change costs the same with five bundles and
//! with five thousand. An unusable folder costs persistence, not service.
//!
//! Before an artifact is verified or opened, a file in the folder records it. A digest on which the
//! process has died twice in the same step is set aside (a defect) until limits or version change:
//! no accepted artifact can make every start fail.
//!
//! A few KiB per bundle record its history: the floor that [`watch::Expect`] has reached and the
//! last digests. The history outlives the bundle and its withdrawal, so that neither a restart nor
//! deleting a tag first brings an old version back. On a machine without a cache only a configured
//! `minimum` does that.
//!
//! A blob counts against `cache.memory` for as long as anything refers to it; beyond `cache.memory`
//! bodies are in unlinked files. A blob is only returned for the repository and credential that
//! delivered it.
//!
//! # Serving
//!
//! [`server`] decides about a request from borrowed headers: at once, or later in a boxed future.
//! The decision does not depend on the protocol. Over HTTP/1.1 the requests that OPA sends take a
//! fast path, which reads and writes through buffers of the thread and keeps nothing for a client
//! that waits; the first other request hands the connection to hyper for good. A test and a fuzz
//! target compare the responses of both. Over HTTP/2 the requests that have arrived are answered
//! together. The deadlines of all connections are enforced by one task.
//!
//! # Threads
//!
//! `serve` and `dev` have two runtimes. One has the listeners, the connections and the reads of
//! bodies. The other one has everything else: watchers, registry clients, verification, the store,
//! reloads, and the rendering of `/metrics` and `/status`. Its threads, and the processes that they
//! start, have a lower scheduling priority (nice), so that work in the background does not delay
//! responses however much of it there is. They meet in published states, which either side reads
//! without waiting for the other. Other subcommands, tests and embedders have one runtime.
//!
//! # Observability
//!
//! Each module declares its metrics itself ([`metrics`]). Durations are histograms whose series are
//! bound at their first use, so that a request looks nothing up; that of a request on the fast path is
//! the difference of two times that the deadlines of its connection need anyway. Log lines go to a
//! queue, and a thread writes them. The record of a request for the access log goes with it and
//! writes the line when it is dropped, whichever way the request ends; without an access log there is
//! none (`server::access_log`).
//!
//! # Traces
//!
//! With `tracing`, requests and checks are recorded as spans and exported over OTLP ([`traces`]). A
//! request that asks for a check leaves its position in its trace with the request to the watcher
//! ([`publish::Handle`]), and the check continues that trace. Within a trace the current span is
//! carried by the futures, so no function has a parameter for it. While traces are off, a request
//! costs one load of a flag.
//!
//! # Service manager
//!
//! systemd is told that the start has completed once both listeners are bound: requests are held from
//! then on, and a manager that waited for the bundles would end a replica whose registry is down.
//! Whether the replica should get clients is what `/readyz` says ([`server::Readiness`]). A sign of
//! life for the watchdog is sent by the task that owns the bundles, after the task that accepts
//! connections has run on the other runtime ([`server::Liveness`]): it says that both runtimes run,
//! needs no connection that clients could use up, and says nothing about registries.
//!
//! # Limits
//!
//! All external input has a limit, and the rejection of a larger input names the limit. Apart from
//! the blobs that `cache.memory` counts, nothing in memory exceeds these sizes.
//!
//! | input | limit | set by |
//! |---|---|---|
//! | tarball of a bundle; its uncompressed size; its files | 64 MiB; 512 MiB; 20 000 | `limits.bundle`, `.unpacked`, `.files` |
//! | all layers of an artifact together; their uncompressed size; their files, folders and links | as those of a bundle | `limits.bundle`, `.unpacked`, `.files` |
//! | layers of an artifact that make its bundle | 1 024 | – |
//! | copies of large bundles on disk, for `sendfile` | 1 GiB, 256 files | – |
//! | window of a zstd layer | 32 MiB | – |
//! | image indexes on the way to an image | 4 | – |
//! | `.manifest` in a bundle, whose metadata is not kept | 1 MiB | `limits.bundle_manifest` |
//! | `.signatures.json` in a bundle; a file name | 16 MiB; 4 096 bytes | – |
//! | JSON data | read a token at a time, 10 000 levels deep | – |
//! | values of a document that OPA's signature has the hash of, or that are merged for one, in memory | 1 GiB | – |
//! | keys of a bundle for OPA's signatures; name of one | 64; 256 bytes | – |
//! | compared keys of data files that overlap or are outside the roots | 1 048 576 | – |
//! | YAML data; its nodes; its JSON | 16 MiB; 4 194 304; 16 MiB and 8 times the text | – |
//! | earlier versions of a bundle from which there are deltas; their tarballs, and what computing a delta takes | 32; 256 MiB each | `delta.history`; `delta.memory` |
//! | time of computing a delta: before a publication; once a client runs an older version; how long its request waits | 6 seconds; 30 seconds; 2 seconds | – |
//! | operations of a delta; what OPA has to copy for it: objects; items of arrays | 1 000; 64 MiB; 33 554 432 | – |
//! | clients that were sent a delta and are remembered, for a day | 262 144 | – |
//! | manifest or index of a registry | 4 MiB | `limits.manifest` |
//! | signature material of one manifest or index | 16 MiB | `limits.evidence` |
//! | page of tags; pages | 16 MiB; 1 000 | – |
//! | tags of a repository from which a bundle's tag is chosen | 100 000 | – |
//! | version range; its alternatives; compiled `filter_tags.pattern` | 512 bytes; 32; 1 MiB | – |
//! | pages of a list of referrers | 1 000 | – |
//! | mirrors of a registry | 8 | – |
//! | digests of referrers without signatures that are remembered for a bundle | 8 192 | – |
//! | requests to a host at a time | 128 | `registries.HOST.max_concurrent` |
//! | look-ups of names that a proxy resolves, for a host at a time; names that are remembered as slow, for a minute | 8; 1 024 | – |
//! | tags and repositories of a host of which a missing capability is remembered, for an hour | 16 384 | – |
//! | `index.json` of a layout; of the cache | 16 MiB, and 256 MiB when served from or stored | – |
//! | history of a bundle in the cache | 64 KiB | – |
//! | configuration, and each file that it names | 1 MiB | – |
//! | patterns; bundles of a pattern; failures of a pattern that are remembered, for a minute | 256; 1 000; 16 384 | –; `patterns[].max`; – |
//! | demands in the queue of the gateway; further clients wait | 1 024 | – |
//! | token of a registry; its error message | 1 MiB; 16 KiB | – |
//! | docker's configuration; answer of a credential helper | 1 MiB; 1 MiB in 10 seconds | – |
//! | TUF metadata of a root | 16 MiB | – |
//! | batch written to the shared state; message of its log; reply | 4 MiB; 64 KiB; 64 MiB in `shared.timeout` | –; –; – |
//! | entries of the log of the shared state; time for which an unused log stays | about 1 024; 24 hours | – |
//! | query of a check; value of a variable in it; reason of an inconclusive result | 4 KiB; 1 KiB; 1 KiB | – |
//! | steps and checks of a strategy of roll-outs; its size in a plan | 16 each; 32 KiB | – |
//! | answer of Prometheus | 1 MiB in `prometheus.timeout` | –; `prometheus.timeout` |
//! | spans that wait for their export; answer of the collector | 4 096; 64 KiB in 10 seconds | – |
//! | output of `opa`; its memory | 1 MiB; 2 GiB | – |
//! | passwords that are checked at a time; that wait; that wait of one address | 2; 128; 16 | – |
//! | right passwords that are remembered; other results, for a minute | 16 384; 4 096 | – |
//! | JSON Web Token; those that are remembered | 16 KiB; 16 MiB | – |
//! | JSON Web Key Set from a URL; its keys; time for a fetch | 1 MiB; 64; 10 seconds | – |
//! | log lines about refused requests | one a minute for each address and reason, 200 a minute | – |
//! | log lines that wait for stderr; those of the access log | 2 MiB; 1 MiB | – |
//! | headers of a request over HTTP/1; over HTTP/2 | 64 KiB; 16 KiB | – |
//! | notification of a registry; its events | 1 MiB, in 10 seconds; 200 | – |
//! | notifications of one webhook; those that are read at a time | 100 a second, 1 000 at once; 32 | – |
//! | checks of a bundle that notifications cause: of pushes; of evidence | 1 a second; 1 a second | – |
//! | body of a refresh or reload; wait for its result | 4 KiB; 5 minutes | – |
//! | clients of the fleet view, counted once for each of their bundles | 1 000 000 | `fleet.max_entries` |
//! | status report of OPA; reports that are read in a second | 1 MiB; 2 000 | `fleet.status.limit`, `.rate` |
//! | part of a status report that is read; its bundles; labels of an OPA; reports that are read at a time | 128 KiB; 1 000; 32, and 1 KiB; 64 | – |
//! | text in a label or status value; in a header; in a message | 256 bytes; 1 024; 4 096 | – |
//!
//! # Trust roots
//!
//! A root from a TUF repository is fetched in the background; the last good one stays through every
//! failure, in memory and, with all metadata that proves it, in one file of the cache folder
//! (`tuf/NAME.json`), which is verified again whenever it is read. When the metadata expires, the
//! root accepts nothing new; what it has accepted stays, across restarts as well. A refresh that
//! finds the same root extends it in place; another root is another policy, and is applied like
//! every change of the configuration.
//!
//! # Limits of withdrawal
//!
//! Withdrawing stops distribution, not enforcement: OPA keeps its last policy on every error, and
//! only a restarted OPA comes up without one. `/status` reports how many clients still run a
//! withdrawn version; `on_withdraw` names a bundle that is served instead, which is the only way to
//! take a policy out of a running fleet. Clients that run nothing or the fallback get it whenever
//! the bundle is withdrawn. Clients that run something else get it if this replica has served the
//! bundle itself and then withdrawn it. A replica without such a history, with an empty cache for
//! example, gives it only to clients whose first tag is that of a revoked version
//! ([`publish::Withdrawal::version`]): the others may run a valid version that other replicas
//! serve, and neither a push before its signature nor a tag moved to an old revoked artifact takes
//! that away.

pub mod access;
pub mod bundle;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod fleet;
pub mod gateway;
pub mod images;
pub mod metrics;
pub mod oci;
pub mod opa_check;
pub mod promql;
pub mod publish;
pub mod registry;
pub mod rollout;
pub mod server;
pub mod service_manager;
pub mod shared;
pub mod sign;
pub mod store;
pub mod telemetry;
pub mod traces;
pub mod transfer;
pub mod verify;
pub mod watch;
pub mod webhooks;
