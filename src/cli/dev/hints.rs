//! What to type next.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::super::read;

/// What neither a URL, nor a shell, nor OPA's `--set` reads as anything but itself.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// A longer example input makes no command to copy.
const INPUT_LIMIT: u64 = 4096;

/// Where `dev` listens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) data: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// Comments and commands: OPA on the bundle, a query, the state, and the bundle itself.
pub(super) fn lines(addresses: Addresses, name: &str, policy: &Path, package: Option<&str>) -> Vec<String> {
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
        "# decide by the policy:".to_owned(),
        format!("opa run --server --set {}", set.join(" --set ")),
        "# ask OPA:".to_owned(),
        format!("curl -s http://127.0.0.1:8181/v1/data/{query} -d {}", quoted(&question(policy).to_string())),
        "# see what is served, and why something is not:".to_owned(),
        format!("curl -s http://{}/status", reachable(addresses.admin)),
        "# without OPA, look at the bundle:".to_owned(),
        format!("curl -s -D - -o bundle.tar.gz {url}{resource}"),
    ]
}

/// `input.json` beside the policy, as other tools for Rego have it.
fn question(policy: &Path) -> Value {
    let file = policy.join("input.json");
    let input = read::regular(&file, INPUT_LIMIT).ok();
    let input: Option<Value> = input.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    input.map_or_else(|| json!({}), |input| json!({ "input": input }))
}

/// An address that listens everywhere is reached here.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() { SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listen.port()) } else { listen }
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
        let addresses = Addresses { data: "0.0.0.0:8282".parse().unwrap(), admin: "127.0.0.1:9".parse().unwrap() };
        let lines = lines(addresses, "a,b=c/d e.tar.gz", folder.path(), Some("a.b"));
        assert!(lines[1].contains("services.bundlegate.url=http://127.0.0.1:8282 "), "{}", lines[1]);
        assert!(lines[1].contains("resource=/bundles/a%2Cb%3Dc/d%20e.tar.gz "), "{}", lines[1]);
        assert!(lines[3].ends_with(r#"/v1/data/a/b -d '{"input":{"user":"o'\''hara"}}'"#), "{}", lines[3]);
        assert!(lines[5].ends_with(" http://127.0.0.1:9/status"), "{}", lines[5]);
    }

    #[test]
    fn without_an_input_the_question_is_empty() {
        assert_eq!(question(Path::new("/nonexistent")), json!({}));
    }
}
