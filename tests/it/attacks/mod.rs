//! Every known attack on verifiers of signatures: the input, the verdict and its reason.
//! `tests/mutants` shows that each of these tests can fail.
//!
//! The numbers are those of the specification. A case that other tests hold is not repeated here:
//!
//! | case | tests |
//! |---|---|
//! | 1 | `serving::a_tag_that_moves_while_…` |
//! | 2 | `claims::a_signature_of_another_digest_…`; real cosign: `peers::refusals` |
//! | 3 | `claims::a_signature_of_another_payload_…` |
//! | 4 | `claims::a_digest_copied_to_another_repository_…` |
//! | 5 | `serving::no_byte_is_served_or_kept_…`, `reads::other_bytes_under_a_digest_…`; a real registry: `peers::refusals` |
//! | 6 | as 5, and `reads::a_blob_that_ends_early_…`, `peers::replicas` |
//! | 7 | `certificates::an_identity_is_the_whole_…`, `…::another_issuer_…`, `verify/pattern.rs` |
//! | 8 | `certificates::a_certificate_counts_only_…`, `…::an_expired_intermediate_…` |
//! | 9 | `logs::an_unknown_or_closed_log_…` |
//! | 10 | `logs::a_real_entry_of_another_…` |
//! | 11 | `logs::only_the_log_sets_the_time` |
//! | 12 | `logs::an_inclusion_proof_leads_…`; the conformance suite |
//! | 13 | `logs::the_newer_log_tells_no_time_…`, `…::a_timestamp_alone_…` |
//! | 14 | `logs::one_signature_is_one_vote_…`, `verify/matching.rs` |
//! | 15 | `claims::a_member_that_is_there_twice_…`, `oci/strict_json.rs` |
//! | 16 | `claims::an_attestation_by_the_right_one_…`, `…::a_required_attestation_…` |
//! | 17 | `claims::an_envelope_holds_one_signature_…` |
//! | 18 | `registries::ten_thousand_signatures_…`, `…::pages_of_referrers_…`, `reads::referrers_come_from_…` |
//! | 19 | `registries::what_is_said_to_be_huge_…`, `…::a_trickling_response_…`, `reads::an_endless_manifest_…` |
//! | 20 | `claims::a_compressed_bundle_…`; tarballs: `bundle/open.rs`, `limits_hold_for_…` |
//! | 21 | `bundle/open.rs`: `nothing_lies_outside_…`, `a_size_that_an_extension_…` |
//! | 22 | `logs::a_signature_grows_too_old_…`; orders and floors: `watch/expect/tests.rs` |
//! | 23 | `refresh_failures::max_stale_…` and the two about restarts |
//! | 24 | `serving::what_is_in_the_cache_…`, `keys::a_revoked_key_…`, `verify/verification/tests.rs`: `every_part_of_a_policy_…`; `policy_change`, `reload` |
//! | 25 | `serving::what_one_tenant_has_…`, `server/clients.rs`, `store/tests.rs` |
//! | 26 | `registries::a_header_names_no_digest_…`, `reads::without_a_digest_header_…` |
//! | 27 | `registries::a_manifest_of_two_kinds_…`, `oci/manifest.rs` |
//! | 28 | `claims::a_referrer_of_another_digest_…` |
//! | 29 | `claims::a_list_that_lies_…` (accepted) |
//! | 30 | `claims::what_is_weaker_…` |
//! | 31 | `certificates::a_certificate_that_is_not_for_…`, `…::a_chain_brings_no_trust_…`, `…::a_certificate_for_another_key_…` |
//! | 32 | `certificates::a_key_does_not_pass_…` |
//! | 33 | `keys::a_key_counts_in_its_time_…`, `…::a_hint_chooses_no_key` |
//! | 34 | `certificates::a_certificate_that_no_certificate_log_…` |
//! | 35 | `claims::annotations_count_…` |
//! | 36 | `keys::one_signature_has_two_values_…` |
//! | 37 | `registries::the_target_of_a_redirect_…`, `…::no_answer_leads_to_…`, `reads::a_redirect_…`, `writes::a_location_…` |
//! | 38 | `registries::a_repository_has_a_name_…`, `oci/reference.rs` |
//! | 39 | `roots`, `verify/roots/http_repository.rs` |
//! | 40 | `serving::every_way_to_have_no_answer_…`, `config/tests`; `watch/pool.rs`: `a_verification_that_panics_…`, `a_verification_that_hangs_…` |
//! | 41 | as 5 |

mod certificates;
mod claims;
mod fields;
mod fixture;
mod keys;
mod logs;
mod registries;
mod serving;

pub(crate) use fixture::{Fixture, keyed, keyless, policy, policy_with, public};
