//! What has to change while the gateway runs, so that a wanted configuration is in force.

use std::collections::BTreeMap;

use crate::{
    config::{BundleConfig, ClientConfig, Config, PatternConfig, RolloutChoice, Tls},
    oci::Reference,
    verify::TrustPolicy,
};

/// One change. Changes of a bundle that is added or replaced are part of its configuration.
#[derive(Debug)]
pub(super) enum Change {
    /// A bundle is new.
    Add(BundleConfig),
    /// A bundle has another reference, or another option of its watcher.
    Replace(BundleConfig),
    /// A bundle is gone.
    Remove(String),
    /// A bundle has another policy, or the same one with another content.
    SetPolicy { bundle: String, policy: TrustPolicy },
    /// A bundle is suspended, or resumed.
    SetSuspended { bundle: String, suspended: bool },
    /// A bundle has another fallback, or none.
    SetFallback {
        bundle: String,
        fallback: Option<String>,
    },
    /// A bundle has another strategy of roll-outs, the same one with another content, or none.
    SetRollout {
        bundle: String,
        rollout: RolloutChoice,
    },
    /// There are other patterns, or patterns with other options.
    SetPatterns(Vec<PatternConfig>),
    /// Other clients may read, or other bundles.
    SetClients(Vec<ClientConfig>),
    /// Other notifications are received.
    SetWebhooks,
    /// Other tokens allow to change something by the admin listener.
    SetAdminTokens,
    /// Registries are accessed by other options.
    SetRegistries,
    /// Other sizes are accepted from registries. Every bundle is replaced as well.
    SetLimits,
    /// The cache has other sizes.
    SetCache,
    /// New connections of clients have other TLS, or none.
    SetTls,
    /// The server has other limits and times.
    SetServer,
    /// Traces are exported elsewhere, or by other rules.
    SetTracing,
    /// A key whose change takes effect at the next start.
    NeedsRestart(String),
}

/// The changes that lead from `running` to `wanted`: the bundles in the order of their names,
/// then the patterns, the clients, the webhooks, the registries, the server, the tokens of the admin
/// listener, and the keys that need a restart.
pub(super) fn changes(running: &Config, wanted: &Config) -> Vec<Change> {
    let (before, after) = (by_name(&running.bundles), by_name(&wanted.bundles));
    let mut names: Vec<_> = before
        .keys()
        .chain(after.keys().filter(|name| !before.contains_key(*name)))
        .collect();
    names.sort_unstable();
    let mut changes = Vec::new();
    for name in names {
        match (before.get(name), after.get(name)) {
            (Some(before), Some(after)) => bundle_changes(before, after, &mut changes),
            (None, Some(after)) => changes.push(Change::Add(BundleConfig::clone(after))),
            (Some(_), None) => changes.push(Change::Remove((*name).to_owned())),
            (None, None) => {}
        }
    }
    let has_same_patterns = running.patterns.len() == wanted.patterns.len()
        && running
            .patterns
            .iter()
            .zip(&wanted.patterns)
            .all(|(one, other)| same_pattern(one, other));
    if !has_same_patterns {
        changes.push(Change::SetPatterns(wanted.patterns.clone()));
    }
    let authorities = |config: &Config| config.server.tls.as_ref().and_then(Tls::authorities);
    if running.clients != wanted.clients || authorities(running) != authorities(wanted) {
        changes.push(Change::SetClients(wanted.clients.clone()));
    }
    if running.webhooks != wanted.webhooks {
        changes.push(Change::SetWebhooks);
    }
    if running.registries != wanted.registries {
        changes.push(Change::SetRegistries);
    }
    if running.tracing != wanted.tracing {
        changes.push(Change::SetTracing);
    }
    if running.limits != wanted.limits {
        changes.push(Change::SetLimits);
    }
    if (running.cache.disk, running.cache.memory) != (wanted.cache.disk, wanted.cache.memory) {
        changes.push(Change::SetCache);
    }
    if running.server.tls != wanted.server.tls
        || running.server.admin_tls != wanted.server.admin_tls
    {
        changes.push(Change::SetTls);
    }
    if server_limits(running) != server_limits(wanted) {
        changes.push(Change::SetServer);
    }
    if running.server.admin_tokens != wanted.server.admin_tokens {
        changes.push(Change::SetAdminTokens);
    }
    changes.extend(
        running
            .differences(wanted)
            .into_iter()
            .map(Change::NeedsRestart),
    );
    changes
}

/// What is live of `server` besides TLS, `log` and `long_poll`.
fn server_limits(config: &Config) -> impl PartialEq {
    let server = &config.server;
    (
        server.max_connections,
        server.drain,
        &server.trusted_proxies,
        &server.admin_hosts,
        config.log,
        config.long_poll,
    )
}

fn by_name(bundles: &[BundleConfig]) -> BTreeMap<&str, &BundleConfig> {
    bundles
        .iter()
        .map(|bundle| (bundle.name.as_str(), bundle))
        .collect()
}

fn bundle_changes(before: &BundleConfig, after: &BundleConfig, changes: &mut Vec<Change>) {
    let bundle = || before.name.clone();
    // The policy comes first, so that no watcher of this reference continues under the old one.
    if before.reference == after.reference && !same_policy(&before.trust, &after.trust) {
        changes.push(Change::SetPolicy {
            bundle: bundle(),
            policy: after.trust.clone(),
        });
    }
    if before.suspend != after.suspend {
        changes.push(Change::SetSuspended {
            bundle: bundle(),
            suspended: after.suspend,
        });
    }
    if !same_watcher(before, after) {
        // It brings the fallback and the roll-out as well.
        changes.push(Change::Replace(after.clone()));
        return;
    }
    if before.on_withdraw != after.on_withdraw {
        let fallback = after
            .on_withdraw
            .as_ref()
            .map(|on_withdraw| on_withdraw.fallback.clone());
        changes.push(Change::SetFallback {
            bundle: bundle(),
            fallback,
        });
    }
    if before.rollout != after.rollout {
        changes.push(Change::SetRollout {
            bundle: bundle(),
            rollout: after.rollout.clone(),
        });
    }
}

/// Whether two policies have one name and content.
fn same_policy(one: &TrustPolicy, other: &TrustPolicy) -> bool {
    one.name() == other.name() && one.revision() == other.revision()
}

fn same_pattern(one: &PatternConfig, other: &PatternConfig) -> bool {
    one.pattern == other.pattern
        && one.idle == other.idle
        && one.max == other.max
        && same_policy(one.trust(), other.trust())
        && same_watcher(one.sample(), other.sample())
}

/// Whether one watcher can serve both configurations, apart from the policy.
pub(super) fn same_watcher(one: &BundleConfig, other: &BundleConfig) -> bool {
    one.reference == other.reference
        && one.artifact == other.artifact
        && one.poll == other.poll
        && one.confirm_within == other.confirm_within
        && one.on_missing == other.on_missing
        && one.max_stale == other.max_stale
        && one.expect == other.expect
        && one.opa_check == other.opa_check
        && one.delta == other.delta
        && one.limits == other.limits
}

/// The policy for what is still served from `reference` while the configuration has another
/// reference for the bundle: the wanted policy of the same name as `last`, or else `last` itself.
/// Either way, the keys, digests and roots that `wanted` revokes or removes are taken out of it,
/// under whatever name. No policy of the same name turns a signed bundle into an unsigned one.
pub(super) fn policy_of_earlier_reference(
    last: &TrustPolicy,
    reference: &Reference,
    wanted: &Config,
) -> TrustPolicy {
    let named = wanted
        .trust
        .choose(Some(last.name()), reference.repository())
        .ok();
    let named =
        named.filter(|named| named.requirements().is_some() || last.requirements().is_none());
    named
        .as_ref()
        .unwrap_or(last)
        .restricted(wanted.trust.base())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    /// Edits, each a JSON pointer with a value, and the changes that follow.
    type Row<'a> = (&'a [(&'a str, Value)], &'a [&'a str]);

    /// Two unsigned bundles, one with the other as its fallback.
    fn base() -> Value {
        json!({
            "version": 1,
            "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
            "trust": { "policies": { "dev": "unsigned", "other": "unsigned" } },
            "bundles": {
                "a": { "reference": "r.example/a:v1", "trust": "dev", "on_withdraw": { "fallback": "deny" } },
                "deny": { "reference": "r.example/deny:v1", "trust": "dev" },
            },
        })
    }

    fn config(value: &Value) -> Config {
        Config::parse(&value.to_string(), Path::new("/etc/bundlegate")).unwrap()
    }

    /// The changes that lead from the base to the base with these values at JSON pointers; `null`
    /// removes the key.
    fn changes_by(edits: &[(&str, Value)]) -> Vec<String> {
        let mut edited = base();
        for (pointer, value) in edits {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let parent = edited.pointer_mut(parent).unwrap();
            match value {
                Value::Null => drop(parent.as_object_mut().unwrap().remove(key)),
                value => parent[key] = value.clone(),
            }
        }
        changes(&config(&base()), &config(&edited))
            .iter()
            .map(word)
            .collect()
    }

    fn word(change: &Change) -> String {
        match change {
            Change::Add(bundle) => format!("add {}", bundle.name),
            Change::Replace(bundle) => format!("replace {} {}", bundle.name, bundle.reference),
            Change::Remove(bundle) => format!("remove {bundle}"),
            Change::SetPolicy { bundle, policy } => {
                format!("policy of {bundle}: {}", policy.name())
            }
            Change::SetSuspended { bundle, suspended } => {
                format!("suspended {bundle}: {suspended}")
            }
            Change::SetFallback { bundle, fallback } => {
                format!("fallback of {bundle}: {fallback:?}")
            }
            Change::SetRollout { bundle, rollout } => match rollout {
                RolloutChoice::Absent => format!("no rollout of {bundle}"),
                RolloutChoice::None => format!("rollout of {bundle}: none"),
                RolloutChoice::Strategy(strategy) => {
                    format!("rollout of {bundle}: {}", strategy.name)
                }
            },
            Change::SetPatterns(patterns) => format!("patterns {}", patterns.len()),
            Change::SetWebhooks => "webhooks".to_owned(),
            Change::SetClients(clients) => format!("clients {}", clients.len()),
            Change::SetAdminTokens => "admin tokens".to_owned(),
            Change::SetRegistries => "registries".to_owned(),
            Change::SetLimits => "limits".to_owned(),
            Change::SetCache => "cache".to_owned(),
            Change::SetTracing => "tracing".to_owned(),
            Change::SetTls => "tls".to_owned(),
            Change::SetServer => "server".to_owned(),
            Change::NeedsRestart(key) => format!("restart {key}"),
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a flat table")]
    fn each_edit_has_its_change() {
        let bundle = |reference: &str| json!({ "reference": reference, "trust": "dev" });
        let minimum = json!({ "order": "version", "minimum": "1.0.0" });
        let replaced = "replace deny r.example/deny:v1";
        let table: &[Row<'_>] = &[
            (&[], &[]),
            (&[("/bundles/b", bundle("r.example/b:v1"))], &["add b"]),
            (&[("/bundles/a", Value::Null)], &["remove a"]),
            (
                &[("/bundles/deny/reference", json!("r.example/deny:v2"))],
                &["replace deny r.example/deny:v2"],
            ),
            (&[("/bundles/deny/poll", json!("1s"))], &[replaced]),
            (
                &[("/bundles/deny/confirm_within", json!("1s"))],
                &[replaced],
            ),
            (
                &[("/bundles/deny/on_missing", json!("withdraw"))],
                &[replaced],
            ),
            (&[("/bundles/deny/max_stale", json!("1h"))], &[replaced]),
            (
                &[("/bundles/deny/platform", json!("linux/amd64"))],
                &[replaced],
            ),
            (&[("/bundles/deny/data_root", json!("policy"))], &[replaced]),
            (&[("/bundles/deny/expect", minimum)], &[replaced]),
            (
                &[("/bundles/deny/opa_check", json!({ "opa": "opa" }))],
                &[replaced],
            ),
            (
                &[("/opa_check", json!({ "opa": "opa" }))],
                &["replace a r.example/a:v1", replaced],
            ),
            // A default that is written out is no change.
            (&[("/bundles/deny/poll", json!("30s"))], &[]),
            (
                &[("/bundles/a/on_withdraw", Value::Null)],
                &["fallback of a: None"],
            ),
            (
                &[("/bundles/a/trust", json!("other"))],
                &["policy of a: other"],
            ),
            (
                &[
                    ("/bundles/a/trust", json!("other")),
                    ("/bundles/a/poll", json!("1s")),
                ],
                &["policy of a: other", "replace a r.example/a:v1"],
            ),
            // What is served from the earlier reference keeps a policy of its own.
            (
                &[
                    ("/bundles/a/trust", json!("other")),
                    ("/bundles/a/reference", json!("r.example/a:v2")),
                ],
                &["replace a r.example/a:v2"],
            ),
            (&[("/clients/0/bundles", json!(["a"]))], &["clients 1"]),
            (&[("/clients/0/name", json!("everyone"))], &["clients 1"]),
            (&[("/trust/policies/third", json!("unsigned"))], &[]),
            (
                &[("/server", json!({ "listen": ":8081" }))],
                &["restart server.listen (new)"],
            ),
            (&[("/server", json!({ "max_connections": 9 }))], &["server"]),
            (
                &[("/server", json!({ "drain": { "over": "1s" } }))],
                &["server"],
            ),
            (
                &[("/server", json!({ "trusted_proxies": ["10.0.0.0/8"] }))],
                &["server"],
            ),
            // A default that is written out is no change.
            (&[("/server", json!({ "max_connections": 20_000 }))], &[]),
            (
                &[("/server", json!({ "ready_after": "1s" }))],
                &["restart server.ready_after (new)"],
            ),
            (
                &[(
                    "/cache",
                    json!({ "directory": "elsewhere", "disk": "1GiB" }),
                )],
                &["cache", "restart cache.directory (new)"],
            ),
            (&[("/long_poll", json!({ "max_wait": "1m" }))], &["server"]),
            (&[("/long_poll", json!({ "spread": "1s" }))], &["server"]),
            (&[("/log", json!({ "format": "text" }))], &["server"]),
            (&[("/log", json!({ "access": "all" }))], &["server"]),
            (
                &[(
                    "/registries",
                    json!({ "r.example": { "max_concurrent": 9 } }),
                )],
                &["registries"],
            ),
            // A default that is written out is a change here: it costs no more than a client.
            (
                &[("/registries", json!({ "r.example": {} }))],
                &["registries"],
            ),
            (
                &[("/limits", json!({ "bundle": "1MiB" }))],
                &["replace a r.example/a:v1", replaced, "limits"],
            ),
            (
                &[
                    ("/cache", json!({ "memory": "1MiB" })),
                    ("/bundles/a", Value::Null),
                    ("/bundles/c", bundle("r.example/c:v1")),
                    ("/clients/0/bundles", json!(["c"])),
                ],
                &["remove a", "add c", "clients 1", "cache"],
            ),
        ];
        for (edits, expected) in table {
            assert_eq!(changes_by(edits), *expected, "{edits:?}");
        }
    }

    #[test]
    fn a_change_of_any_pattern_is_one_change() {
        let with = |pattern: Value| {
            let mut config = base();
            config["patterns"] = json!([pattern]);
            config
        };
        let pattern = json!({ "resource": "{x}", "reference": "r.example/{x}:v1", "trust": "dev" });
        let changed_by = |key: &str, value: &str| {
            let mut edited = pattern.clone();
            edited[key] = json!(value);
            let (before, after) = (with(pattern.clone()), with(edited));
            let changes = changes(&config(&before), &config(&after));
            changes.iter().map(word).collect::<Vec<_>>()
        };
        for (key, value) in [
            ("resource", "a/{x}"),
            ("reference", "r.example/{x}:v2"),
            ("trust", "other"),
            ("poll", "1s"),
            ("idle", "1m"),
        ] {
            assert_eq!(changed_by(key, value), ["patterns 1"], "{key}");
        }
        // A default that is written out is no change.
        assert_eq!(changed_by("idle", "1h"), [""; 0]);
        assert_eq!(changes_by(&[("/patterns", json!([]))]), [""; 0]);
    }

    #[test]
    fn a_bundle_is_suspended_and_resumed_by_its_watcher_and_another_range_is_another_reference() {
        let ranged = [
            ("/bundles/a/reference", json!("r.example/a")),
            ("/bundles/a/semver", json!("^1")),
            ("/bundles/a/suspend", json!(true)),
        ];
        let table: &[Row<'_>] = &[
            (&ranged[2..], &["suspended a: true"]),
            (&[("/bundles/a/suspend", json!(false))], &[]),
            (&ranged[..2], &["replace a r.example/a (semver ^1)"]),
            (
                &ranged,
                &["suspended a: true", "replace a r.example/a (semver ^1)"],
            ),
        ];
        for (edits, expected) in table {
            assert_eq!(changes_by(edits), *expected, "{edits:?}");
        }
    }

    #[test]
    fn another_strategy_and_one_with_another_content_replace_no_watcher() {
        let with = |percent: u64, rollout: Option<&str>, poll: &str| {
            let mut config = base();
            config["shared"] = json!({ "url": "redis://valkey" });
            config["rollouts"] = json!({
                "careful": { "steps": [{ "percent": percent, "approve": true }] },
                "quick": { "steps": [{ "percent": 50, "soak": "6m" }] },
            });
            config["bundles"]["deny"]["poll"] = json!(poll);
            if let Some(rollout) = rollout {
                config["bundles"]["deny"]["rollout"] = json!(rollout);
            }
            self::config(&config)
        };
        let running = with(1, Some("careful"), "30s");
        let replaced = "replace deny r.example/deny:v1";
        for (wanted, expected) in [
            (with(1, Some("careful"), "30s"), None),
            (
                with(2, Some("careful"), "30s"),
                Some("rollout of deny: careful"),
            ),
            (
                with(1, Some("quick"), "30s"),
                Some("rollout of deny: quick"),
            ),
            (with(1, Some("none"), "30s"), Some("rollout of deny: none")),
            (with(1, None, "30s"), Some("no rollout of deny")),
            (with(1, None, "1s"), Some(replaced)),
        ] {
            let found: Vec<_> = changes(&running, &wanted).iter().map(word).collect();
            assert_eq!(found, Vec::from_iter(expected));
        }
    }

    #[test]
    fn other_webhooks_need_no_restart() {
        let hub = json!([{ "name": "hub", "kind": "quay", "unauthenticated": true }]);
        assert_eq!(changes_by(&[("/webhooks", hub)]), ["webhooks"]);
    }

    #[test]
    fn an_earlier_reference_keeps_its_policy_and_never_loses_its_signatures() {
        let wanted = config(&base());
        let reference: Reference = "r.example/a:v0".parse().unwrap();
        let unsigned = TrustPolicy::unsigned("gone".into());
        let policy = policy_of_earlier_reference(&unsigned, &reference, &wanted);
        assert!(same_policy(&policy, &unsigned));
        let key = rcgen::KeyPair::generate().unwrap().public_key_pem();
        let key = crate::verify::PublicKey::from_pem(&key).unwrap();
        let authority = crate::verify::Authority::with_keys("release".into(), [key]);
        let signed = crate::verify::Requirements::any_of(vec![authority]);
        let signed = TrustPolicy::signed("dev".into(), signed).unwrap();
        let policy = policy_of_earlier_reference(&signed, &reference, &wanted);
        assert!(
            policy.requirements().is_some(),
            "the unsigned policy of that name has taken its place"
        );
    }
}
