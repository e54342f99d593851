//! Keys and trust roots in files that change while a bundle is served.

use super::*;

/// The file is replaced as editors, `cp` and Kubernetes do it.
#[tokio::test]
async fn a_key_file_that_is_replaced_in_any_way_counts_at_once_with_the_registry_dead() {
    let (old, new) = (Signer::new(), Signer::new());
    for how in ["renamed over", "written in place", "links swapped"] {
        let registry = registry(&old).await;
        let files = |folder: &TempDir| match how {
            "links swapped" => {
                let keys = |version: &str, signer: &Signer| {
                    fs::create_dir(folder.path().join(version)).unwrap();
                    fs::write(
                        folder.path().join(version).join("key.pub"),
                        signer.public_pem(),
                    )
                    .unwrap();
                };
                keys("..one", &old);
                keys("..two", &new);
                symlink("..one", folder.path().join("..data")).unwrap();
                symlink("..data/key.pub", folder.path().join("key.pub")).unwrap();
            }
            _ => fs::write(folder.path().join("key.pub"), old.public_pem()).unwrap(),
        };
        let gateway = TestGateway::start(files, &config(&registry)).await;
        let etag = tag(&gateway.get("", 60).await);
        dead(&registry);
        match how {
            "renamed over" => {
                gateway.write("key.pub.new", new.public_pem());
                fs::rename(gateway.path("key.pub.new"), gateway.path("key.pub")).unwrap();
            }
            "written in place" => gateway.write("key.pub", new.public_pem()),
            _ => {
                symlink("..two", gateway.path("..data_tmp")).unwrap();
                fs::rename(gateway.path("..data_tmp"), gateway.path("..data")).unwrap();
            }
        }
        is_withdrawn_soon(&gateway, how).await;
        let read = gateway.said("configuration read again", |_| true).await;
        assert_eq!(
            (&read["cause"], &read["bundles"], &read["outcome"]),
            (&json!("files"), &json!(1), &json!("applied"))
        );
        assert_eq!(
            gateway
                .metric(r#"bundlegate_config_reloads_total{outcome="applied"}"#)
                .await,
            1.0
        );
        let gone = gateway.get(&etag, 0).await;
        assert_eq!(gone.status(), StatusCode::NOT_FOUND);
        assert_eq!(error(gone).await["reason"], "withdrawn");
    }
}

/// A root that is rotated, and a signature that only the earlier root supports.
#[tokio::test]
async fn a_trust_root_that_is_rotated_counts_at_once_with_the_registry_dead() {
    let (forge, other) = (Sigstore::new(), Sigstore::new());
    let registry = FaultyRegistry::start().await;
    let config = signed_by_certificate(&registry, &forge);
    let root = |folder: &TempDir| {
        fs::write(
            folder.path().join("root.json"),
            forge.trusted_root().to_string(),
        )
        .unwrap()
    };
    let gateway = TestGateway::start(root, &config).await;
    let etag = tag(&gateway.get("", 60).await);
    let before = gateway.bundle_status("authz").await;
    assert!(before["signers"][0]["signed_at"].is_string(), "{before}");

    dead(&registry);
    // The same root in another layout is another file, and accepts the same artifacts.
    gateway.write("root.json", format!("{:#}\n", forge.trusted_root()));
    let after = gateway
        .status_when("authz", "judged again", |status| {
            status["policy_revision"] != before["policy_revision"]
        })
        .await;
    assert_eq!(
        (&after["state"], &after["since"]),
        (&json!("serving"), &before["since"])
    );
    gateway.write("root.json", other.trusted_root().to_string());
    let began = Instant::now();
    let status = gateway
        .status_when("authz", "withdrawn", |status| {
            status["state"] == "withdrawn"
        })
        .await;
    println!(
        "another trusted root: withdrawn {:?} after the change",
        began.elapsed()
    );
    assert_eq!(status["last_failure"]["class"], "distrusted", "{status}");
    let checks = status["refused"]["signatures"][0]["checks"]
        .as_array()
        .unwrap();
    assert_eq!(checks.last().unwrap()["ok"], false, "{status}");
    assert_eq!(gateway.get(&etag, 0).await.status(), StatusCode::NOT_FOUND);
}

/// A link in the middle of a path belongs to a folder that is not watched.
#[tokio::test]
async fn a_change_that_no_event_tells_is_found_by_looking() {
    let (old, new) = (Signer::new(), Signer::new());
    let registry = registry(&old).await;
    let keys = TempDir::new().unwrap();
    for (version, signer) in [("one", &old), ("two", &new)] {
        fs::create_dir(keys.path().join(version)).unwrap();
        fs::write(
            keys.path().join(version).join("key.pub"),
            signer.public_pem(),
        )
        .unwrap();
    }
    symlink("one", keys.path().join("current")).unwrap();
    let mut config = config(&registry);
    config["trust"]["authorities"]["release"]["keys"] =
        json!([keys.path().join("current/key.pub")]);
    let gateway = TestGateway::start(|_| (), &config).await;
    gateway.get("", 60).await;
    dead(&registry);
    symlink("two", keys.path().join("next")).unwrap();
    fs::rename(keys.path().join("next"), keys.path().join("current")).unwrap();
    is_withdrawn_soon(&gateway, "a link on the way").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_status_tells_of_a_verdict_is_what_verify_tells() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let key =
        |folder: &TempDir| fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
    let gateway = TestGateway::start(key, &config(&registry)).await;
    gateway.get("", 60).await;
    let status = gateway.bundle_status("authz").await;
    let reference = registry.reference("live").to_string();
    let mut verify = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
    let verify = verify
        .args(["verify", &reference, "--json", "--config"])
        .arg(gateway.path("bundlegate.yaml"));
    let told =
        tokio::task::block_in_place(|| verify.args(["--policy", "release"]).output().unwrap());
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let verdict = &status["verdict"];
    for key in ["digest", "verified", "policy", "signatures"] {
        assert_eq!(verdict[key], told[key], "{key}");
    }
    assert_eq!(verdict["signatures"][0]["authority"], "release");
    assert_eq!(verdict["policy_revision"], status["policy_revision"]);
    assert_eq!(
        (&status["policy"], &status["refused"]),
        (&json!("release"), &Value::Null)
    );
}
