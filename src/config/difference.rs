//! The keys in which two configurations differ.

use std::collections::HashMap;

use super::tree::{Key, Node, Value};

/// The paths of the keys in which two texts differ, without those that are applied while serving
/// ([`is_live`]). A key with its default value differs from an absent key.
pub(super) fn keys(old: &str, new: &str) -> Vec<String> {
    let mut keys = Vec::new();
    // Both have been parsed before.
    if let (Ok(old), Ok(new)) = (Node::parse(old), Node::parse(new)) {
        compare(&mut Vec::new(), Some(&old), Some(&new), &mut keys);
    }
    keys
}

fn compare<'a>(
    path: &mut Vec<&'a str>,
    old: Option<&'a Node>,
    new: Option<&'a Node>,
    keys: &mut Vec<String>,
) {
    if is_live(path) {
        return;
    }
    if let Some((old, new)) = entries(path, old).zip(entries(path, new)) {
        let (by_name, new_by_name) = (by_name(old), by_name(new));
        let added = new
            .iter()
            .filter(|(key, _)| !by_name.contains_key(key.name.as_str()));
        for (key, _) in old.iter().chain(added) {
            path.push(&key.name);
            let of = |nodes: &HashMap<&str, &'a Node>| nodes.get(key.name.as_str()).copied();
            compare(path, of(&by_name), of(&new_by_name), keys);
            path.pop();
        }
        return;
    }
    match (old.map(|node| &node.value), new.map(|node| &node.value)) {
        (Some(old), Some(new)) if is_equal(old, new) => {}
        (Some(_), Some(_)) => keys.push(path.join(".")),
        (None, Some(_)) => keys.push(format!("{} (new)", path.join("."))),
        (Some(_), None) => keys.push(format!("{} (removed)", path.join("."))),
        (None, None) => {}
    }
}

/// The keys of a mapping. An absent mapping of which a key is live counts as an empty one.
fn entries<'a>(path: &[&str], node: Option<&'a Node>) -> Option<&'a [(Key, Node)]> {
    match node.map(|node| &node.value) {
        Some(Value::Mapping(entries)) => Some(entries),
        None if matches!(path, ["server" | "cache"]) => Some(&[]),
        _ => None,
    }
}

fn by_name(entries: &[(Key, Node)]) -> HashMap<&str, &Node> {
    entries
        .iter()
        .map(|(key, node)| (key.name.as_str(), node))
        .collect()
}

/// Whether the changes of a key and of everything below it are applied while serving. A key that is
/// not listed here needs a restart.
pub(super) fn is_live(path: &[&str]) -> bool {
    matches!(
        path,
        ["trust" | "clients" | "bundles" | "patterns" | "opa_check" | "webhooks" | "registries"]
            | ["rollouts" | "tracing"]
            | ["log" | "long_poll" | "limits"]
            | ["cache", "disk" | "memory"]
            | [
                "server",
                "tls"
                    | "admin_tls"
                    | "admin_hosts"
                    | "admin_token_file"
                    | "trusted_proxies"
                    | "max_connections"
                    | "drain"
            ]
    )
}

/// Whether two values are equal, regardless of position and YAML style.
fn is_equal(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(old), Value::Bool(new)) => old == new,
        (Value::Integer(old), Value::Integer(new)) => old == new,
        (Value::Float(old), Value::Float(new)) => old.to_bits() == new.to_bits(),
        (Value::Text(old), Value::Text(new)) => old == new,
        (Value::List(old), Value::List(new)) => {
            old.len() == new.len()
                && old
                    .iter()
                    .zip(new)
                    .all(|(old, new)| is_equal(&old.value, &new.value))
        }
        (Value::Mapping(old), Value::Mapping(new)) => {
            let new = by_name(new);
            old.len() == new.len()
                && old.iter().all(|(key, node)| {
                    new.get(key.name.as_str())
                        .is_some_and(|other| is_equal(&node.value, &other.value))
                })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "
version: 1
server: { listen: ':8080', drain: { notice: 5s } }
clients: [{ name: anyone, anonymous: true, bundles: ['**'] }]
trust: { policies: { dev: unsigned } }
bundles:
  a: { reference: 'r.example/a:v1', trust: dev, poll: 30s }
  b/c: { reference: 'r.example/b:v1', trust: dev }
";

    #[test]
    fn style_and_live_keys_make_no_difference() {
        let same = "
bundles:
  # The order does not matter.
  'b/c': { trust: release, reference: r.example/b:v1 }
  a: { poll: \"30s\", reference: r.example/a:v1 }
trust:
  policies: { release: { require: { any_of: [key] } } }
clients:
  - { anonymous: true, name: anyone, bundles: [\"a\"] }
server: { drain: { notice: 6s }, listen: ':8080', max_connections: 9 }
long_poll: { max_wait: 1m }
version: 1
";
        assert_eq!(keys(OLD, same), [""; 0]);
    }

    #[test]
    fn every_other_key_is_named_by_its_path() {
        let new = "
version: 1
server: { listen: ':8081', drain: { notice: 5s } }
clients: [{ name: anyone, anonymous: true, bundles: ['**'] }]
trust: { policies: { dev: unsigned } }
bundles:
  a: { reference: 'r.example/a:v2', trust: dev, poll: 30s }
  d: { reference: 'r.example/d:v1', trust: dev }
limits: { bundle: 1MiB }
rollouts: { careful: { steps: [{ percent: 1, approve: true }] } }
registries: { r.example: { scheme: http } }
";
        let expected = ["server.listen"];
        assert_eq!(keys(OLD, new), expected);
        let tokens = |text: &str| text.replace("server: {", "server: { admin_token_file: tokens,");
        assert_eq!(keys(OLD, &tokens(OLD)), [""; 0]);
        let (none, only) = (
            "version: 1",
            "version: 1\nserver: { admin_token_file: tokens }",
        );
        assert_eq!(keys(none, only), [""; 0]);
    }
}
