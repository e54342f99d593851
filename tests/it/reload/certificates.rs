//! The certificate of the data listener, which is replaced while clients are connected.

use reqwest::{Client, tls::TlsInfo};

use super::*;

/// A certificate for `localhost`, and its key.
pub(super) struct Pair(rcgen::CertifiedKey<rcgen::KeyPair>);

impl Pair {
    pub(super) fn new() -> Self {
        Self(rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap())
    }

    fn certificate(&self) -> String {
        self.0.cert.pem()
    }

    fn key(&self) -> String {
        self.0.signing_key.serialize_pem()
    }

    pub(super) fn write(&self, folder: &Path) {
        fs::write(folder.join("tls.crt"), self.certificate()).unwrap();
        fs::write(folder.join("tls.key"), self.key()).unwrap();
    }

    pub(super) fn is_presented_by(&self, response: &Response) -> bool {
        let tls: &TlsInfo = response.extensions().get().unwrap();
        tls.peer_certificate() == Some(&**self.0.cert.der())
    }

    /// Writes the files as Kubernetes does: they are reached through the link `..data`, which is
    /// replaced in one step.
    fn mount(&self, folder: &Path, version: &str) {
        fs::create_dir(folder.join(version)).unwrap();
        self.write(&folder.join(version));
        symlink(version, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    }
}

/// A client that trusts any server, with connections of its own.
pub(super) fn client() -> Client {
    let client = Client::builder()
        .no_proxy()
        .danger_accept_invalid_certs(true)
        .tls_info(true);
    client.build().unwrap()
}

/// A gateway with this certificate, and its entity tag.
async fn secured(registry: &FaultyRegistry, signer: &Signer, files: impl Fn(&Path)) -> TestGateway {
    let mut config = config(registry);
    config["server"]["tls"] = json!({ "certificate": "tls.crt", "key": "tls.key" });
    let files = |folder: &TempDir| {
        fs::write(folder.path().join("key.pub"), signer.public_pem()).unwrap();
        files(folder.path());
    };
    TestGateway::start(files, &config).await
}

impl TestGateway {
    /// Whether the connection of `http` has this certificate.
    async fn presents(&self, http: &Client, pair: &Pair) -> bool {
        let request = http.get(format!("{}/bundles/authz", self.url));
        let response = wishing(request, "", 60).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let is_presented = pair.is_presented_by(&response);
        // Read to the end, so that the connection is used again.
        response.bytes().await.unwrap();
        is_presented
    }

    async fn presents_soon(&self, pair: &Pair) {
        self.until("new connections have the new certificate", async || {
            self.presents(&client(), pair).await.then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_new_certificate_counts_for_new_connections_however_its_files_are_replaced() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    for is_mounted in [false, true] {
        let (old, new) = (Pair::new(), Pair::new());
        let gateway = secured(&registry, &signer, |folder| {
            if is_mounted {
                old.mount(folder, "..1");
                for name in ["tls.crt", "tls.key"] {
                    symlink(Path::new("..data").join(name), folder.join(name)).unwrap();
                }
            } else {
                old.write(folder);
            }
        })
        .await;
        let connected = client();
        assert!(gateway.presents(&connected, &old).await);
        let folder = gateway.runner.folder.path();
        match is_mounted {
            true => new.mount(folder, "..2"),
            false => new.write(folder),
        }
        gateway.presents_soon(&new).await;
        let read = gateway
            .said("configuration read again", |line| line["tls"] == true)
            .await;
        assert_eq!(read["outcome"], "applied");
        // The connection from before goes on.
        assert!(gateway.presents(&connected, &old).await);
    }
}

#[tokio::test]
async fn a_certificate_with_the_key_of_another_is_refused_until_its_own_key_is_there() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let (old, new) = (Pair::new(), Pair::new());
    let gateway = secured(&registry, &signer, |folder| old.write(folder)).await;
    assert!(gateway.presents(&client(), &old).await);
    gateway.write("tls.crt", new.certificate());
    let refused = gateway
        .said("configuration refused: the one in force stays", |_| true)
        .await;
    let sentence = refused["error"].as_str().unwrap();
    assert!(
        sentence.contains("server.tls: certificate and key can't be used")
            && sentence.contains("use a matching pair"),
        "{sentence}"
    );
    assert!(gateway.presents(&client(), &old).await);
    gateway.write("tls.key", new.key());
    gateway.presents_soon(&new).await;
}
