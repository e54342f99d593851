//! The JSON Schema of the configuration, for editors and CI.
//!
//! It is made from the types of [`super::raw`]: keys, types and descriptions by derive; words,
//! defaults and limits from the constants of the parser. A key needs a doc comment, and nothing
//! here. The schema accepts whatever the parser accepts; it can't refuse what depends on a file, on
//! another place in the configuration, or on a library such as that of regular expressions.
//!
//! Draft-07: the newest that yaml-language-server, and with it VS Code, supports completely, and
//! nothing of a newer one is needed. It has no references, because siblings of `$ref` are ignored
//! in that draft, and each place has its own description, default and limits.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use schemars::{Schema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{difference, fleet, log, raw, rollouts, shared, values, webhooks};
use crate::webhooks::{Kind, Pointer};

/// Names this version of the schema. Nothing is fetched from it.
const ID: &str = "urn:bundlegate:configuration:1";

/// A path of a file or folder; `~` is not expanded.
pub(super) const PATH: &str = r"^[^~\x00-\x1f\x7f][^\x00-\x1f\x7f]*$";
/// A name of a client, a root, an authority, a policy or a webhook.
pub(super) const NAME: &str = "^[A-Za-z0-9._/-]+$";
/// A digest.
pub(super) const DIGEST: &str = "^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$";
/// A reference: a host and a repository, or a layout folder.
pub(super) const REFERENCE: &str =
    r"^(oci-layout:[^~].*|(localhost|[^/\s]*[.:][^/\s]*)/[^/\s][^\s]*)$";
/// What an editor says about another text.
pub(super) const REFERENCE_MESSAGE: &str =
    "a reference with its host, such as ghcr.io/acme/authz:v1, or oci-layout:PATH";
/// A reference to a repository of a registry that has a tag or digest.
const WITH_VERSION: &str = r"^(oci-layout:.*|[^/]*/[^:@]+[:@].+)$";
/// `HOST/REPOSITORY`.
pub(super) const REPOSITORY: &str = r"^(localhost|[^/\s]*[.:][^/\s]*)/[^/\s:@][^\s:@]*$";
/// A platform such as `linux/arm/v7`.
pub(super) const PLATFORM: &str = r"^[A-Za-z0-9._-]{1,32}(/[A-Za-z0-9._-]{1,32}){1,2}$";
/// A text without white space that has a colon.
pub(super) const URI: &str = r"^[^\s]*:[^\s]*$";
/// The URL of a proxy, without password, path and query.
pub(super) const PROXY: &str =
    r"^([Hh][Tt][Tt][Pp][Ss]?|[Ss][Oo][Cc][Kk][Ss]5[Hh]?)://([^/?#@:\s]*@)?[^/?#@\s]+/?$";
/// An http or https URL without a user.
pub(super) const HTTP_URL: &str = r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\s]+([/?#].*)?$";
/// The URL of a Valkey or Redis without a user, of which the host may be absent; or `local:`.
pub(super) const SHARED_URL: &str = r"^(local:|[Rr][Ee][Dd][Ii][Ss][Ss]?://(\[[0-9A-Fa-f:.]+\](:[0-9]+)?|[^/?#@\[\]\s]*)(/[0-9]*)?)$";
/// The URL of a set of keys: https, or http on this machine.
pub(super) const KEYS_URL: &str =
    r"^([Hh][Tt][Tt][Pp][Ss]://[^/@\s]|[Hh][Tt][Tt][Pp]://(localhost|127\.|\[)).*$";
/// The pattern of a proxy, or a word.
pub(super) fn proxy_or(word: &str) -> String {
    format!("^{word}$|{PROXY}")
}

/// The path of a webhook.
pub(super) const URL_PATH: &str = "^/[A-Za-z0-9/._~-]+$";
/// A time with its zone.
const TIME: &str = r"^[^\s\[]*[0-9][Tt][0-9][^\s\[]*([Zz]|[+-][0-9][0-9:.,]*)$";
const VERSION: &str = r"^v?[0-9]+\.[0-9]+\.[0-9]+([-+_].*)?$";
const IP: &str = r"(\[[0-9A-Fa-f:.]+\]|[0-9]{1,3}(\.[0-9]{1,3}){3}|localhost)?";

/// The schema of the configuration.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let generator = settings.into_generator();
    let mut schema = generator.into_root_schema_for::<raw::Root>().to_value();
    finish(&mut schema, &[]);
    if let Value::Object(schema) = &mut schema {
        schema.insert("$id".to_owned(), ID.into());
        schema.insert("title".to_owned(), "Configuration of bundlegate".into());
    }
    schema
}

/// Adapts the schema of the value at `path`, and of all values in it, to this configuration.
fn finish(schema: &mut Value, path: &[&str]) {
    let Value::Object(keywords) = schema else {
        return;
    };
    forbid_null(keywords);
    keywords.remove("format");
    describe(keywords, path);
    for (name, property) in entries(keywords.get_mut("properties")) {
        let path = [path, &[name.as_str()]].concat();
        finish(property, &path);
        if let Value::Object(keywords) = property {
            keywords.insert("title".to_owned(), rendered(&path).into());
        }
    }
    if let Some(values) = keywords.get_mut("additionalProperties") {
        let name = match path {
            ["registries"] => "HOST",
            _ => "NAME",
        };
        finish(values, &[path, &[name]].concat());
    }
    if let Some(items) = keywords.get_mut("items") {
        finish(items, &[path, &["[]"]].concat());
    }
    for choice in keywords
        .get_mut("anyOf")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        finish(choice, path);
    }
}

fn entries(schemas: Option<&mut Value>) -> impl Iterator<Item = (&String, &mut Value)> {
    schemas
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(Map::iter_mut)
}

/// Removes `null`, which schemars allows for every optional value: the reader refuses a key without
/// a value.
fn forbid_null(keywords: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = keywords.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            keywords.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(words)) = keywords.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    let Some(Value::Array(choices)) = keywords.get_mut("anyOf") else {
        return;
    };
    choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
    if let [Value::Object(only)] = choices.as_mut_slice() {
        let only = std::mem::take(only);
        keywords.remove("anyOf");
        for (keyword, value) in only {
            keywords.entry(keyword).or_insert(value);
        }
    }
}

/// Completes the description: what a reader of the key asks beside its meaning.
fn describe(keywords: &mut Map<String, Value>, path: &[&str]) {
    let text = keywords.get("description").and_then(Value::as_str);
    let mut text = text.map(unwrapped).unwrap_or_default();
    let is_empty = |value: &Value| *value == json!([]) || *value == json!({});
    if keywords.get("default").is_some_and(is_empty) {
        keywords.remove("default");
    }
    if let Some(default) = keywords.get("default") {
        let default = match default {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        text.push_str(&format!(" Default: `{default}`."));
    }
    let is_key = !path.is_empty() && path != ["version"] && !keywords.contains_key("properties");
    if is_key && needs_restart(path) {
        text.push_str(" A change takes effect at the next start.");
    }
    let text = text.trim();
    if !text.is_empty() {
        keywords.insert("description".to_owned(), text.into());
    }
}

fn needs_restart(path: &[&str]) -> bool {
    !(1..=path.len()).any(|length| difference::is_live(&path[..length]))
}

/// A doc comment without its line breaks within paragraphs.
fn unwrapped(text: &str) -> String {
    let paragraphs = text.split("\n\n");
    let paragraphs = paragraphs.map(|paragraph| paragraph.replace('\n', " "));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

/// The path of a key as errors have it.
fn rendered(path: &[&str]) -> String {
    path.join(".").replace(".[]", "[]")
}

/// The names of keywords.
pub(super) fn words<T>(words: &[(&'static str, T)]) -> Vec<&'static str> {
    words.iter().map(|(word, _)| *word).collect()
}

/// The values of `log.access`, of which [`log`](super::log) reads `off` as a boolean as well.
pub(super) fn access_levels() -> Vec<Value> {
    let words = log::ACCESS_LEVELS.iter().map(|(word, _)| (*word).into());
    words.chain([false.into()]).collect()
}

/// A duration as it is written.
pub(super) fn period(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let (factor, unit) = values::PERIOD_UNITS
        .into_iter()
        .rev()
        .map(|(unit, factor)| (u128::from(factor), unit))
        .find(|(factor, _)| millis.is_multiple_of(*factor))
        .unwrap_or((1, "ms"));
    format!("{}{unit}", millis / factor)
}

/// A size as it is written.
pub(super) fn size(bytes: u64) -> String {
    let (shift, unit) = values::SIZE_UNITS
        .into_iter()
        .rev()
        .map(|(unit, shift)| (shift, unit))
        .find(|(shift, _)| bytes.is_multiple_of(1 << shift))
        .unwrap_or((0, "B"));
    format!("{}{unit}", bytes >> shift)
}

/// An address as it is written.
pub(super) fn address(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!(":{}", address.port()),
        false => address.to_string(),
    }
}

/// A URL of the shared state has a host unless there are sentinels, and TLS if there is a `ca_file`; `local:`
/// has no other key but `grace`.
pub(super) fn shared_url() -> Value {
    let url = |pattern: &str| json!({ "properties": { "url": { "pattern": pattern } } });
    json!([
        {
            "if": is("url", &json!(shared::LOCAL)),
            "then": { "not": any_of(&shared::ENGINE_KEYS) },
        },
        {
            "if": { "required": ["sentinel"] },
            "then": url(":///?[0-9]*$"),
            "else": url("^local:|://[^/]"),
        },
        { "if": { "required": ["ca_file"] }, "then": url("^[Rr][Ee][Dd][Ii][Ss][Ss]:") },
    ])
}

/// A step names clients, and has a soak unless a person promotes it.
pub(super) fn rollout_step() -> Value {
    let clients = any_of(&["clients", "ids", "percent", "at_least"]);
    json!([
        clients,
        { "if": is("approve", &json!(true)), "else": { "required": ["soak"] } },
    ])
}

/// The names of strategies.
pub(super) fn strategy_names(schema: &mut Schema) {
    let names = json!({ "pattern": NAME, "maxLength": 64, "not": { "const": raw::NONE } });
    schema.insert("propertyNames".to_owned(), names);
}

/// The schema of a part, as a text or as the number of the percentage.
pub(super) fn any_percent() -> Schema {
    schemars::json_schema!({ "anyOf": [
        { "type": "number", "minimum": 0, "maximum": 100 },
        percent_text(true),
    ] })
}

/// The schema of a number of clients, or of a part of them.
pub(super) fn any_failures() -> Schema {
    let most = rollouts::MAX_CLIENTS;
    let count = format!("^0*{}$", numbers(0, most));
    schemars::json_schema!({ "anyOf": [
        { "type": "integer", "minimum": 0, "maximum": most },
        { "type": "string", "pattern": count },
        percent_text(false),
    ] })
}

/// A percentage with two decimals at most.
fn percent_text(may_lack_sign: bool) -> Value {
    let sign = if may_lack_sign { "%?" } else { "%" };
    let number = r"(100(\.0*)?|[0-9]{1,2}(\.[0-9]{0,2}0*)?|\.[0-9]{1,2}0*)";
    json!({
        "type": "string",
        "pattern": format!("^0*{number}{sign}$"),
        "patternErrorMessage": "a part such as 90%, from 0% to 100%",
    })
}

/// Limits a duration to at least `least`, and to `most` if there is one.
pub(super) fn between(least: Duration, most: Option<Duration>) -> impl FnMut(&mut Schema) {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let limits = match most {
        Some(most) => format!("between {} and {}", period(least), period(most)),
        None => format!("at least {}", period(least)),
    };
    let units = values::PERIOD_UNITS.map(|(unit, factor)| {
        let least = millis(least).div_ceil(factor);
        let most = most.map_or(ANY_PERIOD, |most| millis(most) / factor);
        (unit, least, most)
    });
    with_units(
        &units,
        format!("a duration such as {}, {limits}", values::PERIOD_EXAMPLE),
    )
}

/// Limits a size to at least `least` bytes.
pub(super) fn at_least(least: u64) -> impl FnMut(&mut Schema) {
    let units =
        values::SIZE_UNITS.map(|(unit, shift)| (unit, least.div_ceil(1 << shift), ANY_SIZE));
    let example = values::SIZE_EXAMPLE;
    with_units(
        &units,
        format!("a size such as {example}, at least {}", size(least)),
    )
}

/// Limits a size to these bytes.
pub(super) fn within(sizes: &RangeInclusive<u64>) -> impl FnMut(&mut Schema) + use<> {
    let (least, most) = (*sizes.start(), *sizes.end());
    let units = values::SIZE_UNITS.map(|(unit, shift)| {
        let least = least.div_ceil(1 << shift);
        (unit, least.max(1), most >> shift)
    });
    let (example, least, most) = (values::SIZE_EXAMPLE, size(least), size(most));
    with_units(
        &units,
        format!("a size such as {example}, between {least} and {most}"),
    )
}

/// The header that names a client: a name that [`fleet`] does not refuse.
pub(super) fn identity(schema: &mut Schema) {
    let longest = fleet::MAX_NAME_BYTES;
    let refused = fleet::SECRETS.iter().chain(&fleet::TAKEN);
    let refused = refused.map(|name| any_case(name)).collect::<Vec<_>>();
    let pattern = format!("^[!#$%&'*+.^_`|~0-9A-Za-z-]{{1,{longest}}}$");
    schema.insert("pattern".to_owned(), pattern.into());
    let message = format!("the name of a header, such as {}", fleet::EXAMPLE);
    schema.insert("patternErrorMessage".to_owned(), message.into());
    let names = json!({ "pattern": format!("^({})$", refused.join("|")) });
    schema.insert("not".to_owned(), names);
}

/// A pattern for a name in upper and lower case.
fn any_case(name: &str) -> String {
    let letter = |letter: char| match letter.is_ascii_alphabetic() {
        true => format!("[{}{letter}]", letter.to_ascii_uppercase()),
        false => letter.to_string(),
    };
    name.chars().map(letter).collect()
}

/// Sets the pattern for a number with its unit.
fn with_units(units: &[(&str, u64, u64)], message: String) -> impl FnMut(&mut Schema) + use<> {
    let numbers = units
        .iter()
        .filter(|(_, least, most)| least <= most)
        .map(|(unit, least, most)| format!("{}{unit}", numbers(*least, *most)));
    let pattern = format!("^0*({})$", numbers.collect::<Vec<_>>().join("|"));
    move |schema| {
        schema.insert("pattern".to_owned(), pattern.clone().into());
        schema.insert("patternErrorMessage".to_owned(), message.clone().into());
    }
}

/// A regular expression for the whole numbers from `least` to `most`, without leading zeros.
fn numbers(least: u64, most: u64) -> String {
    let mut ranges = Vec::new();
    let mut from = least;
    // One range for each number of digits.
    while from <= most {
        let digits = from.to_string().len();
        let longest = most.to_string();
        if from > least && longest.bytes().all(|digit| digit == b'9') {
            ranges.push(format!(
                "[1-9][0-9]{{{},{}}}",
                digits - 1,
                longest.len() - 1
            ));
            break;
        }
        let nines = "9".repeat(digits).parse().unwrap_or(u64::MAX);
        let until = most.min(nines);
        push_ranges("", &from.to_string(), &until.to_string(), &mut ranges);
        match until.checked_add(1) {
            Some(next) => from = next,
            None => break,
        }
    }
    match ranges.as_slice() {
        [only] => only.clone(),
        _ => format!("({})", ranges.join("|")),
    }
}

/// The ranges of digits for the numbers from `from` to `until`, which have as many digits.
fn push_ranges(prefix: &str, from: &str, until: &str, ranges: &mut Vec<String>) {
    let (Some(first), Some(last)) = (from.chars().next(), until.chars().next()) else {
        return ranges.push(prefix.to_owned());
    };
    let (lower, upper) = (&from[1..], &until[1..]);
    let rest = lower.len();
    let any = match rest {
        0 => String::new(),
        1 => "[0-9]".to_owned(),
        _ => format!("[0-9]{{{rest}}}"),
    };
    let class = |first: char, last: char| match first == last {
        true => first.to_string(),
        false => format!("[{first}-{last}]"),
    };
    let (zeros, nines) = ("0".repeat(rest), "9".repeat(rest));
    if lower == zeros && upper == nines {
        return ranges.push(format!("{prefix}{}{any}", class(first, last)));
    }
    if first == last {
        return push_ranges(&format!("{prefix}{first}"), lower, upper, ranges);
    }
    push_ranges(&format!("{prefix}{first}"), lower, &nines, ranges);
    let next = |digit: char, by: i8| {
        char::from(u8::try_from(digit).unwrap_or(b'0').wrapping_add_signed(by))
    };
    let (second, before) = (next(first, 1), next(last, -1));
    if second <= before {
        ranges.push(format!("{prefix}{}{any}", class(second, before)));
    }
    push_ranges(&format!("{prefix}{last}"), &zeros, upper, ranges);
}

/// The schema of a duration.
pub(super) fn any_period() -> Schema {
    let mut schema = schemars::json_schema!({ "type": "string" });
    let units = values::PERIOD_UNITS.map(|(unit, _)| (unit, 0, ANY_PERIOD));
    with_units(
        &units,
        format!("a duration such as {}", values::PERIOD_EXAMPLE),
    )(&mut schema);
    schema
}

/// The schema of a duration, or of the word for one that is computed.
pub(super) fn any_spread() -> Schema {
    schemars::json_schema!({ "anyOf": [{ "const": values::AUTO }, any_period()] })
}

/// The schema of a size.
pub(super) fn any_size() -> Schema {
    let mut schema = schemars::json_schema!({ "type": "string" });
    let units = values::SIZE_UNITS.map(|(unit, _)| (unit, 1, ANY_SIZE));
    with_units(&units, format!("a size such as {}", values::SIZE_EXAMPLE))(&mut schema);
    schema
}

/// The schema of a time.
pub(super) fn any_time() -> Schema {
    schemars::json_schema!({
        "type": "string",
        "pattern": TIME,
        "patternErrorMessage": format!("a time with its zone, such as {}", values::TIME_EXAMPLE),
    })
}

/// The pattern of an address. The parser of numbers takes a plus and leading zeros.
fn address_pattern() -> String {
    let port = numbers(0, u16::MAX.into());
    format!(r"{IP}:\+?0*{port}")
}

/// The schema of an address.
pub(super) fn any_address() -> Schema {
    schemars::json_schema!({
        "type": "string",
        "pattern": format!("^{}$", address_pattern()),
        "patternErrorMessage": format!("an address such as {}", values::ADDRESS_EXAMPLE),
    })
}

/// The schema of an address or `unix:PATH`.
pub(super) fn any_listener() -> Schema {
    schemars::json_schema!({
        "type": "string",
        "pattern": format!("^({}|unix:[^~].*)$", address_pattern()),
        "patternErrorMessage": format!("an address such as {}, or unix:PATH", values::ADDRESS_EXAMPLE),
    })
}

/// The globs over names with slashes.
pub(super) fn glob(schema: &mut Schema) {
    schema.insert("minLength".to_owned(), 1.into());
    schema.insert("not".to_owned(), json!({ "pattern": r"[^/]\*\*|\*\*[^/]" }));
}

/// Applies a transformation to the items of a list.
pub(super) fn each(mut item: impl FnMut(&mut Schema)) -> impl FnMut(&mut Schema) {
    move |schema| {
        let items = schema
            .get_mut("items")
            .and_then(|items| items.try_into().ok());
        if let Some(items) = items {
            item(items);
        }
    }
}

/// Limits a text to these words.
pub(super) fn one_of(words: Vec<&'static str>) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert("enum".to_owned(), words.clone().into());
    }
}

/// The names in a mapping, which have this pattern.
pub(super) fn names(pattern: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert("propertyNames".to_owned(), json!({ "pattern": pattern }));
    }
}

/// The names in a mapping, which are not empty.
pub(super) fn any_names(schema: &mut Schema) {
    schema.insert("propertyNames".to_owned(), json!({ "minLength": 1 }));
}

/// The names of registries.
pub(super) fn hosts(schema: &mut Schema) {
    let pattern = r"^(localhost|[^/@?#\\\s]*[.:][^/@?#\\\s]*)$";
    let hosts = json!({ "pattern": pattern, "not": { "pattern": ":$" } });
    schema.insert("propertyNames".to_owned(), hosts);
}

/// The names of bundles.
pub(super) fn bundle_names(schema: &mut Schema) {
    let pattern = r"^[^/\x00-\x1f\x7f]+(/[^/\x00-\x1f\x7f]+)*$";
    let names = json!({ "pattern": pattern, "not": { "pattern": r"(^|/)\.\.?(/|$)" } });
    schema.insert("propertyNames".to_owned(), names);
}

/// Requires exactly one of the keys.
pub(super) fn exactly_one(keys: &[&str]) -> Value {
    keys.iter()
        .map(|key| json!({ "required": [key] }))
        .collect()
}

/// Requires exactly one of the keys; of those in `flags`, only `true` counts.
pub(super) fn exactly_one_with(keys: &[&str], flags: &[&str]) -> Value {
    let flags = flags.iter().map(|key| is(key, &json!(true)));
    let keys = keys.iter().map(|key| json!({ "required": [key] }));
    keys.chain(flags).collect()
}

/// At least one of the keys is written.
fn any_of(keys: &[&str]) -> Value {
    let written: Value = keys
        .iter()
        .map(|key| json!({ "required": [key] }))
        .collect();
    json!({ "anyOf": written })
}

/// The mapping has this value at a key.
pub(super) fn is(key: &str, value: &Value) -> Value {
    json!({ "required": [key], "properties": { key: { "const": value } } })
}

/// A registry over plain HTTP has no certificates.
pub(super) fn plain_http() -> Value {
    json!({
        "if": is("scheme", &json!("http")),
        "then": { "not": any_of(&["ca_file", "client_certificate", "client_key"]) },
    })
}

/// A reference has a tag or digest, or a rule that chooses the tag, but not both.
pub(super) fn reference_of_bundle() -> Value {
    json!({
        "if": any_of(&["semver", "filter_tags"]),
        "else": { "properties": { "reference": {
            "pattern": WITH_VERSION,
            "patternErrorMessage": "a tag or digest is missing; or choose a tag by semver or filter_tags",
        } } },
    })
}

/// The order of tags: by `semver`, or by `filter_tags.order`.
pub(super) fn order_of_tags() -> Value {
    let (with, without) = (
        json!({ "properties": { "order": { "const": "version" } }, "not": { "required": ["pick"] } }),
        json!({ "required": ["order"], "properties": { "order": { "not": { "const": "version" } } } }),
    );
    json!({
        "if": { "required": ["semver"] },
        "then": { "properties": { "filter_tags": with } },
        "else": { "properties": { "filter_tags": without } },
    })
}

/// The minimum is a version or a time, as the order is.
pub(super) fn minimum_by_order() -> Value {
    json!([
        {
            "if": is("order", &json!("version")),
            "then": { "properties": { "minimum": { "pattern": VERSION } } },
            "else": { "properties": { "minimum": { "pattern": TIME } } },
        },
        {
            "if": { "required": ["minimum"] },
            "then": { "properties": { "on_older": { "not": { "const": "serve" } } } },
        },
    ])
}

/// The keys of OPA's own signatures that go together.
pub(super) fn opa_signature() -> Value {
    json!({
        "if": is("opa_signature", &json!("verify")),
        "then": { "required": ["opa_keys"] },
        "else": { "not": { "required": ["opa_keys"] } },
    })
}

/// The keys of the admin listener that go together.
pub(super) fn admin_listener() -> Value {
    let unix = json!({
        "required": ["admin"],
        "properties": { "admin": { "pattern": "^unix:" } },
    });
    json!([
        { "if": unix, "then": { "not": { "required": ["admin_tls"] } } },
    ])
}

/// Everything at once, and no bandwidth to divide.
pub(super) fn spread_with_bandwidth() -> Value {
    json!({
        "required": ["spread", "bandwidth"],
        "properties": { "spread": { "pattern": "^0+(ms|s|m|h)$" } },
    })
}

/// A root has one source; the one that is built in is refreshed from its own repository.
pub(super) fn source_of_root() -> Value {
    let own = json!({ "type": "object", "required": ["url", "root"] });
    let foreign = json!({ "type": "object", "anyOf": any_of(&["url", "root"])["anyOf"] });
    json!([
        {
            "required": ["builtin"],
            "properties": { "tuf": { "not": foreign } },
            "not": { "required": ["trusted_root"] },
        },
        { "required": ["trusted_root"], "not": any_of(&["builtin", "tuf"]) },
        {
            "required": ["tuf"],
            "properties": { "tuf": own },
            "not": any_of(&["builtin", "trusted_root"]),
        },
    ])
}

/// The time of a signature by a certificate, and the log that proves it.
pub(super) fn log_of_x509() -> Value {
    let time = |word: &str| json!({ "required": ["x509"], "properties": { "x509": is("time", &json!(word)) } });
    json!([
        { "if": time("now"), "then": { "properties": { "tlog": { "const": "none" } } } },
        { "if": time("rekor"), "then": { "properties": { "tlog": { "not": { "const": "none" } } } } },
        {
            "if": any_of(&["keyless", "x509"]),
            "then": { "not": { "required": ["root"] } },
        },
    ])
}

/// Votes: all of some authorities, any of them, or a number of them.
pub(super) fn votes() -> Value {
    json!([
        { "required": ["any_of"] },
        { "required": ["all_of"] },
        { "anyOf": [{ "required": ["at_least"] }, { "required": ["of"] }] },
    ])
}

/// What each kind of webhook needs, and what it can't send.
pub(super) fn kinds_of_webhooks() -> Value {
    let mut rules: Vec<_> = webhooks::KINDS.into_iter().map(webhook).collect();
    rules.push(json!({
        "if": is("unauthenticated", &json!(true)),
        "then": { "properties": { "listener": { "const": "admin" } } },
    }));
    let own = webhooks::ADMIN_PATHS.map(|path| match path.ends_with('/') {
        true => path.to_owned(),
        false => format!("{path}$"),
    });
    rules.push(json!({
        "if": { "properties": { "listener": { "const": "admin" } } },
        "then": { "properties": { "path": { "not": { "pattern": format!("^({})", own.join("|")) } } } },
    }));
    Value::Array(rules)
}

fn webhook(label: &str) -> Value {
    let pointer = (label == webhooks::GENERIC)
        .then(|| Pointer::new("/x"))
        .flatten();
    let kind = pointer.map_or_else(|| webhooks::named(label), Kind::Generic);
    let (mut required, mut forbidden) = (Vec::new(), Vec::new());
    match kind {
        Kind::Generic(_) => required.push("pointer"),
        _ => forbidden.push("pointer"),
    }
    if !kind.names_host() {
        required.push("host");
    }
    let cannot_send = |key: &&str| !webhooks::can_send(&kind, key);
    forbidden.extend(webhooks::CREDENTIALS.into_iter().filter(cannot_send));
    json!({
        "if": is("kind", &json!(label)),
        "then": { "required": required, "not": any_of(&forbidden) },
    })
}

/// The most digits of a duration: ten years in milliseconds have as many.
const ANY_PERIOD: u64 = 999_999_999_999;
/// The most digits of a size: those of the largest offset in a file.
const ANY_SIZE: u64 = 9_999_999_999_999_999_999;

#[cfg(test)]
mod tests {
    use proptest::{prop_assert_eq, proptest};
    use regex::Regex;

    use super::*;

    #[test]
    fn values_are_written_as_the_parser_reads_them() {
        for (millis, text) in [
            (0, "0s"),
            (250, "250ms"),
            (90_000, "90s"),
            (86_400_000, "24h"),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(period(duration), text);
            assert_eq!(text.parse::<values::Period>().unwrap().0, duration);
        }
        for (bytes, text) in [
            (1, "1B"),
            (65_536, "64KiB"),
            (64 << 20, "64MiB"),
            (10 << 30, "10GiB"),
        ] {
            assert_eq!(size(bytes), text);
            assert_eq!(text.parse::<values::Size>().unwrap().bytes(), bytes);
        }
    }

    proptest! {
        #[test]
        fn a_range_matches_its_numbers(one: u64, other: u64, small in 0_u64..3000, number: u64) {
            for (least, most) in [(one.min(other), one.max(other)), (small, small + 100), (small, u64::MAX)] {
                let regex = Regex::new(&format!("^{}$", numbers(least, most))).unwrap();
                let near = [least, least.saturating_sub(1), most, most.saturating_add(1), number, small + 7];
                for number in near {
                    prop_assert_eq!(
                        regex.is_match(&number.to_string()),
                        (least..=most).contains(&number),
                        "{} from {} to {}", number, least, most
                    );
                }
            }
        }
    }
}
