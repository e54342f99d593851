//! The session of the article that this project comes from, command by command: build,
//! images, tag, push, sign, and on another machine pull, save, and a decision.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Author, Ca, Kind, PASSWORD, READER, Registry, USER, WRITER};

#[tokio::test(flavor = "multi_thread")]
async fn with_debians_registry() {
    let registry = Registry::start(Kind::Debian).await;
    Session {
        registry,
        flags: "--plain-http".to_owned(),
        cosign: "--allow-http-registry".to_owned(),
    }
    .run()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_distribution_3_behind_tls_and_a_password() {
    let ca = Ca::new();
    let registry = Registry::protected(Kind::Distribution, &ca).await;
    let ca = ca.file().display().to_string();
    // cosign takes the password from where `bundlegate login` puts it.
    let cosign = format!("--registry-cacert={ca}");
    Session {
        registry,
        flags: format!("--ca-file {ca}"),
        cosign,
    }
    .run()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_registry_that_lists_referrers() {
    let registry = Registry::start(Kind::Referrers).await;
    Session {
        registry,
        flags: "--plain-http".to_owned(),
        cosign: "--allow-http-registry".to_owned(),
    }
    .run()
    .await;
}

struct Session {
    registry: Registry,
    /// How bundlegate reaches the registry.
    flags: String,
    /// How cosign does.
    cosign: String,
}

impl Session {
    async fn run(&self) {
        let author = Author::with_policy();
        self.log_in(&author).await;
        let built = self.build(&author).await;
        self.tag_and_push(&author, &built).await;
        self.sign(&author, &built).await;

        let other = Author::new();
        fs::copy(author.path("cosign.pub"), other.path("cosign.pub")).unwrap();
        self.log_in(&other).await;
        self.pull(&other, &built).await;
        self.save(&other, &built).await;
        self.list_remotely(&other, &built).await;
        self.clear(&other, &built).await;
        println!(
            "session | {:?} | {} bytes | {}",
            self.registry.kind, built["size"], built["digest"]
        );
    }

    fn name(&self, tag: &str) -> String {
        self.registry.reference(&format!("acme/authz:{tag}"))
    }

    fn pinned(&self, built: &Value) -> String {
        self.registry
            .reference(&format!("acme/authz@{}", text(&built["digest"])))
    }

    async fn log_in(&self, author: &Author) {
        if self.registry.kind != Kind::Distribution {
            return;
        }
        let (host, flags) = (&self.registry.host, &self.flags);
        let login = format!("bundlegate login {host} -u {USER} --password-stdin {flags}");
        author
            .shell(&format!("echo wrong | {login}"))
            .await
            .refused("password");
        author.line(&format!("echo '{PASSWORD}' | {login}")).await;
    }

    async fn build(&self, author: &Author) -> Value {
        let name = self.name("v1");
        let line = format!(
            "bundlegate build policy -t {name} --test -a org.opencontainers.image.vendor=acme"
        );
        let said = author.line(&line).await;
        let built = author.json(&line).await;
        for key in ["reference", "digest", "layer", "revision"] {
            assert_eq!(fact(&said, key), text(&built[key]), "{key}");
        }
        assert_eq!(fact(&said, "size"), format!("{} B, 3 files", built["size"]));
        assert_eq!(
            (fact(&said, "roots"), &built["roots"]),
            ("authz, roles".to_owned(), &json!(["authz", "roles"]))
        );
        assert_eq!(
            (text(&built["reference"]), text(&built["revision"]).len()),
            (name.as_str(), 12)
        );

        let images = rows(&author.line("bundlegate images").await);
        let digest = &text(&built["digest"])["sha256:".len()..][..12];
        assert_eq!(
            images[0],
            [
                "REPOSITORY",
                "TAG",
                "DIGEST",
                "REVISION",
                "RECEIVED",
                "SIZE",
                "SIGNED"
            ]
        );
        let [repository, tag, short, revision, received, size, signed] = &images[1][..] else {
            panic!("{images:?}")
        };
        assert_eq!(
            [repository.as_str(), tag, short, revision, signed],
            [
                &self.registry.reference("acme/authz"),
                "v1",
                digest,
                text(&built["revision"]),
                "not in the store"
            ]
        );
        assert!(
            received.ends_with(" ago") && *size == format!("{} B", built["size"]),
            "{images:?}"
        );
        let listed = &author.json("bundlegate images").await;
        assert_eq!(
            listed.as_array().unwrap().len(),
            1,
            "built twice, it is one image: {listed}"
        );
        assert_eq!(
            [&listed[0]["digest"], &listed[0]["size"]],
            [&built["digest"], &built["size"]]
        );
        built
    }

    async fn tag_and_push(&self, author: &Author, built: &Value) {
        let (name, live, flags) = (self.name("v1"), self.name("live"), &self.flags);
        let tagged = author.line(&format!("bundlegate tag {name} {live}")).await;
        assert_eq!(tagged, format!("{live}@{}", text(&built["digest"])));
        let again = author.json(&format!("bundlegate tag {name} {live}")).await;
        assert_eq!(
            again,
            json!({ "reference": live, "digest": built["digest"] })
        );
        let images = rows(&author.line("bundlegate images").await);
        let mut tags: Vec<_> = images[1..].iter().map(|row| row[1].as_str()).collect();
        tags.sort_unstable();
        assert_eq!(tags, ["live", "v1"]);

        let pushed = author
            .line(&format!("bundlegate push {name} {live} {flags}"))
            .await;
        let pinned = self.pinned(built);
        assert_eq!(pushed, format!("{pinned}\n{pinned}"));
        let again = author
            .json(&format!("bundlegate push {name} {flags}"))
            .await;
        assert_eq!(
            again,
            json!([{ "reference": name, "digest": built["digest"] }])
        );
    }

    async fn sign(&self, author: &Author, built: &Value) {
        let (name, pinned, flags, cosign) = (
            self.name("live"),
            self.pinned(built),
            &self.flags,
            &self.cosign,
        );
        author.line("cosign generate-key-pair").await;
        let verify = format!("bundlegate verify {name} --key cosign.pub {flags}");
        author.shell(&verify).await.refused("no signature");
        let how = "-y --key cosign.key --tlog-upload=false --use-signing-config=false";
        author
            .line(&format!("cosign sign {how} {cosign} {pinned}"))
            .await;
        author
            .line(&format!(
                "cosign verify --key cosign.pub --insecure-ignore-tlog {cosign} {name}"
            ))
            .await;
        let said = author.line(&verify).await;
        assert!(
            said.starts_with(&format!("verified by cosign.pub\n{pinned}")),
            "{said}"
        );
        let said = author.json(&verify).await;
        assert_eq!(
            (&said["verified"], &said["digest"]),
            (&json!(true), &built["digest"])
        );
        assert_eq!(said["signatures"][0]["format"], "bundle", "{said}");
    }

    async fn pull(&self, other: &Author, built: &Value) {
        let (name, flags) = (self.name("live"), &self.flags);
        assert_eq!(other.line("bundlegate images").await.lines().count(), 1);
        assert_eq!(other.json("bundlegate images").await, json!([]));
        let pull = format!("bundlegate pull {name} --key cosign.pub {flags}");
        assert_eq!(other.line(&pull).await, self.pinned(built));
        assert_eq!(
            other.json(&pull).await,
            json!([{ "reference": name, "digest": built["digest"] }])
        );
        let images = other.json("bundlegate images").await;
        assert_eq!(images[0]["signed"], true, "{images}");
        for key in ["digest", "revision", "size"] {
            assert_eq!(images[0][key], built[key], "{images}");
        }
        other
            .line(&format!(
                "bundlegate verify --local {name} --key cosign.pub"
            ))
            .await;
        let inspected = other.json(&format!("bundlegate inspect {name}")).await;
        assert_eq!(inspected["packages"], json!(["authz"]));
        assert_eq!(inspected["entrypoints"], json!(["authz/allow"]));
        assert_eq!(inspected["signatures"][0]["format"], "bundle");
        assert_eq!(
            inspected["annotations"]["org.opencontainers.image.vendor"],
            "acme"
        );
        let said = other.line(&format!("bundlegate inspect {name}")).await;
        assert_eq!(fact(&said, "digest"), text(&built["digest"]));
        assert!(
            said.contains("authz/authz.rego") && !said.contains("authz_test.rego"),
            "{said}"
        );
    }

    async fn save(&self, other: &Author, built: &Value) {
        let name = self.name("live");
        let said = other
            .line(&format!("bundlegate save {name} -f bundle.tar.gz"))
            .await;
        assert_eq!(
            said,
            format!(
                "bundle.tar.gz: {} B, {}",
                built["size"],
                text(&built["layer"])
            )
        );
        let sum = other.line("sha256sum bundle.tar.gz").await;
        assert_eq!(
            sum.split(' ').next(),
            text(&built["layer"]).strip_prefix("sha256:"),
            "byte for byte"
        );
        other
            .line(&format!(
                "bundlegate save {name} -f - | cmp - bundle.tar.gz"
            ))
            .await;
        let said = other
            .json(&format!("bundlegate save {name} -f again.tar.gz"))
            .await;
        assert_eq!(
            (&said["layer"], &said["file"]),
            (&built["layer"], &json!("again.tar.gz"))
        );
        for opa in ["opa", "opa-0.70"] {
            assert_eq!(
                other.decides(opa, "data.authz.allow", READER).await,
                true,
                "{opa}"
            );
            assert_eq!(
                other.decides(opa, "data.authz.allow", WRITER).await,
                false,
                "{opa}"
            );
        }
        let ours = other
            .line(&format!(
                "bundlegate eval {name} data.authz.allow -i input.json"
            ))
            .await;
        let theirs = other
            .line("opa eval -b bundle.tar.gz -i input.json data.authz.allow")
            .await;
        let [ours, theirs] =
            [ours, theirs].map(|said| serde_json::from_str::<Value>(&said).unwrap());
        assert_eq!(
            ours["result"][0]["expressions"][0]["value"],
            theirs["result"][0]["expressions"][0]["value"]
        );
    }

    async fn list_remotely(&self, other: &Author, built: &Value) {
        let (flags, host, repository) = (
            &self.flags,
            &self.registry.host,
            self.registry.reference("acme/authz"),
        );
        let listing = format!("bundlegate images --remote {repository} {flags}");
        let listed = other.json(&listing).await;
        let named: Vec<_> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (text(&one["tag"]), &one["digest"]))
            .collect();
        assert_eq!(
            named,
            [("live", &built["digest"]), ("v1", &built["digest"])],
            "no tag of a signature among them"
        );
        // The others keep signatures under tags.
        let seen = if self.registry.kind == Kind::Referrers {
            Value::Null
        } else {
            json!(true)
        };
        assert_eq!(
            listed[0]["signed"], seen,
            "what was not looked for is not denied"
        );
        let shown = rows(&other.line(&listing).await);
        assert_eq!(shown[0], ["REPOSITORY", "TAG", "DIGEST", "SIGNED"]);
        assert_eq!(shown[1][..2], [repository.clone(), "live".to_owned()]);
        let repositories = other
            .json(&format!(
                "bundlegate images --remote {host} --search auth {flags}"
            ))
            .await;
        assert_eq!(repositories, json!([{ "repository": repository }]));
        let shown = other
            .line(&format!(
                "bundlegate images --remote {host} --search nothing {flags}"
            ))
            .await;
        assert_eq!(shown, "REPOSITORY");
    }

    async fn clear(&self, other: &Author, built: &Value) {
        let (name, flags) = (self.name("live"), &self.flags);
        let removed = other.line(&format!("bundlegate rm {name}")).await;
        assert_eq!(removed, format!("{name}@{}", text(&built["digest"])));
        assert_eq!(other.json("bundlegate images").await, json!([]));
        let blobs = fs::read_dir(other.path(".local/share/bundlegate/images/blobs/sha256"))
            .unwrap()
            .count();
        assert_eq!(blobs, 0, "neither the image nor its signatures stay behind");
        if self.registry.kind == Kind::Distribution {
            other
                .line(&format!("bundlegate logout {}", self.registry.host))
                .await;
            other
                .shell(&format!("bundlegate pull {name} {flags}"))
                .await
                .refused("login");
        }
    }
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}

/// The value in a line `name   value`.
fn fact(said: &str, name: &str) -> String {
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix("  "));
    line.unwrap_or_else(|| panic!("{name} is missing: {said}"))
        .trim()
        .to_owned()
}

/// The cells of a table, whose columns have two spaces between them at least.
fn rows(table: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| {
        line.split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .map(str::to_owned)
            .collect()
    };
    table.lines().map(cells).collect()
}
