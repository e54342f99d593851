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
            .said("configuration refused: the old trust stays", |_| true)
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
