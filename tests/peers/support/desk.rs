//! An author's desk: a shell in a folder of its own, with bundlegate and the peers on the
//! path.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tempfile::TempDir;

use super::run;

/// The folder is the home, and holds the image store.
#[derive(Debug)]
pub(crate) struct Desk {
    folder: TempDir,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    /// With a policy in `policy` by which readers may read and owners may do everything.
    pub(crate) fn with_policy() -> Self {
        let desk = Self::new();
        for (name, content) in POLICY {
            desk.write(name, content);
        }
        desk
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        let file = self.path(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Types a line, which has to work, and gives what it says on standard output.
    pub(crate) async fn line(&self, line: &str) -> String {
        let line = format!(
            "unset BUNDLEGATE_REGISTRY DOCKER_CONFIG SOURCE_DATE_EPOCH\nexport BUNDLEGATE_STORE=images\n{line}"
        );
        run("sh", self.folder(), &["-euc", &line]).await
    }

    /// Types a line with `--json` at its end, and gives the document.
    pub(crate) async fn json(&self, line: &str) -> Value {
        let text = self.line(&format!("{line} --json")).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
    }

    /// Types a line that has to fail with exit code 1, and gives the one line that it says.
    pub(crate) async fn refused(&self, line: &str) -> String {
        let told = self.line(&format!("{line} 2>&1 >/dev/null && exit 9 || test $? = 1")).await;
        assert_eq!(told.lines().count(), 1, "{line}: {told}");
        told
    }

    /// What a real OPA makes of `bundle.tar.gz` for somebody who wants to do something.
    pub(crate) async fn decides(&self, opa: &str, input: &str) -> String {
        self.write("input.json", input);
        self.line(&format!("{opa} eval -b bundle.tar.gz -i input.json -f raw data.authz.allow")).await
    }
}

const POLICY: [(&str, &str); 4] = [
    ("policy/.manifest", r#"{ "roots": ["authz", "roles"] }"#),
    (
        "policy/authz/authz.rego",
        "package authz\n\n# METADATA\n# entrypoint: true\ndefault allow := false\n\n\
         allow if input.action in data.roles[input.role]\n\nallow if input.user == input.owner\n",
    ),
    (
        "policy/authz/authz_test.rego",
        "package authz_test\n\nimport data.authz\n\n\
         test_owners if authz.allow with input as {\"user\": \"ann\", \"owner\": \"ann\"}\n",
    ),
    ("policy/roles/data.json", r#"{ "reader": ["read"] }"#),
];

/// Somebody whom the desk's policy lets in, and somebody whom it does not.
pub(crate) const READER: &str = r#"{ "role": "reader", "action": "read", "user": "bob", "owner": "ann" }"#;
pub(crate) const WRITER: &str = r#"{ "role": "reader", "action": "write", "user": "bob", "owner": "ann" }"#;
