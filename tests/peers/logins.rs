//! `login` and `logout` with real registries, and the credentials that docker and crane store.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::{
    pushes::build,
    support::{Author, Ca, Kind, PASSWORD, Registry, Terminal, USER, run},
};

#[tokio::test(flavor = "multi_thread")]
async fn who_logged_in_with_docker_is_logged_in() {
    let ca = Ca::new();
    let (registry, author) = (
        Registry::protected(Kind::Distribution, &ca).await,
        Author::new(),
    );
    author.policy("first");
    let name = registry.reference("acme/authz:v1");
    build(&author, &name).await;
    let push = ["push", "--ca-file", registry.ca(), &name];
    author.run(&push).await.refused("bundlegate login");
    // The file has the format that docker writes.
    run(
        "crane",
        author.home(),
        &["auth", "login", &registry.host, "-u", USER, "-p", PASSWORD],
    )
    .await;
    author.run(&push).await.ok();
    // A wrong password is told from none.
    run(
        "crane",
        author.home(),
        &["auth", "login", &registry.host, "-u", USER, "-p", "wrong"],
    )
    .await;
    let refused = author.run(&push).await.refused("the stored credentials");
    assert!(!refused.contains("wrong"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn login_tries_the_password_before_it_keeps_it_and_others_use_it() {
    let ca = Ca::new();
    let (registry, author) = (Registry::protected(Kind::Debian, &ca).await, Author::new());
    let login = [
        "login",
        &registry.host,
        "-u",
        USER,
        "--password-stdin",
        "--ca-file",
        registry.ca(),
    ];
    let refused = author
        .run_with(&login, "wrong\n")
        .await
        .refused("user name and password");
    assert!(!refused.contains("wrong"), "{refused}");
    let file = author.path(".docker/config.json");
    assert!(!file.exists());
    assert_eq!(
        author.run_with(&login, &format!("{PASSWORD}\n")).await.ok(),
        ""
    );
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    author.policy("first");
    let name = registry.reference("acme/authz:v1");
    build(&author, &name).await;
    author
        .run(&["push", "--ca-file", registry.ca(), &name])
        .await
        .ok();
    let repository = registry.reference("acme/authz");
    let tags = ["repo", "tags", "--ca-file", registry.ca(), &repository];
    assert_eq!(run("oras", author.home(), &tags).await, "v1");
    author.run(&["logout", &registry.host]).await.ok();
    assert!(
        author
            .run(&["push", "--ca-file", registry.ca(), &name])
            .await
            .code
            == Some(1)
    );
    let usage = author.run(&["login", "https://ghcr.io"]).await;
    assert_eq!(usage.code, Some(2));
}

/// A helper that keeps credentials in a file, as others keep them in a keychain.
const HELPER: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
case $1 in
store) cat > kept ;;
get) if [ -e kept ]; then cat kept; else echo "credentials not found in native keychain"; exit 1; fi ;;
erase) rm -f kept ;;
esac
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_helper_keeps_the_password_where_one_is_named() {
    let ca = Ca::new();
    let (registry, author) = (Registry::protected(Kind::Debian, &ca).await, Author::new());
    author.write("bin/docker-credential-shelf", HELPER);
    fs::set_permissions(
        author.path("bin/docker-credential-shelf"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    author.write(
        ".docker/config.json",
        r#"{ "credsStore": "shelf", "psFormat": "kept" }"#,
    );
    let login = [
        "login",
        &registry.host,
        "-u",
        USER,
        "--password-stdin",
        "--ca-file",
        registry.ca(),
    ];
    author.run_with(&login, PASSWORD).await.ok();
    let config = fs::read_to_string(author.path(".docker/config.json")).unwrap();
    assert!(
        config.contains("psFormat") && !config.contains("\"auth\""),
        "{config}"
    );
    let kept = fs::read_to_string(author.path("bin/kept")).unwrap();
    assert!(
        kept.contains(&registry.host) && kept.contains(PASSWORD),
        "{kept}"
    );
    author.policy("first");
    let name = registry.reference("acme/authz:v1");
    build(&author, &name).await;
    author
        .run(&["push", "--ca-file", registry.ca(), &name])
        .await
        .ok();
    author.run(&["logout", &registry.host]).await.ok();
    assert!(!author.path("bin/kept").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn login_asks_at_a_terminal_and_shows_no_password() {
    let ca = Ca::new();
    let (registry, author) = (Registry::protected(Kind::Debian, &ca).await, Author::new());
    let line = format!(
        "bundlegate login {} --ca-file {}",
        registry.host,
        registry.ca()
    );
    let mut terminal = Terminal::running(&line, author.home());
    terminal.shows("Username: ").await;
    terminal.type_in(&format!("{USER}\n"));
    terminal.shows("Password for robot: ").await;
    terminal.type_in(&format!("{PASSWORD}\n"));
    terminal.shows("logged in to").await;
    assert_eq!(terminal.ended().await, Some(0));
    assert!(!terminal.screen().contains(PASSWORD));
    let kept = fs::read_to_string(author.path(".docker/config.json")).unwrap();
    assert!(
        kept.contains(&registry.host) && !kept.contains(PASSWORD),
        "{kept}"
    );
}
