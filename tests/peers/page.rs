//! The page at `/` of the admin listener in headless Chromium.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    process::Command,
    sync::mpsc::{Receiver, channel},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

use crate::{
    shared::accept,
    support::{
        Artifact, GatewayConfig, KeyPair, Kind, PATIENCE, Process, Registry, TestGateway, http,
        poll_until, run,
    },
};

/// Text that sets an attribute of the document wherever it becomes markup.
const HOSTILE: &str = "</td></main><script>document.documentElement.dataset.ran=1</script>\
                       <img src=x onerror=document.documentElement.dataset.ran=1>\" \
                       onmouseover=\"document.documentElement.dataset.ran=1\" \u{202e}gnisrever";

/// A page of Chromium, which is controlled by its DevTools protocol.
struct Browser {
    process: Process,
    commands: File,
    messages: Receiver<Value>,
    session: String,
    last: u64,
    is_loaded: bool,
    /// Errors of the page and of its policy.
    errors: Vec<String>,
    _folder: TempDir,
}

impl Browser {
    /// Opens a page, with scripts or without, in a window of this size.
    async fn open(url: &str, has_scripts: bool, (width, height): (u32, u32)) -> Self {
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        run("mkfifo", folder.path(), &["commands", "messages"]).await;
        // The browser reads commands from descriptor 3 and writes messages to descriptor 4.
        let line = "exec chromium --headless --no-sandbox --disable-gpu --no-first-run \
                    --disable-dev-shm-usage --user-data-dir=profile --remote-debugging-pipe \
                    3<commands 4>messages";
        let mut command = Command::new("sh");
        command.current_dir(folder.path()).args(["-c", line]);
        let process = Process::start("chromium", &mut command);
        // Opening a pipe waits for the other end.
        let commands = OpenOptions::new().write(true).open(at("commands")).unwrap();
        let output = File::open(at("messages")).unwrap();
        let (sender, messages) = channel();
        thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let Ok(message) = message else { return };
                let message = serde_json::from_slice(&message).unwrap();
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            process,
            commands,
            messages,
            session: String::new(),
            last: 0,
            is_loaded: false,
            errors: Vec::new(),
            _folder: folder,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", target);
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", metrics);
        browser.call("Log.enable", json!({}));
        browser.call("Runtime.enable", json!({}));
        if !has_scripts {
            browser.call(
                "Emulation.setScriptExecutionDisabled",
                json!({ "value": true }),
            );
        }
        browser.call("Page.enable", json!({}));
        browser.call("Page.navigate", json!({ "url": url }));
        browser.until_loaded();
        browser
    }

    fn message(&mut self) -> Value {
        let message = self.messages.recv_timeout(PATIENCE);
        let message = message.unwrap_or_else(|_| panic!("no message: {}", self.process.log()));
        let entry = &message["params"]["entry"];
        match message["method"].as_str() {
            Some("Log.entryAdded") if entry["level"] == "error" => {
                self.errors.push(entry["text"].to_string());
            }
            Some("Page.loadEventFired") => self.is_loaded = true,
            Some("Runtime.exceptionThrown") => self.errors.push(message["params"].to_string()),
            _ => {}
        }
        message
    }

    /// The result of a command.
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut command = json!({ "id": self.last, "method": method, "params": params });
        if !self.session.is_empty() {
            command["sessionId"] = json!(self.session);
        }
        let command = format!("{command}\0");
        self.commands.write_all(command.as_bytes()).unwrap();
        loop {
            let mut message = self.message();
            if message["id"] == self.last {
                assert_eq!(message.get("error"), None, "{method}");
                return message["result"].take();
            }
        }
    }

    fn until_loaded(&mut self) {
        while !self.is_loaded {
            self.message();
        }
    }

    /// The value of an expression in the page.
    fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let mut result = self.call("Runtime.evaluate", params);
        assert_eq!(result.get("exceptionDetails"), None, "{expression}");
        result["result"]["value"].take()
    }

    /// The document as the browser has parsed it.
    fn html(&mut self) -> String {
        let document = self.call("DOM.getDocument", json!({}));
        let node = json!({ "nodeId": document["root"]["nodeId"] });
        let html = self.call("DOM.getOuterHTML", node);
        html["outerHTML"].as_str().unwrap().to_owned()
    }

    /// Types into the element that has the focus. A line feed is the Enter key.
    fn enter(&mut self, text: &str) {
        for character in text.chars() {
            let (key, text) = match character {
                '\n' => ("Enter".to_owned(), "\r".to_owned()),
                other => (other.to_string(), other.to_string()),
            };
            let code = if character == '\n' { 13 } else { 0 };
            let mut event = json!({ "type": "keyDown", "key": key, "text": text, "windowsVirtualKeyCode": code });
            self.call("Input.dispatchKeyEvent", event.clone());
            event["type"] = json!("keyUp");
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Gives the focus to an element, also where scripts are off.
    fn focus(&mut self, selector: &str) {
        let document = self.call("DOM.getDocument", json!({}));
        let query = json!({ "nodeId": document["root"]["nodeId"], "selector": selector });
        let node = self.call("DOM.querySelector", query);
        self.call("DOM.focus", json!({ "nodeId": node["nodeId"] }));
    }

    /// Waits until an expression is true.
    async fn until(&mut self, expression: &str) {
        let holds = async || (self.value(expression) == true).then_some(());
        poll_until(expression, holds).await;
    }
}

/// A registry whose every answer is an error with a hostile message, and its address.
async fn hostile_registry() -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let error =
        json!({ "errors": [{ "code": "MANIFEST_INVALID", "message": HOSTILE }] }).to_string();
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{error}",
        error.len()
    );
    let serving = accept(listener, None, move |mut stream| {
        let answer = answer.clone();
        async move {
            let _ = stream.read(&mut [0; 16 << 10]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, serving)
}

/// A gateway with 500 bundles: one whose revision is hostile, one that is refused, and one whose
/// registry is hostile; also the first registry.
async fn gateway_of_500() -> (TestGateway, Registry, KeyPair, JoinSet<()>) {
    let registry = Registry::start(Kind::Distribution).await;
    let plain = Artifact::answering("first").await;
    registry.push("acme/plain:live", &plain.file()).await;
    let policy = [("authz.rego", "package authz\n")];
    let hostile = Artifact::built(HOSTILE, &policy).await;
    registry.push("acme/hostile:live", &hostile.file()).await;
    let (address, serving) = hostile_registry().await;
    let key = KeyPair::generate().await;
    let mut config = GatewayConfig::with_trust(json!({
        "authorities": { "release-key": { "keys": [key.public()], "tlog": "none" } },
        "policies": {
            "release": { "require": { "any_of": ["release-key"] } },
            "open": "unsigned",
        },
    }));
    for number in 0..497 {
        let name = format!("team-{:02}/service-{number:03}", number % 20);
        config = config.bundle(&name, &registry, "acme/plain:live");
    }
    config = config
        .bundle("hostile/revision", &registry, "acme/hostile:live")
        .bundle("hostile/registry", &registry, "acme/plain:live")
        .bundle("refused", &registry, "acme/plain:live");
    for bundle in config.0["bundles"].as_object_mut().unwrap().values_mut() {
        (bundle["trust"], bundle["poll"]) = (json!("open"), json!("5s"));
    }
    config.0["bundles"]["refused"]["trust"] = json!("release");
    config.0["bundles"]["hostile/registry"]["reference"] = json!(format!("{address}/acme/x:live"));
    config.0["registries"][address] = json!({ "scheme": "http" });
    let gateway = TestGateway::start(config).await;
    for (name, what) in [
        ("team-16/service-496", "serving"),
        ("hostile/revision", "serving"),
        ("refused", "withdrawn"),
    ] {
        gateway
            .status_when(name, what, |status| status["state"] == what)
            .await;
    }
    gateway
        .status_when("hostile/registry", "failed", |status| {
            status["last_failure"].is_object()
        })
        .await;
    (gateway, registry, key, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_becomes_a_script_with_scripts_on_and_off() {
    // Unescaped and without a policy the text does what it wants.
    let raw = format!("data:text/html,<html><body>{HOSTILE}");
    let mut control = Browser::open(&raw, true, (800, 600)).await;
    control
        .until("document.documentElement.dataset.ran === '1'")
        .await;

    let (gateway, _registry, _key, _serving) = gateway_of_500().await;
    let url = format!("http://{}/", gateway.admin);
    for (has_scripts, size) in [
        (true, (1280, 900)),
        (false, (1280, 900)),
        (true, (390, 844)),
    ] {
        let mut browser = Browser::open(&url, has_scripts, size).await;
        let html = browser.html();
        let has = |text: &str| html.contains(text);
        assert_eq!(html.matches("<tbody role=\"rowgroup\"").count(), 500);
        // In the order of their problems.
        let place = |name: &str| html.find(&format!("id=\"bundle:{name}\"")).unwrap();
        assert!(place("refused") < place("hostile/registry"));
        assert!(place("hostile/registry") < place("hostile/revision"));
        // Both texts are there.
        for name in ["hostile/registry", "hostile/revision"] {
            let rows = html[place(name)..].split("</tbody>").next().unwrap();
            assert!(rows.contains("&lt;script&gt;document"), "{rows}");
        }
        assert!(has("signature") && has("Check failed"), "{html}");
        assert!(has(r"\u{202e}gnisrever"), "{html}");
        assert!(
            !has("data-ran") && !has("<img") && !has("\u{202e}"),
            "{html}"
        );
        assert_eq!(html.matches("<script").count(), 1);
        // The style sheet and the script are those that the policy permits.
        assert_eq!(browser.errors, [""; 0]);
        if has_scripts {
            browser
                .until("document.getElementById('live').textContent === 'Live'")
                .await;
            let width = "document.documentElement.scrollWidth <= innerWidth";
            assert_eq!(browser.value(width), true, "{size:?}");
            let fonts = "getComputedStyle(document.querySelector('.badge')).borderRadius !== '0px'";
            assert_eq!(browser.value(fonts), true, "the style sheet applies");
        } else {
            assert!(has(">Static<"), "the script did not run");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_shows_up_without_a_reload() {
    let (mut gateway, registry, _key, _serving) = gateway_of_500().await;
    let url = format!("http://{}/", gateway.admin);
    let mut browser = Browser::open(&url, true, (1280, 900)).await;
    // What a user has done stays: a mark of this document, the filter with the focus, and details.
    let prepare = "window.mark = 1;
        const input = document.getElementById('filter');
        input.focus();
        input.value = 'TEAM-07/ first';
        input.dispatchEvent(new Event('input'));
        document.getElementById('details:team-07/service-007').open = true;";
    browser.value(prepare);
    let shown = "[...document.querySelectorAll('#list tbody')].filter((one) => !one.hidden).length";
    assert_eq!(browser.value(shown), 25);
    assert_eq!(
        browser.value("document.getElementById('shown').textContent"),
        "25 of 500 shown"
    );

    let second = Artifact::answering("second").await;
    let digest = registry.push("acme/plain:live", &second.file()).await;
    let row = "document.getElementById('bundle:team-07/service-007')";
    browser
        .until(&format!("{row}.dataset.version === '{digest}'"))
        .await;
    let stays = format!(
        "window.mark === 1 && document.activeElement.id === 'filter'
         && document.getElementById('filter').value === 'TEAM-07/ first'
         && {row}.querySelector('details').open"
    );
    assert_eq!(browser.value(&stays), true);
    // The revision is another, so that the filter finds nothing once all have changed.
    browser.until(&format!("{shown} === 0")).await;

    // A bundle that is removed is gone.
    let mut config = gateway.config();
    config.0["bundles"]
        .as_object_mut()
        .unwrap()
        .remove("team-07/service-007");
    gateway.reconfigure(&config);
    browser.until(&format!("{row} === null")).await;

    // A gateway that is gone is told, with the time, and that it is back as well.
    gateway.runner.process.kill();
    let told = "!document.getElementById('unreachable').hidden
        && /can't be reached since .*\\d/.test(document.getElementById('unreachable').textContent)";
    browser.until(told).await;
    gateway.restart().await;
    browser
        .until("document.getElementById('unreachable').hidden && window.mark === 1")
        .await;
    assert_eq!(
        browser.value("document.querySelectorAll('#list tbody').length"),
        499
    );
}

/// Requests of a client that downloads a version twice and goes on with another one.
async fn fail_to_activate(gateway: &TestGateway, client: &str, bundle: &str) {
    for _ in 0..2 {
        let request = http().get(format!("{}/bundles/{bundle}", gateway.url));
        let request = request.header("bundlegate-client", client);
        let request = request.header("if-none-match", "\"old\"").timeout(PATIENCE);
        let response = request.send().await.unwrap().error_for_status().unwrap();
        response.bytes().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_fails_shows_up_and_a_search_finds_it() {
    let (gateway, _registry, _key, _serving) = gateway_of_500().await;
    let url = format!("http://{}/", gateway.admin);
    let mut browser = Browser::open(&url, true, (1280, 900)).await;
    browser.value("window.mark = 1");
    browser.focus("#search");
    // A slash puts the focus into the filter of bundles, except while a user types.
    browser.enter("opa/b");
    fail_to_activate(&gateway, "opa/bad", "team-07/service-007").await;
    let list = "document.getElementById('client-list').textContent";
    browser.until(&format!("{list}.includes('opa/bad')")).await;
    let row = "document.getElementById('bundle:team-07/service-007')";
    browser
        .until(&format!("{row}.classList.contains('clients-behind')"))
        .await;
    let stays = "window.mark === 1 && document.activeElement.id === 'search'
        && document.getElementById('search').value === 'opa/b'
        && document.getElementById('filter').value === ''";
    assert_eq!(browser.value(stays), true);
    assert_eq!(browser.errors, [""; 0]);

    // The browser sends the form itself.
    for (has_scripts, size) in [(true, (390, 844)), (false, (1280, 900))] {
        let mut browser = Browser::open(&url, has_scripts, size).await;
        browser.focus("#search");
        browser.is_loaded = false;
        browser.enter("PA/BA\n");
        browser.until_loaded();
        let html = browser.html();
        assert!(html.contains("Clients that match the search: 1,"), "{html}");
        assert!(html.contains("value=\"PA/BA\""), "{html}");
        assert!(html.contains("team-07/service-007"), "{html}");
        assert_eq!(browser.errors, [""; 0]);
        if has_scripts {
            let width = "document.documentElement.scrollWidth <= innerWidth";
            assert_eq!(browser.value(width), true);
        }
    }

    // The list of a search stays that of the search while it is updated.
    let mut browser = Browser::open(&format!("{url}?search=opa%2Fbad"), true, (1280, 900)).await;
    fail_to_activate(&gateway, "another", "team-07/service-007").await;
    browser
        .until(&format!("{row}.textContent.includes('2 failing')"))
        .await;
    assert_eq!(browser.value(&format!("{list}.includes('opa/bad')")), true);
    assert_eq!(browser.value(&format!("{list}.includes('another')")), false);
    // What is wrong with a query is on the page, which stays live.
    let mut browser = Browser::open(&format!("{url}?state=bad"), true, (1280, 900)).await;
    browser
        .until("document.getElementById('live').textContent === 'Live' && performance.getEntriesByType('resource').length > 0")
        .await;
    assert_eq!(
        browser.value("document.getElementById('unreachable').hidden"),
        true
    );
    assert_eq!(
        browser.value(&format!("{list}.includes('is no state')")),
        true
    );
}
