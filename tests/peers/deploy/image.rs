//! The Dockerfile: its last stage as buildah builds it on a root of Debian's packages, and the program in it as
//! the image says to run it. Its first stage is a release build, which takes an hour on two cores; of that
//! stage the build context is checked.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Ended, ran};
use crate::{
    shared::gateway::listener,
    support::{
        Artifact, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Process, Registry, TestGateway,
        program,
    },
};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The root that `tests/peers/install` made of the packages that the base image is made of.
fn base() -> PathBuf {
    let programs = program("opa").parent().unwrap().to_owned();
    let root = programs.parent().unwrap().join("distroless-root");
    assert!(
        root.is_dir(),
        "{} is missing; run tests/peers/install",
        root.display()
    );
    root
}

/// The stage from its `FROM` on, on the base that is built here.
fn last_stage(dockerfile: &str) -> String {
    let at = dockerfile.rfind("\nFROM ").unwrap();
    let stage = dockerfile[at..].replace("FROM gcr.io/distroless/cc-debian12:nonroot", "FROM base");
    assert!(stage.contains("FROM base"), "{stage}");
    stage
}

/// Images in a folder, without an engine.
struct Images {
    folder: TempDir,
}

impl Images {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let policy = json!({ "default": [{ "type": "insecureAcceptAnything" }] });
        fs::write(folder.path().join("any.json"), policy.to_string()).unwrap();
        Self { folder }
    }

    fn buildah(&self, verb: &str, arguments: &[&str]) -> String {
        let path = |name: &str| self.folder.path().join(name).to_str().unwrap().to_owned();
        let (root, run, policy) = (path("root"), path("run"), path("any.json"));
        let mut all = vec![
            "--root",
            &root,
            "--runroot",
            &run,
            "--storage-driver=vfs",
            verb,
        ];
        if matches!(verb, "from" | "commit" | "build") {
            all.extend(["--signature-policy", &policy]);
        }
        all.extend(arguments);
        ran("buildah", &all).ok().trim().to_owned()
    }

    /// Builds the last stage of the Dockerfile as `bundlegate`, with the program of this build.
    fn build(&self) {
        let container = self.buildah("from", &["scratch"]);
        self.buildah("copy", &[&container, base().to_str().unwrap(), "/"]);
        self.buildah(
            "config",
            &[
                "--env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "--env=SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
                &container,
            ],
        );
        self.buildah("commit", &[&container, "base"]);
        let stage = self.folder.path().join("stage/out");
        fs::create_dir_all(stage.join("cache")).unwrap();
        let binary = stage.join("bundlegate");
        let stripped = format!("--output-file={}", binary.display());
        ran("strip", &[&stripped, env!("CARGO_BIN_EXE_bundlegate")]).ok();
        let dockerfile = fs::read_to_string(repository().join("Dockerfile")).unwrap();
        let file = self.folder.path().join("Dockerfile");
        fs::write(&file, last_stage(&dockerfile)).unwrap();
        let context = format!(
            "--build-context=build={}",
            stage.parent().unwrap().display()
        );
        self.buildah(
            "build",
            &[
                "--isolation=chroot",
                "--pull-never",
                &context,
                "--file",
                file.to_str().unwrap(),
                "--tag=bundlegate",
                repository().to_str().unwrap(),
            ],
        );
    }
}

/// The program in the image, as an orchestrator runs it: as its user, on a root that can't be written except
/// for the volume, without privileges.
const RUN: &str = r#"
set -eu
root=$1 folder=$2
mount --bind "$root" "$root"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$folder/config" "$root/etc/bundlegate"
mount --bind "$folder/cache" "$root/var/cache/bundlegate"
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs \
  chroot --userspec=65532:65532 "$root" /usr/local/bin/bundlegate serve --config /etc/bundlegate/bundlegate.yaml
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_image_serves_as_its_user_on_a_root_without_a_shell() {
    if !rustix::process::geteuid().is_root() {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: the image, whose root only root can mount"
        );
        return;
    }
    let images = Images::new();
    images.build();
    assert_labels(&images);
    let container = images.buildah("from", &["--pull-never", "localhost/bundlegate"]);
    let root = PathBuf::from(images.buildah("mount", &[&container]));
    for shell in ["bin/sh", "usr/bin/sh", "bin/bash", "usr/bin/bash"] {
        assert!(!root.join(shell).exists(), "{shell}");
    }
    assert!(root.join("usr/share/doc/bundlegate/LICENSE").is_file());
    let cache = fs::metadata(root.join("var/cache/bundlegate")).unwrap();
    assert_eq!((cache.uid(), cache.gid()), (65532, 65532));

    let registry = Registry::start(Kind::Distribution).await;
    let key = KeyPair::generate().await;
    let artifact = Artifact::answering("first").await;
    let digest = registry.push("acme/authz:live", &artifact.file()).await;
    key.sign(&registry, &format!("acme/authz@{digest}")).await;
    let folder = TempDir::new().unwrap();
    let config = GatewayConfig::trusting(&key)
        .bundle("authz", &registry, "acme/authz:live")
        .with("/cache", json!({ "directory": "/var/cache/bundlegate" }))
        .with(
            "/trust/authorities/release-key/keys",
            json!(["release.pub"]),
        );
    for name in ["config", "cache"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    fs::copy(key.public(), folder.path().join("config/release.pub")).unwrap();
    fs::write(
        folder.path().join("config/bundlegate.yaml"),
        config.0.to_string(),
    )
    .unwrap();
    fs::create_dir_all(root.join("etc/bundlegate")).unwrap();
    let owner = format!(
        "chown 65532:65532 {0}/cache && chmod 700 {0}/cache",
        folder.path().display()
    );
    ran("sh", &["-c", &owner]).ok();
    ran(
        "sh",
        &[
            "-c",
            &format!("chmod -R a+rX {}", folder.path().join("config").display()),
        ],
    )
    .ok();
    ran("chmod", &["a+x", folder.path().to_str().unwrap()]).ok();
    let mut unshare = Command::new(program("unshare"));
    // Without a fork, so that the program has the process ID that is killed in the end: a change of the user
    // clears the signal of `--kill-child`.
    unshare
        .args(["--mount", "sh", "-c", RUN, "sh"])
        .arg(&root)
        .arg(folder.path());
    let mut process = Process::start("bundlegate", &mut unshare);
    let data = listener(&mut process, "data").await;
    let admin = listener(&mut process, "admin").await;
    let gate = TestGateway::new("http", data, admin, ());
    let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
    opa.answers("first").await;
    // The volume was written by the user, and so works.
    assert_eq!(gate.metric("bundlegate_cache_unavailable").await, 0.0);
    let layout = folder.path().join("cache/oci-layout");
    let written = fs::metadata(layout).unwrap();
    assert_eq!(written.uid(), 65532);
    println!("image | served as 65532, without a shell, on a root that can't be written");
    drop(process);
    images.buildah("rm", &[&container]);
}

/// The metadata of the image for container engines.
fn assert_labels(images: &Images) {
    let inspected = images.buildah("inspect", &["--type=image", "localhost/bundlegate"]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let config = &inspected["OCIv1"]["config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], json!(["bundlegate"]));
    assert_eq!(
        config["Cmd"],
        json!(["serve", "--config", "/etc/bundlegate/bundlegate.yaml"])
    );
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert!(config["Volumes"]["/var/cache/bundlegate"].is_object());
    for port in ["8080/tcp", "8443/tcp", "8090/tcp"] {
        assert!(config["ExposedPorts"][port].is_object(), "{port}");
    }
    for (label, value) in [
        ("title", "bundlegate"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
    ] {
        let label = format!("org.opencontainers.image.{label}");
        assert_eq!(config["Labels"][&label], value, "{label}");
    }
}

/// What `.dockerignore` lets through is all that cargo needs, and the stage builds what CI tests.
#[test]
fn the_build_context_has_every_target_of_the_package() {
    let context = TempDir::new().unwrap();
    let ignore = fs::read_to_string(repository().join(".dockerignore")).unwrap();
    let mut rules = ignore.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(rules.next(), Some("*"), "everything else is left out");
    for name in rules {
        let name = name.strip_prefix('!').unwrap();
        let source = repository().join(name);
        ran(
            "cp",
            &[
                "-R",
                source.to_str().unwrap(),
                context.path().to_str().unwrap(),
            ],
        )
        .ok();
    }
    let manifest = context.path().join("Cargo.toml");
    // The program itself, and not the proxy of rustup, which needs the home folder of its user.
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["metadata", "--locked", "--offline", "--no-deps"])
        .args(["--format-version=1", "--manifest-path"])
        .arg(&manifest);
    let metadata = Ended::of("cargo metadata".to_owned(), cargo.output().unwrap()).ok();
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let targets = metadata["packages"][0]["targets"].as_array().unwrap();
    assert!(targets.len() >= 4, "{targets:?}");
    for target in targets {
        let path = target["src_path"].as_str().unwrap();
        assert!(Path::new(path).is_file(), "{path}");
    }
    // Files that the sources include.
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).unwrap();
    let toolchain = concat!(
        "FROM rust:",
        env!("CARGO_PKG_RUST_VERSION"),
        "-slim-bookworm AS build"
    );
    assert!(dockerfile.contains(toolchain), "{dockerfile}");
    assert!(
        dockerfile.contains("cargo build --release --locked --features jemalloc --bin bundlegate")
    );
}
