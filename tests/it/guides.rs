//! `README.md` and `config/README.md`: their links, configurations, commands, tables and messages
//! are those of the program.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde_json::{Value, json};

use crate::{
    command::Author,
    faulty::FaultyRegistry,
    forge::Sigstore,
    gateway::{HOUR, TestGateway, bundle},
    index::{code_below, metric_names, root, source},
};

const README: &str = "README.md";
const GUIDE: &str = "config/README.md";

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut checked = 0;
    let mut broken = Vec::new();
    for page in [README, GUIDE] {
        let text = source(page);
        let folder = Path::new(page).parent().unwrap();
        for link in links(&text) {
            checked += 1;
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => root().join(page),
                file => root().join(folder).join(file),
            };
            let is_there = match (target.exists(), heading) {
                (true, "") => true,
                (true, heading) => {
                    let text = fs::read_to_string(&target).unwrap_or_default();
                    headings(&text).any(|there| there == heading)
                }
                (false, _) => false,
            };
            if !is_there {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(checked > 40, "only {checked} links were found");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_table_of_contents_has_every_section_in_order() {
    let text = source(GUIDE);
    let sections = text.lines().filter_map(|line| line.strip_prefix("## "));
    let listed = text.lines().filter_map(|line| line.strip_prefix("- ["));
    let listed = listed.filter_map(|line| Some(line.split_once("](#")?.0));
    assert_eq!(
        sections.collect::<Vec<_>>(),
        listed.collect::<Vec<_>>(),
        "{GUIDE}"
    );
}

/// A configuration, or a part of one to which only `version` and `clients` are added.
#[test]
fn every_configuration_is_accepted() {
    let author = author_with_files();
    let mut checked = 0;
    for page in [README, GUIDE] {
        for block in blocks(&source(page), "yaml") {
            let mut config: Value = serde_saphyr::from_str(&block)
                .unwrap_or_else(|error| panic!("{page}: {error}\n{block}"));
            if ["services", "scrape_configs"]
                .iter()
                .any(|key| config.get(key).is_some())
            {
                continue;
            }
            for (key, value) in [
                ("version", json!(1)),
                (
                    "clients",
                    json!([{ "name": "anyone", "anonymous": true, "bundles": ["**"] }]),
                ),
            ] {
                if config.get(key).is_none() {
                    config[key] = value;
                }
            }
            author.write("bundlegate.yaml", &config.to_string());
            let ran = author.line("config check bundlegate.yaml");
            assert_eq!(ran.code, 0, "{page}: {}\n{block}", ran.stderr);
            checked += 1;
        }
    }
    assert!(checked >= 14, "only {checked} configurations were found");
}

#[test]
fn every_command_has_its_flags() {
    let author = Author::new();
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    let mut checked = 0;
    for page in [README, GUIDE] {
        for command in commands(&source(page)) {
            let mut words = command.split_whitespace();
            let mut verb = vec![words.next().unwrap()];
            if matches!(verb[..], ["config" | "rollout"]) {
                verb.extend(words.next());
            }
            let help = helps.entry(verb.join(" ")).or_insert_with(|| {
                verb.push("--help");
                let ran = author.run(&verb);
                assert_eq!(ran.code, 0, "{page}: {command}: {}", ran.stderr);
                ran.stdout
            });
            for flag in words.filter(|word| word.starts_with('-')) {
                let flag = flag.split('=').next().unwrap_or_default();
                let is_there = help
                    .split(|char: char| char.is_whitespace() || char == ',' || char == '=')
                    .any(|word| word == flag);
                assert!(is_there, "{page}: {command}: no {flag} in {help}");
            }
            checked += 1;
        }
    }
    assert!(checked > 25, "only {checked} commands were found");
}

#[test]
fn every_metric_is_in_the_table() {
    let declared = metric_names();
    assert!(declared.len() > 20, "{declared:?}");
    let table: BTreeSet<_> = metric_table().into_keys().collect();
    assert_eq!(table, declared);
}

#[tokio::test]
async fn the_table_has_the_type_and_the_labels_of_each_metric() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = TestGateway::before(&registry, HOUR).await;
    gate.get("", 0).await.error_for_status().unwrap();
    // A request that is refused, and one that is held and answered.
    let unknown = gate.http.get(&gate.url).bearer_auth("unknown");
    unknown.send().await.unwrap();
    let table = metric_table();
    let page = gate.admin_text("/metrics").await;
    let mut checked = BTreeSet::new();
    for line in page.lines() {
        if let Some(declaration) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declaration.split_once(' ').unwrap();
            let Some(row) = table.get(name) else {
                // Those of the process, as every client library has them.
                assert!(name.starts_with("process_"), "{name} is not in {GUIDE}");
                continue;
            };
            assert_eq!(row.kind, kind, "{name}");
        } else if !line.starts_with('#') {
            let (name, labels) = labels_of(line);
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .filter(|family| table.contains_key(*family))
                .unwrap_or(name);
            let Some(row) = table.get(family) else {
                continue;
            };
            assert_eq!(row.labels, labels, "{line}");
            checked.insert(family.to_owned());
        }
    }
    assert!(checked.len() > 12, "only {checked:?}");
}

/// The reasons in error bodies, and the labels of refused requests.
#[test]
fn every_reason_is_in_the_guide() {
    let guide = source(GUIDE);
    let mut reasons = BTreeSet::new();
    for code in code_below("src/server") {
        let words = code.split_whitespace().collect::<Vec<_>>().join(" ");
        for after in words.split("StatusCode::").skip(1) {
            // The status, then the reason.
            let argument = after.split_once(", \"").filter(|(status, _)| {
                status
                    .bytes()
                    .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
            });
            let reason = argument.and_then(|(_, rest)| rest.split('"').next());
            reasons.extend(reason.map(str::to_owned));
        }
    }
    assert!(reasons.len() > 10, "{reasons:?}");
    // `internal` is a failure within the program.
    let missing: Vec<_> = reasons
        .iter()
        .filter(|reason| *reason != "internal" && !guide.contains(&format!("`{reason}`")))
        .collect();
    assert!(missing.is_empty(), "not in {GUIDE}: {missing:?}");
}

/// In the tables of [`GUIDE`] whose first column is `bundlegate says`, `…` stands for what differs.
#[test]
fn every_message_is_one_of_the_program() {
    let code: String = code_below("src")
        .iter()
        .map(|code| joined_literals(code))
        .collect();
    let mut checked = 0;
    let mut missing = Vec::new();
    for row in rows(&source(GUIDE), "bundlegate says") {
        for message in row[0].split('`').skip(1).step_by(2) {
            checked += 1;
            let parts = message
                .split('…')
                .map(|part| part.trim_matches([' ', ':', ',']));
            let unknown = parts
                .filter(|part| part.len() > 3)
                .find(|part| !code.contains(*part));
            missing.extend(unknown.map(|part| format!("{part:?} of {message:?}")));
        }
    }
    assert!(checked > 20, "only {checked} messages were found");
    assert!(missing.is_empty(), "not in the sources: {missing:#?}");
}

/// A row of the table of metrics.
struct MetricRow {
    kind: String,
    labels: BTreeSet<String>,
}

fn metric_table() -> BTreeMap<String, MetricRow> {
    let rows = rows(&source(GUIDE), "metric");
    let rows = rows.iter().map(|row| {
        let [name, kind, labels, _] = row.as_slice() else {
            panic!("a metric has four columns: {row:?}")
        };
        let labels = labels.split('`').skip(1).step_by(2);
        let row = MetricRow {
            kind: kind.clone(),
            labels: labels.map(str::to_owned).collect(),
        };
        (name.trim_matches('`').to_owned(), row)
    });
    rows.collect()
}

/// The name and the labels of a sample, without the label that makes a bucket of a histogram.
fn labels_of(sample: &str) -> (&str, BTreeSet<String>) {
    let Some((name, rest)) = sample.split_once('{') else {
        let name = sample.split(' ').next().unwrap_or_default();
        return (name, BTreeSet::new());
    };
    let labels = rest
        .split("\",")
        .filter_map(|label| label.split_once("=\""));
    let labels = labels.map(|(label, _)| label.to_owned());
    (name, labels.filter(|label| label != "le").collect())
}

/// The cells of every row of the tables whose first column has this title.
fn rows(page: &str, title: &str) -> Vec<Vec<String>> {
    let head = format!("| {title} |");
    let mut found = Vec::new();
    let mut is_within = false;
    for line in page.lines() {
        if !line.starts_with('|') {
            is_within = false;
        } else if line.starts_with(&head) {
            is_within = true;
        } else if is_within && !line.starts_with("|---") {
            let cells = line.trim_matches('|').split(" | ");
            found.push(cells.map(|cell| cell.trim().to_owned()).collect());
        }
    }
    assert!(!found.is_empty(), "no table {title}");
    found
}

/// The targets of links that are not on other machines.
fn links(page: &str) -> Vec<String> {
    let targets = page.split("](").skip(1);
    let targets = targets.filter_map(|rest| rest.split(')').next());
    targets
        .filter(|target| !target.contains("://"))
        .map(str::to_owned)
        .collect()
}

/// The anchors of the headings, as GitHub makes them.
fn headings(page: &str) -> impl Iterator<Item = String> {
    let lines = page.lines().filter(|line| line.starts_with('#'));
    lines.map(|line| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter_map(|char| match char {
            ' ' => Some('-'),
            char if char.is_alphanumeric() || "-_".contains(char) => Some(char),
            _ => None,
        });
        kept.collect()
    })
}

/// The fenced blocks in a language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let begin = format!("\n```{language}\n");
    let fenced = page.split(begin.as_str()).skip(1);
    let fenced = fenced.filter_map(|rest| rest.split("\n```").next());
    fenced.map(str::to_owned).collect()
}

/// What follows `bundlegate` in each command that is written on a line of its own.
fn commands(page: &str) -> Vec<String> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("    "));
    let commands = lines.filter_map(|line| line.strip_prefix("bundlegate "));
    commands.map(str::to_owned).collect()
}

/// The code with each literal that goes on in another line as one line.
fn joined_literals(code: &str) -> String {
    let mut joined = String::new();
    let mut rest = code;
    while let Some((before, after)) = rest.split_once("\\\n") {
        joined.push_str(before);
        rest = after.trim_start();
    }
    joined + rest
}

/// A folder with the files that the configurations name.
fn author_with_files() -> Author {
    let author = Author::new();
    let certified = rcgen::generate_simple_self_signed(["gate.example".into()]).unwrap();
    let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    for name in ["tls", "client"] {
        author.write(&format!("{name}.crt"), &certificate);
        author.write(&format!("{name}.key"), &key);
    }
    for name in [
        "clients-ca.pem",
        "issuer-ca.pem",
        "corp_ca.pem",
        "otel-ca.pem",
        "valkey-ca.pem",
    ] {
        author.write(name, &certificate);
    }
    let public = rcgen::KeyPair::generate().unwrap().public_key_pem();
    for name in ["release.pub", "cosign.pub", "team.pub"] {
        author.write(name, &public);
    }
    author.write("opa_signing.pem", &certified.signing_key.serialize_pem());
    for name in [
        "edge.tokens",
        "branch.tokens",
        "admin.tokens",
        "webhook.token",
        "github.secret",
        "ghcr.password",
        "mirror.password",
        "proxy.password",
        "valkey.password",
    ] {
        author.write(name, &format!("s3cret-{name}\n"));
    }
    let hash = bcrypt::hash_with_salt("s3cret", 4, [7; 16]).unwrap();
    author.write("branch.users", &format!("branch:{hash}\n"));
    // The hosts of the guide, whose helpers are not on this machine.
    let [helpers] = blocks(&source(GUIDE), "json").try_into().unwrap();
    let helpers: Value = serde_json::from_str(&helpers).unwrap();
    let hosts = helpers["credHelpers"].as_object().unwrap().keys();
    let hosts = hosts.map(String::as_str);
    let auths: serde_json::Map<_, _> = hosts
        .chain(["quay.io", "https://index.docker.io/v1/"])
        .map(|host| (host.to_owned(), json!({ "auth": "YTpi" })))
        .collect();
    for name in ["quay/.dockerconfigjson", "hub.json", "helpers.json"] {
        author.write(name, &json!({ "auths": auths }).to_string());
    }
    author.write("otlp.headers", "Authorization: Bearer s3cret\n");
    let key = json!({
        "kty": "EC", "crv": "P-256", "kid": "1",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    });
    author.write("jwks.json", &json!({ "keys": [key] }).to_string());
    let root = Sigstore::new().trusted_root().to_string();
    author.write("corp_trusted_root.json", &root);
    author.write("trusted_root.json", &root);
    let rule = "package signature\n\nallow if input.predicateType != \"\"\n";
    author.write("provenance.rego", rule);
    author
}
