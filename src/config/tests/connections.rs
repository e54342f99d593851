//! How connections to registries are made: proxies, client certificates, limits; and paths that
//! begin with `~`.

use super::{Folder, errors::check, secs};
use crate::registry::Proxy;

#[test]
fn errors_about_connections_name_the_key_and_a_fix() {
    let with = |keys: &str| format!("registries: {{ r.io: {{ {keys} }} }}");
    let proxy = "registries.r.io.proxy: not the URL of a proxy; write one such as \
                 \"http://proxy.lan:3128\", or `none` for direct connections";
    let scheme = "registries.r.io.proxy: a proxy is reached by `http`, `https`, `socks5` or \
                  `socks5h`; write a URL such as \"http://proxy.lan:3128\"";
    let password = "a password in the configuration can be read by everyone who can read the file; \
                    write `{ url: URL, username: USER, password_file: FILE }`";
    let concurrent = "registries.r.io.max_concurrent: a registry gets 1 to 1024 requests at a time; \
                      write a number of these";
    let rate = "registries.r.io.max_requests_per_second: not between 0.01 and 1000; write a number \
                of these such as 10 or 0.5, or remove the key for no limit";
    check(&[
        (&with("proxy: ''"), proxy),
        (&with("proxy: proxy.lan"), proxy),
        (&with("proxy: 'http://proxy.lan:3128/path'"), proxy),
        (&with("proxy: 'http://'"), proxy),
        (&with("proxy: 'proxy.lan:3128'"), scheme),
        (&with("proxy: 'ftp://proxy.lan'"), scheme),
        (
            &with("proxy: 'http://robot:s3cret@proxy.lan:3128'"),
            &format!("registries.r.io.proxy: {password}"),
        ),
        (
            &with("proxy: { url: 'http://robot:s3cret@proxy.lan:3128' }"),
            &format!("registries.r.io.proxy.url: {password}"),
        ),
        (
            &with("proxy: { url: 'http://a@proxy.lan', username: b }"),
            "registries.r.io.proxy.username: `url` names a user as well; remove one of them",
        ),
        (
            &with("proxy: { url: 'http://proxy.lan', password_file: ghcr.password }"),
            "registries.r.io.proxy.username: missing; write it",
        ),
        (
            &with("proxy: { url: 'http://proxy.lan', username: a, password_file: empty }"),
            "registries.r.io.proxy.password_file: empty is empty; write the password to it",
        ),
        (
            &with("client_certificate: tls.crt"),
            "registries.r.io.client_key: missing; write it",
        ),
        (
            &with("client_key: tls.key"),
            "registries.r.io.client_certificate: missing; write it",
        ),
        (
            &with("scheme: http, client_certificate: tls.crt, client_key: tls.key"),
            "registries.r.io.client_certificate: plain HTTP has no certificates; remove \
             `client_certificate` or `scheme: http`",
        ),
        (
            &with("client_certificate: none.crt, client_key: tls.key"),
            "registries.r.io.client_certificate: none.crt does not exist; create it, or correct the path",
        ),
        (
            &with("client_certificate: tls.crt, client_key: tls.crt"),
            "registries.r.io.client_key: tls.crt has no usable private key; use an unencrypted PEM \
             key (PKCS#8, SEC1, PKCS#1)",
        ),
        (
            &with("client_certificate: registry-ca.pem, client_key: other.key"),
            "registries.r.io.client_key: other.key is not the key of the certificate in \
             registry-ca.pem; use a matching pair",
        ),
        (&with("max_concurrent: 0"), concurrent),
        (&with("max_concurrent: 1025"), concurrent),
        (&with("max_requests_per_second: 0"), rate),
        (&with("max_requests_per_second: -1"), rate),
        (&with("max_requests_per_second: 1001"), rate),
    ]);
}

#[test]
fn the_limits_and_the_proxy_of_a_registry_are_read() {
    let folder = Folder::new();
    let read = |keys: &str| {
        let config = folder.with(&format!("registries: {{ r.io: {{ {keys} }} }}"));
        config.unwrap().registries["r.io"].clone()
    };
    let options = read("max_requests_per_second: 0.5, max_concurrent: 4");
    assert_eq!(options.request_interval, Some(secs(2)));
    assert_eq!(options.max_concurrent, 4);
    assert_eq!(
        read("max_requests_per_second: 4")
            .request_interval
            .unwrap()
            .as_millis(),
        250
    );
    assert_eq!(options.proxy, Proxy::Environment);
    assert_eq!(read("proxy: none").proxy, Proxy::Direct);
    let server = |keys: &str| match read(keys).proxy {
        Proxy::Server(server) => server,
        other => panic!("{other:?}"),
    };
    let plain = server("proxy: 'http://r%6Fbot@proxy.lan:3128'");
    assert_eq!(plain.url.as_str(), "http://proxy.lan:3128/");
    assert_eq!(plain.username.as_deref(), Some("robot"));
    let keys =
        "proxy: { url: 'socks5h://proxy.lan', username: robot, password_file: ghcr.password }";
    let with_password = server(keys);
    assert_eq!(
        with_password.password().unwrap().unwrap().as_str(),
        "s3cret-password"
    );
    assert!(!format!("{:?}", read(keys)).contains("s3cret"));
}

#[test]
fn a_path_that_begins_with_a_tilde_is_refused_wherever_it_is() {
    let refused = |key: &str, path: &str| {
        format!(
            "{key}: {path}: `~` is not expanded here; write the whole path, or ./{path} if that is \
             its name"
        )
    };
    let registry = |keys: &str| format!("registries: {{ r.io: {{ {keys} }} }}");
    let rows = [
        (
            registry("ca_file: ~/ca.pem"),
            "registries.r.io.ca_file",
            "~/ca.pem",
        ),
        (
            registry("credentials: { username: a, password_file: ~root/password }"),
            "registries.r.io.credentials.password_file",
            "~root/password",
        ),
        (
            registry("client_certificate: ~/tls.crt, client_key: tls.key"),
            "registries.r.io.client_certificate",
            "~/tls.crt",
        ),
        (
            registry("client_certificate: tls.crt, client_key: ~/tls.key"),
            "registries.r.io.client_key",
            "~/tls.key",
        ),
        (
            registry("proxy: { url: 'http://p.lan', username: a, password_file: ~/p }"),
            "registries.r.io.proxy.password_file",
            "~/p",
        ),
        (
            "server: { tls: { certificate: ~/tls.crt, key: tls.key } }".to_owned(),
            "server.tls.certificate",
            "~/tls.crt",
        ),
        (
            "cache: { directory: ~/cache }".to_owned(),
            "cache.directory",
            "~/cache",
        ),
        (
            "opa_check: { opa: ~/bin/opa }".to_owned(),
            "opa_check.opa",
            "~/bin/opa",
        ),
    ];
    let rows: Vec<_> = rows
        .iter()
        .map(|(yaml, key, path)| (yaml.as_str(), refused(key, path)))
        .collect();
    let rows: Vec<_> = rows
        .iter()
        .map(|(yaml, error)| (*yaml, error.as_str()))
        .collect();
    check(&rows);
}

#[test]
fn the_expiry_of_every_certificate_has_the_key_that_names_its_file() {
    let folder = Folder::new();
    let rest = "
server:
  tls: { certificate: tls.crt, key: tls.key, client_ca: tls.crt }
  admin_tls: { certificate: tls.crt, key: tls.key }
registries: { 'r.io:5000': { client_certificate: tls.crt, client_key: tls.key } }
trust: { authorities: { ca: { x509: { roots: tls.crt, san_uri: 'spiffe://corp/*', time: now }, tlog: none } } }
";
    let config = folder.with(rest).unwrap();
    let keys: Vec<_> = config
        .certificates
        .iter()
        .map(|one| one.key.as_str())
        .collect();
    assert_eq!(
        keys,
        [
            "server.tls.certificate",
            "server.tls.client_ca",
            "server.admin_tls.certificate",
            "trust.authorities.ca.x509.roots",
            "registries.r.io:5000.client_certificate",
        ]
    );
    let first = &config.certificates[0].expiry;
    assert!(config.certificates.iter().all(|one| one.expiry == *first));
    assert!(first.not_before < first.not_after, "{first:?}");
}
