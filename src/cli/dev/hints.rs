//! The commands that `dev` prints.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::super::read;
use crate::server::AdminAddress;

/// Escapes all characters with a meaning in a URL, in a shell or in OPA's `--set`.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
/// The maximum size of an example input in a command, in bytes.
const INPUT_LIMIT: u64 = 4096;

/// The addresses that `dev` listens on.
#[derive(Debug)]
pub(super) struct Addresses {
    pub(super) data: SocketAddr,
    pub(super) admin: AdminAddress,
}

/// Comments and commands: run OPA on the bundle, query it, show the status, fetch the bundle.
pub(super) fn lines(
    addresses: &Addresses,
    name: &str,
    policy: &Path,
    package: Option<&str>,
) -> Vec<String> {
    let url = format!("http://{}", reachable(addresses.data));
    let resource = format!("/bundles/{}", utf8_percent_encode(name, ESCAPED));
    let set = [
        format!("services.bundlegate.url={url}"),
        "bundles.dev.service=bundlegate".to_owned(),
        format!("bundles.dev.resource={resource}"),
        "bundles.dev.polling.long_polling_timeout_seconds=60".to_owned(),
    ];
    let query = package.unwrap_or_default().replace('.', "/");
    vec![
        "# run OPA with the policy:".to_owned(),
        format!("opa run --server --set {}", set.join(" --set ")),
        "# query OPA:".to_owned(),
        format!(
            "curl -s http://127.0.0.1:8181/v1/data/{query} -d {}",
            quoted(&request_body(policy).to_string())
        ),
        "# show what is served, and any failure:".to_owned(),
        format!("curl -s http://{}/status", addresses.admin),
        "# fetch the bundle without OPA:".to_owned(),
        format!("curl -s -D - -o bundle.tar.gz {url}{resource}"),
    ]
}

/// The body of the query: `input.json` in the policy folder, a convention of Rego tools.
fn request_body(policy: &Path) -> Value {
    let file = policy.join("input.json");
    let input = read::regular(&file, INPUT_LIMIT).ok();
    let input: Option<Value> = input.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    input.map_or_else(|| json!({}), |input| json!({ "input": input }))
}

/// The address to connect to: the loopback address if `listen` is a wildcard.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listen.port())
    } else {
        listen
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn commands_survive_the_shell_and_opas_set() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("input.json"), r#"{ "user": "o'hara" }"#).unwrap();
        let addresses = Addresses {
            data: "0.0.0.0:8282".parse().unwrap(),
            admin: AdminAddress::Tcp("127.0.0.1:9".parse().unwrap()),
        };
        let lines = lines(&addresses, "a,b=c/d e.tar.gz", folder.path(), Some("a.b"));
        assert!(
            lines[1].contains("services.bundlegate.url=http://127.0.0.1:8282 "),
            "{}",
            lines[1]
        );
        assert!(
            lines[1].contains("resource=/bundles/a%2Cb%3Dc/d%20e.tar.gz "),
            "{}",
            lines[1]
        );
        assert!(
            lines[3].ends_with(r#"/v1/data/a/b -d '{"input":{"user":"o'\''hara"}}'"#),
            "{}",
            lines[3]
        );
        assert!(
            lines[5].ends_with(" http://127.0.0.1:9/status"),
            "{}",
            lines[5]
        );
    }

    #[test]
    fn without_an_input_the_question_is_empty() {
        assert_eq!(request_body(Path::new("/nonexistent")), json!({}));
    }
}
