//! The set-ups of `README.md` and `config/README.md`, done as they are written there.

use std::{fs, path::Path, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    shared::issuer::{CLIENT, Issuer},
    support::{
        Artifact, Ca, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Process, Registry,
        TestGateway, free_address, http, long_polling, poll_until, program, run,
    },
};

const README: &str = include_str!("../../README.md");
const GUIDE: &str = include_str!("../../config/README.md");

#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_commands_lead_from_a_registry_to_production() {
    let registry = Registry::start(Kind::Debian).await;
    let folder = policy_folder().await;
    let section = section(README, "Serve bundles from a registry", &registry.host);
    let [publish, serve, opa, ask] = blocks(&section).try_into().unwrap();
    typed(&folder, &publish).await;
    let [config] = fenced(&section, "yaml").try_into().unwrap();
    fs::write(folder.path().join("bundlegate.yaml"), &config).unwrap();
    typed(&folder, line_with(&serve, " config check ")).await;
    // The commands run as written, except for ports, which may be taken, and relative paths.
    let gate = TestGateway::start(in_folder(&config, &folder)).await;
    let opa = opa.replace("http://127.0.0.1:8080", &gate.url);
    let opa = Opa::by_command(OpaVersion::Newest, &opa).await;
    opa.decides("authz/allow", &json!(false)).await;
    let ask = ask.replace("127.0.0.1:8181", &opa.address).replace(
        "bundlegate status",
        &format!("bundlegate status --admin http://{}", gate.admin),
    );
    let told = typed(&folder, &ask).await;
    assert!(
        told.contains(r#"{"result":{"allow":false,"rights":["read"]}}"#),
        "{told}"
    );
    assert!(told.contains("serving") && told.contains("release-key"));
    to_production(&registry, &folder, gate).await;
}

/// What follows in the same folder.
async fn to_production(registry: &Registry, folder: &TempDir, mut gate: TestGateway) {
    let section = section(README, "To production", &registry.host);
    let [certificate, tokens, policies, run_opa] = blocks(&section).try_into().unwrap();
    for commands in [certificate, tokens, policies] {
        typed(folder, &commands).await;
    }
    let [config, opa, prometheus] = fenced(&section, "yaml").try_into().unwrap();
    fs::write(folder.path().join("bundlegate.yaml"), &config).unwrap();
    typed(folder, "bundlegate config check bundlegate.yaml").await;
    gate.restart_with(in_folder(&config, folder)).await;
    for bundle in ["authz/live", "authz/v1", "branch"] {
        gate.status_when(bundle, "served", |status| status["state"] == "serving")
            .await;
    }
    let url = format!("https://localhost:{}", gate.data.port());
    let opa = opa.replace("https://localhost:8443", &url);
    // The token of another client leads to the answer about an unknown bundle.
    for (token, served) in [("edge.tokens", true), ("branch.tokens", false)] {
        let opa = opa.replace("edge.tokens", token);
        let file = folder.path().join("opa.yaml");
        fs::write(&file, absolute(&opa, folder)).unwrap();
        let command = run_opa.replace("opa.yaml", file.to_str().unwrap());
        let opa = Opa::by_command(OpaVersion::Newest, &command).await;
        match served {
            true => drop(opa.decides("authz/allow", &json!(false)).await),
            false => {
                let message = "Bundle load failed: server replied with Not Found";
                opa.fails_with(message).await;
            }
        }
    }
    let prometheus = prometheus.replace("127.0.0.1:8090", &gate.admin.to_string());
    fs::write(folder.path().join("prometheus.yml"), prometheus).unwrap();
    scraped(folder).await;
}

/// Prometheus has the three bundles soon.
async fn scraped(folder: &TempDir) {
    let address = free_address();
    let mut command = Command::new(program("prometheus"));
    command.current_dir(folder.path()).args([
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        &format!("--web.listen-address={address}"),
    ]);
    let _process = Process::start("prometheus", &mut command);
    let query = "sum(bundlegate_bundle_state{state=\"serving\"})";
    let url = format!("http://{address}/api/v1/query");
    let url = reqwest::Url::parse_with_params(&url, [("query", query)]).unwrap();
    poll_until("Prometheus to have three bundles", async || {
        let answer = http().get(url.clone()).send().await.ok()?;
        let answer: Value = serde_json::from_str(&answer.text().await.ok()?).ok()?;
        (answer["data"]["result"][0]["value"][1] == "3").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authors_commands_lead_from_a_folder_to_a_signed_artifact() {
    let registry = Registry::start(Kind::Distribution).await;
    let section = section(README, "Build, sign and push policies", &registry.host);
    let [commands, with_other_tools] = blocks(&section).try_into().unwrap();
    let folder = policy_folder().await;
    run("cosign", folder.path(), &["generate-key-pair"]).await;
    for line in commands.lines() {
        typed(&folder, line).await;
    }
    assert!(folder.path().join("carry/index.json").exists());
    let arguments = "eval -b bundle.tar.gz -i policy/input.json -f raw data.authz.allow";
    let arguments: Vec<_> = arguments.split(' ').collect();
    assert_eq!(run("opa", folder.path(), &arguments).await, "false");
    typed(&folder, &with_other_tools).await;
    let verify = format!(
        "bundlegate verify --plain-http --key cosign.pub {}",
        registry.reference("acme/authz:live")
    );
    typed(&folder, &verify).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_clients_are_served_with_the_guides_configurations_of_opa() {
    let (registry, key) = (
        Registry::start(Kind::Distribution).await,
        KeyPair::generate().await,
    );
    let artifact = Artifact::answering("first").await;
    let digest = registry.push("acme/authz:live", &artifact.file()).await;
    key.sign(&registry, &format!("acme/authz@{digest}")).await;
    let (ca, folder) = (Ca::new(), TempDir::new().unwrap());
    let issuer = Issuer::start(Some(ca.issue("issuer").server_tls())).await;
    let write = |name: &str, text: &[u8]| fs::write(folder.path().join(name), text).unwrap();
    write("ca.pem", &fs::read(ca.file()).unwrap());
    write("clients-ca.pem", &fs::read(ca.file()).unwrap());
    write("issuer-ca.pem", &fs::read(ca.file()).unwrap());
    let shown = ca.issue_for("one.opa.example", &["one.opa.example"]);
    write("opa.crt", &fs::read(&shown.certificate).unwrap());
    write("opa.key", &fs::read(&shown.key).unwrap());
    write("edge.tokens", b"t0ken\n");
    write("token", b"t0ken\n");
    write("jwt", issuer.token(CLIENT.0, 300).as_bytes());
    write("jwks.json", issuer.jwks().to_string().as_bytes());
    // The user and the password of the guide.
    let guide = GUIDE.replace("https://issuer.example", &issuer.url);
    let section = section(&guide, "Clients", &registry.host);
    let basic = section.split("token: \"").find_map(|rest| {
        let token = rest.split('"').next()?;
        STANDARD.decode(token).ok()
    });
    let basic = String::from_utf8(basic.unwrap()).unwrap();
    let (user, password) = basic.split_once(':').unwrap();
    let hash = bcrypt::hash_with_salt(password, 4, [7; 16]).unwrap();
    write("branch.users", format!("{user}:{hash}\n").as_bytes());

    let (mut clients, mut opas) = (Vec::new(), Vec::new());
    for block in fenced(&section, "yaml") {
        let text = absolute(&block, &folder);
        let value: Value = serde_saphyr::from_str(&text).unwrap();
        match value.get("clients").and_then(Value::as_array) {
            Some(listed) => clients.extend(listed.iter().cloned()),
            None => opas.push(value),
        }
    }
    // The public bundle has another name, so that each client needs its credential.
    for client in &mut clients {
        let is_anonymous = client.get("anonymous").is_some();
        client["bundles"] = json!([if is_anonymous { "public" } else { "authz" }]);
    }
    let config = GatewayConfig::trusting(&key)
        .bundle("authz", &registry, "acme/authz:live")
        .bundle("public", &registry, "acme/authz:live")
        .secured(&ca.issue("gate"))
        .with("/server/tls/client_ca", json!(ca.file()))
        .with("/clients", json!(clients));
    let gate = TestGateway::start(config).await;
    gate.status_when("authz", "served", |status| status["state"] == "serving")
        .await;
    assert_eq!(opas.len(), 6, "{opas:?}");
    for of_guide in opas {
        let service = of_guide["services"]["gate"].clone();
        // The first one is without a credential.
        let name = match service.get("credentials") {
            Some(_) => "authz",
            None => "public",
        };
        let mut opa = long_polling(&gate.url, name);
        opa["services"]["gate"] = service;
        opa["services"]["gate"]["url"] = json!(gate.url);
        for version in [OpaVersion::Newest, OpaVersion::V0_70] {
            let file = folder.path().join("opa.json");
            fs::write(&file, opa.to_string()).unwrap();
            let command = format!(
                "env SSL_CERT_FILE={} opa run --server --config-file {}",
                ca.file().display(),
                file.display()
            );
            let running = Opa::by_command(version, &command).await;
            running.answers("first").await;
            println!("guide | {version:?} | {}", opa["services"]["gate"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn opa_says_what_the_guide_quotes() {
    let (registry, key) = (
        Registry::start(Kind::Distribution).await,
        KeyPair::generate().await,
    );
    let ca = Ca::new();
    let config = with_two_bundles(&registry, &key).await;
    let plain = TestGateway::start(config.clone()).await;
    let named = ca.issue_for("named", &["gate.example"]);
    let named = TestGateway::start(config.clone().secured(&named)).await;
    let secured = config.secured(&ca.issue("gate"));
    let secured = secured.with("/server/tls/client_ca", json!(ca.file()));
    let secured = TestGateway::start(secured).await;
    let by_name = format!("https://localhost:{}", named.data.port());
    let https = plain.url.replace("http:", "https:");
    let http = secured.url.replace("https:", "http:");
    for (url, bundle, quoted) in [
        (&*plain.url, "secret", "server replied with Unauthorized"),
        (&plain.url, "absent", "server replied with Not Found"),
        ("http://127.0.0.1:9", "a", "connect: connection refused"),
        ("http://gate.invalid", "a", "no such host"),
        (
            &secured.url,
            "authz",
            "x509: certificate signed by unknown authority",
        ),
        (
            &https,
            "authz",
            "http: server gave HTTP response to HTTPS client",
        ),
        (&http, "authz", "malformed HTTP response"),
    ] {
        let config = long_polling(url, bundle);
        fails_as_quoted(OpaVersion::Newest, &config, quoted).await;
    }
    let other_ca = Ca::new();
    let stranger = other_ca.issue_for("opa", &["opa"]);
    let credentials = json!({
        "client_tls": { "cert": stranger.certificate, "private_key": stranger.key },
    });
    for (url, credentials, quoted) in [
        (
            &by_name,
            Value::Null,
            "x509: certificate is valid for …, not …",
        ),
        (&secured.url, credentials, "remote error: tls: …"),
    ] {
        let mut config = long_polling(url, "authz");
        let service = &mut config["services"]["gate"];
        service["tls"] = json!({ "ca_cert": ca.file() });
        if !credentials.is_null() {
            service["credentials"] = credentials;
        }
        fails_as_quoted(OpaVersion::Newest, &config, quoted).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn opa_says_what_the_guide_quotes_of_bundles_that_it_refuses() {
    let (registry, key) = (
        Registry::start(Kind::Distribution).await,
        KeyPair::generate().await,
    );
    let gate = TestGateway::start(with_two_bundles(&registry, &key).await).await;
    let mut two = long_polling(&gate.url, "authz");
    two["bundles"]["again"] = json!({ "service": "gate", "resource": "/bundles/again" });
    let mut small = long_polling(&gate.url, "authz");
    small["bundles"]["authz"]["size_limit_bytes"] = json!(8);
    for (version, config, quoted) in [
        (OpaVersion::Newest, &two, "have overlapping roots"),
        (OpaVersion::V0_70, &two, "detected overlapping roots in …"),
        (
            OpaVersion::Newest,
            &small,
            "exceeds configured size_limit_bytes",
        ),
    ] {
        fails_as_quoted(version, config, quoted).await;
    }
}

/// Two bundles that own the same paths and that anyone may read, and a client that may read others.
async fn with_two_bundles(registry: &Registry, key: &KeyPair) -> GatewayConfig {
    let artifact = Artifact::answering("first").await;
    let digest = registry.push("acme/authz:live", &artifact.file()).await;
    key.sign(registry, &format!("acme/authz@{digest}")).await;
    let clients = json!([
        { "name": "anyone", "anonymous": true, "bundles": ["authz", "again", "absent"] },
        { "name": "mesh", "jwt": {
            "jwks_url": "https://127.0.0.1:9/jwks", "issuer": "https://issuer.example", "audience": "bundlegate",
        }, "bundles": ["secret"] },
    ]);
    GatewayConfig::trusting(key)
        .bundle("authz", registry, "acme/authz:live")
        .bundle("again", registry, "acme/authz:live")
        .with("/clients", clients)
}

/// OPA can't get its bundle, and says so in the words that the guide quotes.
async fn fails_as_quoted(version: OpaVersion, config: &Value, quoted: &str) {
    assert!(GUIDE.contains(&format!("`{quoted}`")), "{quoted}");
    let opa = Opa::start(version, config).await;
    println!("guide | {}", opa.fails_with(quoted).await);
}

#[tokio::test]
async fn the_balancers_accept_the_guides_configurations() {
    let folder = TempDir::new().unwrap();
    let [haproxy, nginx] = fenced(&section(GUIDE, "Deployment", ""), "text")
        .try_into()
        .unwrap();
    let haproxy =
        format!("{haproxy}\nfrontend clients\n  bind 127.0.0.1:8080\n  default_backend replicas\n");
    fs::write(folder.path().join("haproxy.cfg"), haproxy).unwrap();
    run("haproxy", folder.path(), &["-c", "-f", "haproxy.cfg"]).await;
    let nginx =
        format!("pid pid; error_log errors; events {{}}\nhttp {{ access_log off;\n{nginx}\n}}\n");
    let nginx = nginx.replace("listen 80;", "listen unix:socket;");
    fs::write(folder.path().join("nginx.conf"), nginx).unwrap();
    let prefix = folder.path().display().to_string();
    let arguments = ["-t", "-p", &prefix, "-c", "nginx.conf", "-e", "errors"];
    run("nginx", folder.path(), &arguments).await;
}

/// Types commands in a folder, which have to work.
async fn typed(folder: &TempDir, commands: &str) -> String {
    let told = run("sh", folder.path(), &["-ec", commands]).await;
    println!("readme | {told}");
    told
}

fn line_with<'a>(commands: &'a str, part: &str) -> &'a str {
    commands.lines().find(|line| line.contains(part)).unwrap()
}

/// A folder that holds the example as `policy`.
async fn policy_folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example");
    let arguments = ["-R", example.to_str().unwrap(), "policy"];
    run("cp", folder.path(), &arguments).await;
    folder
}

/// A configuration whose files are in `folder`, with free ports.
fn in_folder(config: &str, folder: &TempDir) -> GatewayConfig {
    let mut config: Value = serde_saphyr::from_str(&absolute(config, folder)).unwrap();
    if config.get("server").is_none() {
        config["server"] = json!({});
    }
    config["server"]["listen"] = json!("127.0.0.1:0");
    config["server"]["admin"] = json!("127.0.0.1:0");
    GatewayConfig(config)
}

/// A text in which the names of files in `folder` are paths.
fn absolute(text: &str, folder: &TempDir) -> String {
    let mut text = text.to_owned();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        // A folder, such as that of a policy, or a word that is no file.
        if !name.contains('.') {
            continue;
        }
        let path = entry.path().display().to_string();
        for end in [" ", ",", "]", "\"", "\n"] {
            for start in [" ", "[", "\""] {
                text = text.replace(
                    &format!("{start}{name}{end}"),
                    &format!("{start}{path}{end}"),
                );
            }
        }
    }
    // The files of OPA, which are elsewhere in the guide.
    let file = |name: &str| folder.path().join(name).display().to_string();
    text.replace("/etc/opa/token", &file("token"))
        .replace("/var/run/secrets/bundlegate/token", &file("jwt"))
}

/// A section of a page, for a registry at `host`.
fn section(page: &str, title: &str, host: &str) -> String {
    let page = page.replace("127.0.0.1:5000", host);
    let (_, section) = page.split_once(&format!("\n## {title}\n")).unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    section.to_owned()
}

/// The blocks of commands of a section.
fn blocks(section: &str) -> Vec<String> {
    let blocks = section
        .split("\n\n")
        .filter(|block| block.starts_with("    "));
    blocks.map(|block| block.trim().to_owned()).collect()
}

/// The fenced blocks of a section in a language.
fn fenced(section: &str, language: &str) -> Vec<String> {
    let begin = format!("\n```{language}\n");
    let fenced = section.split(begin.as_str()).skip(1);
    let fenced = fenced.filter_map(|rest| rest.split("\n```").next());
    fenced.map(|block| format!("{block}\n")).collect()
}
