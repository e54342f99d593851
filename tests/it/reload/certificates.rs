//! The certificate of the data listener, which is replaced while clients are connected.

use jiff::{Timestamp, ToSpan as _, Zoned, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, date_time_ymd,
};
use reqwest::{Client, tls::TlsInfo};

use super::*;

/// A certificate for `localhost`, and its key.
pub(super) struct Pair(rcgen::CertifiedKey<KeyPair>);

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
        sentence.contains("server.tls: the key is not that of the certificate")
            && sentence.contains("use a matching pair"),
        "{sentence}"
    );
    assert!(gateway.presents(&client(), &old).await);
    gateway.write("tls.key", new.key());
    gateway.presents_soon(&new).await;
}

/// Midnight, so many days from today.
fn midnight(days: i64) -> Zoned {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let day = today.checked_add(days.days()).unwrap();
    day.to_zoned(TimeZone::UTC).unwrap()
}

/// The PEM text of a certificate that expires in so many days, and that of its key.
fn expiring(name: &str, days: i64) -> (String, String) {
    let at = |days| {
        let day = midnight(days).date();
        let (month, of_month) = (day.month().unsigned_abs(), day.day().unsigned_abs());
        date_time_ymd(day.year().into(), month, of_month)
    };
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.not_before, params.not_after) = (at(-100), at(days));
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// The files of a gateway whose certificates expire on different days.
fn write_expiring(folder: &TempDir, signer: &Signer) {
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("key.pub", &signer.public_pem());
    for (name, (certificate, key)) in [
        ("tls", expiring("gate", 90)),
        ("client", expiring("robot", 40)),
    ] {
        write(&format!("{name}.crt"), &certificate);
        write(&format!("{name}.key"), &key);
    }
    // Of several authorities the one that expires first.
    let authorities = [expiring("later", 900), expiring("first", 300)];
    let authorities = authorities.map(|(certificate, _)| certificate).concat();
    write("ca.crt", &authorities);
}

#[tokio::test]
async fn the_expiry_of_each_certificate_in_use_is_shown_and_follows_its_file() {
    let signer = Signer::new();
    let registry = registry(&signer).await;
    let mut config = config(&registry);
    config["server"]["tls"] =
        json!({ "certificate": "tls.crt", "key": "tls.key", "client_ca": "ca.crt" });
    config["registries"]["other.example"] =
        json!({ "client_certificate": "client.crt", "client_key": "client.key" });
    let gateway = TestGateway::start(|folder| write_expiring(folder, &signer), &config).await;
    const SERVER: &str = "server.tls.certificate";
    const CLIENTS: &str = "server.tls.client_ca";
    const REGISTRY: &str = "registries.other.example.client_certificate";
    let seconds = async |key: &str| {
        let name = "bundlegate_certificate_expires_timestamp_seconds";
        gateway.metric(&format!("{name}{{key=\"{key}\"}}")).await
    };
    let status = async || {
        let status = gateway.admin_text("/status").await;
        serde_json::from_str::<Value>(&status).unwrap()["certificates"].take()
    };
    let shown = status().await;
    for (key, subject, days) in [
        (SERVER, "CN=gate", 90),
        (CLIENTS, "CN=first", 300),
        (REGISTRY, "CN=robot", 40),
    ] {
        let expected = midnight(days).timestamp();
        assert_eq!(seconds(key).await, expected.as_second() as f64, "{key}");
        assert_eq!(shown[key]["subject"], subject, "{shown}");
        assert_eq!(shown[key]["expired"], false, "{shown}");
        let expires: Timestamp = shown[key]["expires"].as_str().unwrap().parse().unwrap();
        assert_eq!(expires, expected, "{shown}");
    }
    assert_eq!(shown.as_object().unwrap().len(), 3, "{shown}");

    // The key first: the pair is refused until the certificate is there, and shown as it is in use.
    let (certificate, key) = expiring("gate", -1);
    gateway.write("tls.key", key);
    gateway
        .said("configuration refused: the one in force stays", |_| true)
        .await;
    assert_eq!(
        seconds(SERVER).await,
        midnight(90).timestamp().as_second() as f64
    );
    gateway.write("tls.crt", certificate);
    let expired = async || Some(status().await).filter(|shown| shown[SERVER]["expired"] == true);
    gateway.until("the certificate has expired", expired).await;
    gateway
        .said(
            "a certificate has expired, and its peers refuse it: renew it",
            |line| line["key"] == SERVER,
        )
        .await;
    assert_eq!(
        seconds(SERVER).await,
        midnight(-1).timestamp().as_second() as f64
    );

    // Another key leaves no series behind.
    config["server"]["tls"]
        .as_object_mut()
        .unwrap()
        .remove("client_ca");
    config["registries"]["other.example"] = json!({});
    gateway.write("bundlegate.yaml", config.to_string());
    let removed = async || Some(status().await).filter(|shown| shown.get(CLIENTS).is_none());
    let shown = gateway.until("it is gone", removed).await;
    assert_eq!(shown.as_object().unwrap().len(), 1, "{shown}");
    let metrics = gateway.admin_text("/metrics").await;
    assert!(
        !metrics.contains(CLIENTS) && !metrics.contains(REGISTRY),
        "{metrics}"
    );
}
