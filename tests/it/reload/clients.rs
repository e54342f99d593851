//! `clients` and their token files, which change while requests are served.

use super::*;

/// Only clients with a token of `edge.tokens` may read.
async fn locked(registry: &FaultyRegistry, signer: &Signer) -> TestGateway {
    let files = |folder: &TempDir| {
        fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
        fs::write(folder.path().join("edge.tokens"), "first\nsecond\n").unwrap();
    };
    let mut config = config(registry);
    config["clients"] =
        json!([{ "name": "edge", "bearer_token_file": "edge.tokens", "bundles": ["**"] }]);
    let gateway = TestGateway::start(files, &config).await;
    assert_eq!(gateway.asks("first", 60).await, StatusCode::OK);
    assert_eq!(gateway.asks("second", 0).await, StatusCode::OK);
    assert_eq!(gateway.asks("third", 0).await, StatusCode::UNAUTHORIZED);
    gateway
}

impl TestGateway {
    async fn asks(&self, token: &str, wait: u32) -> StatusCode {
        let request = self
            .http
            .get(format!("http://{}/bundles/authz", self.data))
            .bearer_auth(token);
        wishing(request, "", wait).send().await.unwrap().status()
    }

    /// Waits until a token opens something, or nothing.
    async fn asks_until(&self, token: &str, status: StatusCode) {
        let began = Instant::now();
        self.until("the token counts", async || {
            (self.asks(token, 0).await == status).then_some(())
        })
        .await;
        println!("{token}: {status} {:?} after the change", began.elapsed());
    }
}

/// A removed token was accepted once, and SIGHUP reported "unchanged".
#[tokio::test]
async fn a_token_counts_for_as_long_as_it_is_in_its_file() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let gateway = locked(&registry, &signer).await;
    gateway.write("edge.tokens", "second\nthird\n");
    gateway.asks_until("first", StatusCode::UNAUTHORIZED).await;
    let read = gateway
        .said("configuration read again", |line| line["clients"] == true)
        .await;
    assert_eq!(
        (&read["outcome"], &read["bundles"]),
        (&json!("applied"), &json!(0))
    );
    assert_eq!(gateway.asks("second", 0).await, StatusCode::OK);
    assert_eq!(gateway.asks("third", 0).await, StatusCode::OK);
    // Changes of the entries of `clients`, and of the files that they name, count as well.
    let mut config = config(&registry);
    gateway.write("other.tokens", "fourth\n");
    config["clients"] =
        json!([{ "name": "edge", "bearer_token_file": "other.tokens", "bundles": ["**"] }]);
    gateway.write("bundlegate.yaml", config.to_string());
    gateway.asks_until("fourth", StatusCode::OK).await;
    assert_eq!(gateway.asks("third", 0).await, StatusCode::UNAUTHORIZED);
    config["clients"][0]["bundles"] = json!(["other/*"]);
    gateway.write("bundlegate.yaml", config.to_string());
    gateway.asks_until("fourth", StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn a_token_that_is_taken_away_counts_no_more_whatever_else_is_wrong() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    for how in ["another mistake", "malformed", "empty", "gone"] {
        let gateway = locked(&registry, &signer).await;
        match how {
            "another mistake" => {
                let broken = fs::read_to_string(gateway.path("bundlegate.yaml"))
                    .unwrap()
                    .replace("any_of", "any");
                gateway.write("bundlegate.yaml", broken);
                gateway.write("edge.tokens", "second\nthird\n");
            }
            "malformed" => gateway.write("edge.tokens", "second\nfirst and third\n"),
            "empty" => gateway.write("edge.tokens", ""),
            _ => fs::remove_file(gateway.path("edge.tokens")).unwrap(),
        }
        gateway.asks_until("first", StatusCode::UNAUTHORIZED).await;
        gateway
            .said("configuration refused: the one in force stays", |_| true)
            .await;
        let left = if matches!(how, "empty" | "gone") {
            StatusCode::UNAUTHORIZED
        } else {
            StatusCode::OK
        };
        assert_eq!(gateway.asks("second", 0).await, left, "{how}");
        // A new token is not accepted while the configuration is refused.
        assert_eq!(
            gateway.asks("third", 0).await,
            StatusCode::UNAUTHORIZED,
            "{how}"
        );
        if how != "another mistake" {
            gateway.write("edge.tokens", "first\n");
            gateway.asks_until("first", StatusCode::OK).await;
            assert_eq!(
                gateway.asks("second", 0).await,
                StatusCode::UNAUTHORIZED,
                "{how}"
            );
        }
    }
}

/// The line of a user in a password file, with a hash that takes little time.
fn user(name: &str, password: &str) -> String {
    format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap())
}

/// Only the users of `edge.users` may read.
async fn with_users(registry: &FaultyRegistry, signer: &Signer, users: &[String]) -> TestGateway {
    let files = |folder: &TempDir| {
        fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
        fs::write(folder.path().join("edge.users"), users.concat()).unwrap();
    };
    let mut config = config(registry);
    config["clients"] = json!([{ "name": "edge", "basic_file": "edge.users", "bundles": ["**"] }]);
    TestGateway::start(files, &config).await
}

impl TestGateway {
    async fn asks_as(&self, user: &str, password: &str, tags: &str, wait: u32) -> Response {
        let request = self.http.get(format!("{}/bundles/authz", self.url));
        let request = request.basic_auth(user, Some(password));
        wishing(request, tags, wait).send().await.unwrap()
    }

    async fn asks_as_until(&self, user: &str, password: &str, status: StatusCode) {
        self.until("the user counts", async || {
            let response = self.asks_as(user, password, "", 0).await;
            (response.status() == status).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_user_counts_for_as_long_as_the_line_is_in_the_file_whatever_else_is_wrong() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let core = user("core", "c0re");
    let gateway = with_users(&registry, &signer, &[user("edge", "s3cret"), core.clone()]).await;
    let served = gateway.asks_as("edge", "s3cret", "", 60).await;
    assert_eq!(served.status(), StatusCode::OK);
    for (user, password) in [("edge", "c0re"), ("nobody", "s3cret"), ("edge", "")] {
        let refused = gateway.asks_as(user, password, "", 0).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{user}");
        let challenge = &refused.headers()["www-authenticate"];
        assert_eq!(challenge, "Basic realm=\"bundlegate\", charset=\"UTF-8\"");
        let message = error(refused).await["message"].to_string();
        assert!(
            message.contains("unknown user or wrong password"),
            "{message}"
        );
    }
    let bearer = gateway.asks("c0re", 0).await;
    assert_eq!(bearer, StatusCode::UNAUTHORIZED);
    // Another password, and another mistake in the configuration.
    gateway.write("edge.users", user("edge", "new") + &core);
    gateway
        .asks_as_until("edge", "s3cret", StatusCode::UNAUTHORIZED)
        .await;
    gateway.asks_as_until("edge", "new", StatusCode::OK).await;
    gateway.asks_as_until("core", "c0re", StatusCode::OK).await;
    let broken = fs::read_to_string(gateway.path("bundlegate.yaml")).unwrap();
    gateway.write("bundlegate.yaml", broken.replace("any_of", "any"));
    gateway.write("edge.users", format!("broken\n{core}"));
    gateway
        .asks_as_until("edge", "new", StatusCode::UNAUTHORIZED)
        .await;
    assert_eq!(
        gateway.asks_as("core", "c0re", "", 0).await.status(),
        StatusCode::OK
    );
    gateway
        .said(
            "what was removed from the file of this client is refused from now on",
            |line| line["key"] == "basic_file" && line["client"] == "edge",
        )
        .await;
    // Each refusal is counted, and one of a kind is logged, without the credential.
    for reason in ["password", "token"] {
        let sample = format!("bundlegate_unauthorized_requests_total{{reason=\"{reason}\"}}");
        assert!(gateway.metric(&sample).await >= 1.0, "{reason}");
    }
    let lines = gateway.lines("unauthorized request");
    let of_passwords = lines
        .iter()
        .filter(|line| line["reason"] == "unknown user or wrong password");
    assert_eq!(of_passwords.count(), 1, "{lines:?}");
    assert_eq!(lines[0]["address"], "127.0.0.1");
    let log = gateway.runner.process.log();
    for secret in ["s3cret", "c0re", "$2"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

/// A held request is authorized again when it is answered: the password was changed meanwhile.
#[tokio::test]
async fn a_held_request_of_a_user_that_is_removed_meanwhile_is_refused() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let core = user("core", "c0re");
    let gateway = with_users(&registry, &signer, &[user("edge", "s3cret"), core.clone()]).await;
    let served = gateway.asks_as("edge", "s3cret", "", 60).await;
    let etag = tag(&served);
    let held = async { gateway.asks_as("edge", "s3cret", &etag, 20).await.status() };
    let removed = async {
        gateway
            .status_when("authz", "one waits", |status| status["waiters"] == 1)
            .await;
        gateway.write("edge.users", &core);
        gateway
            .asks_as_until("edge", "s3cret", StatusCode::UNAUTHORIZED)
            .await;
    };
    let (status, ()) = tokio::join!(held, removed);
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
