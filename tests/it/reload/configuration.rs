//! A configuration that is refused, that names missing files, or that is read again on SIGHUP.

use std::time::Duration;

use tokio::time::sleep;

use super::*;

#[tokio::test]
async fn a_configuration_that_is_refused_leaves_the_old_trust_and_says_why() {
    let (signer, other) = (Signer::new(), Signer::new());
    let registry = registry(&signer).await;
    let key =
        |folder: &TempDir| fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
    let good = config(&registry);
    let gateway = TestGateway::start(key, &good).await;
    let etag = tag(&gateway.get("", 60).await);
    assert_eq!(
        gateway
            .metric("bundlegate_config_last_reload_successful")
            .await,
        1.0
    );
    // A configuration is applied as a whole or not at all: this one has another key, too.
    gateway.write("other.pub", other.public_pem());
    let mut broken = good.clone();
    broken["trust"]["authorities"]["release"]["keys"] = json!(["other.pub"]);
    broken["bundles"]["authz"]["trust"] = json!("relaese");
    gateway.write("bundlegate.yaml", broken.to_string());
    const REFUSED: &str = "configuration refused: the one in force stays";
    let refused = gateway.said(REFUSED, |_| true).await;
    let sentence = refused["error"].as_str().unwrap();
    assert!(
        sentence.contains("bundles.authz.trust: ") && sentence.contains("did you mean `release`?"),
        "{sentence}"
    );
    // SIGHUP logs it once more, and nothing else does: the configuration is read again every five
    // seconds while it is refused, and only real time shows that this logs nothing.
    gateway.hang_up();
    gateway
        .said(REFUSED, |line| line["cause"] == "SIGHUP")
        .await;
    sleep(Duration::from_secs(7)).await;
    assert_eq!(
        gateway.lines(REFUSED).len(),
        2,
        "{:?}",
        gateway.lines(REFUSED)
    );
    assert_eq!(
        gateway
            .metric("bundlegate_config_last_reload_successful")
            .await,
        0.0
    );
    assert_eq!(
        gateway
            .metric(r#"bundlegate_config_reloads_total{outcome="refused"}"#)
            .await,
        2.0
    );
    assert_eq!(tag(&gateway.get(&etag, 0).await), etag);
    assert_eq!(gateway.bundle_status("authz").await["state"], "serving");

    gateway.write("bundlegate.yaml", good.to_string());
    gateway
        .said("configuration read again", |line| {
            line["outcome"] == "unchanged"
        })
        .await;
    assert_eq!(
        gateway
            .metric("bundlegate_config_last_reload_successful")
            .await,
        1.0
    );
    assert_eq!(tag(&gateway.get(&etag, 0).await), etag);
}

/// An operator often edits the configuration before creating the file that it names.
#[tokio::test]
async fn a_configuration_that_names_a_file_too_early_is_taken_when_the_file_is_there() {
    let (old, new) = (Signer::new(), Signer::new());
    let registry = registry(&old).await;
    let key =
        |folder: &TempDir| fs::write(folder.path().join("key.pub"), old.public_pem()).unwrap();
    let mut config = config(&registry);
    let gateway = TestGateway::start(key, &config).await;
    gateway.get("", 60).await;
    config["trust"]["authorities"]["release"]["keys"] = json!(["keys/new.pub"]);
    gateway.write("bundlegate.yaml", config.to_string());
    gateway
        .said("configuration refused: the one in force stays", |line| {
            line["error"].to_string().contains("new.pub")
        })
        .await;
    dead(&registry);
    fs::create_dir(gateway.path("keys")).unwrap();
    gateway.write("keys/new.pub", new.public_pem());
    is_withdrawn_soon(&gateway, "a file that was missing").await;
}

#[tokio::test]
async fn sighup_reads_everything_and_what_is_not_live_waits_for_the_next_start() {
    let (signer, other) = (Signer::new(), Signer::new());
    let registry = registry(&signer).await;
    let key =
        |folder: &TempDir| fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
    let mut config = config(&registry);
    config["bundles"]["going"] = config["bundles"]["authz"].clone();
    let gateway = TestGateway::start(key, &config).await;
    let etag = tag(&gateway.get("", 60).await);
    gateway.hang_up();
    let read = gateway
        .said("configuration read again", |line| line["cause"] == "SIGHUP")
        .await;
    assert_eq!(read["outcome"], "unchanged");
    // A change of another file in the folder causes no reload, which only real time shows: a later
    // change that does cause one would be read together with this one.
    gateway.write("notes.txt", "x");
    sleep(Duration::from_secs(4)).await;
    assert_eq!(gateway.lines("configuration read again").len(), 1);

    config["server"]["listen"] = json!("127.0.0.1:1");
    config["limits"] = json!({ "bundle": "1MiB" });
    config["bundles"]["coming"] = config["bundles"]["authz"].clone();
    config["bundles"].as_object_mut().unwrap().remove("going");
    config["bundles"]["authz"]["poll"] = json!("1s");
    gateway.write("bundlegate.yaml", config.to_string());
    let told = gateway
        .said(
            "these changes of the configuration take effect at the next start",
            |_| true,
        )
        .await;
    assert_eq!(told["keys"], "server.listen");
    assert_eq!(tag(&gateway.get(&etag, 0).await), etag);
    gateway
        .said("the changed bundle is served from now on", |line| {
            line["bundle"] == "authz"
        })
        .await;
    assert_eq!(
        gateway.get_of("coming", "", 60).await.status(),
        StatusCode::OK
    );
    dead(&registry);
    gateway.write("key.pub", other.public_pem());
    is_withdrawn_soon(&gateway, "a bundle that stays").await;
    let coming =
        async || (gateway.bundle_status("coming").await["state"] == "withdrawn").then_some(());
    gateway
        .until("a bundle that came is withdrawn", coming)
        .await;
}
