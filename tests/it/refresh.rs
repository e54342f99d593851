//! `POST /refresh/NAME` and `bundlegate refresh`.

use bundlegate::oci::Digest;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::{spawn, task::spawn_blocking};

use crate::{
    command::{Author, Ran},
    faulty::{Fault, FaultyRegistry, Hold},
    gateway::{HOUR, InProcess, PATIENCE, Setup, TestGateway, bundle, error, eventually, header},
    shared::poll_until,
    signing::Signer,
};

type Gate = TestGateway<InProcess>;

/// A registry with version one, and a gateway that serves it and polls once an hour.
async fn serving() -> (FaultyRegistry, Gate) {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let gate = Gate::before(&registry, HOUR).await;
    gate.get("", 0).await.error_for_status().unwrap();
    (registry, gate)
}

impl Gate {
    /// A request for a refresh, as a program on this machine sends it.
    pub(crate) fn refreshing(&self, name: &str) -> RequestBuilder {
        let url = format!("http://{}/refresh/{name}", self.admin);
        let request = self.http.post(url).timeout(PATIENCE);
        request.header("content-type", "application/json")
    }

    pub(crate) async fn refresh(&self) -> Value {
        let response = self.refreshing(self.name()).send().await.unwrap();
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        let admin = format!("http://{}", self.admin);
        let arguments: Vec<_> = arguments.iter().map(|&text| text.to_owned()).collect();
        let running = spawn_blocking(move || {
            let mut all = vec!["refresh", "--admin", &admin];
            all.extend(arguments.iter().map(String::as_str));
            Author::new().run(&all)
        });
        running.await.unwrap()
    }
}

fn refused(registry: &FaultyRegistry, status: u16, headers: Vec<(&'static str, String)>) {
    registry.fail("", usize::MAX, Fault::Status(status, headers));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_of_a_suspended_bundle_says_so_and_checks_nothing() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let setup = Setup {
        suspend: true,
        ..Setup::default()
    };
    let gate = Gate::with(&registry, setup).await;
    let answer = gate.refresh().await;
    assert_eq!(answer["outcome"], "suspended", "{answer}");
    let ran = gate.run(&[gate.name()]).await;
    assert!(
        ran.code == 1 && ran.stderr.contains("remove bundles.authz/main.suspend"),
        "{ran:?}"
    );
    assert!(registry.asked("").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_ends_when_the_bundle_is_suspended_meanwhile() {
    let (registry, gate) = serving().await;
    let asked = registry.count();
    registry.fail("", usize::MAX, Fault::Stall);
    let suspended = async {
        eventually("a check", || registry.count() > asked).await;
        gate.suspend(true);
    };
    let (answer, ()) = tokio::join!(gate.refresh(), suspended);
    assert_eq!(answer["outcome"], "suspended", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_answers_with_what_the_check_has_found() {
    let (registry, gate) = serving().await;
    let one = gate.status().manifest.unwrap();
    let answer = gate.refresh().await;
    assert_eq!(
        (&answer["outcome"], &answer["manifest"]),
        (&json!("unchanged"), &json!(one)),
        "{answer}"
    );
    let (two, _) = registry.put_artifact("live", &bundle("two"));
    let answer = gate.refresh().await;
    assert_eq!(
        (&answer["outcome"], &answer["manifest"], &answer["state"]),
        (&json!("changed"), &json!(two), &json!("serving")),
        "{answer}"
    );
    let etag = answer["etag"].as_str().unwrap();
    assert_eq!(gate.get(etag, 0).await.status(), StatusCode::NOT_MODIFIED);
    registry.put_artifact("live", b"no bundle");
    let answer = gate.refresh().await;
    assert_eq!(
        (&answer["outcome"], &answer["failure"]["class"]),
        (&json!("failed"), &json!("defect")),
        "{answer}"
    );
    assert_eq!(
        answer["manifest"],
        json!(two),
        "the last good version stays"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_says_what_is_served_and_fails_if_it_is_not_the_registrys() {
    let (registry, gate) = serving().await;
    let name = gate.name();
    let one = gate.status().manifest.unwrap();
    let said = gate.run(&[name]).await.ok();
    let expected = format!("{name}: unchanged: serving {one} (revision ");
    assert!(said.starts_with(&expected), "{said}");
    let (two, _) = registry.put_artifact("live", &bundle("two"));
    let said = gate.run(&[name]).await.ok();
    let expected = format!("{name}: changed: serving {two} (revision ");
    assert!(said.starts_with(&expected), "{said}");
    let said: Value = serde_json::from_str(&gate.run(&[name, "--json"]).await.ok()).unwrap();
    assert_eq!(said["outcome"], "unchanged");
    refused(&registry, 503, vec![]);
    let ran = gate.run(&[name, "--json"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let said: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(said["failure"]["class"], "transient");
    assert!(
        ran.stderr
            .starts_with(&format!("bundlegate: refresh {name}: "))
            && ran.stderr.contains("503")
            && ran.stderr.contains(two.as_str()),
        "{ran:?}"
    );
    let ran = gate.run(&["other"]).await;
    let expected = "bundlegate: refresh other: no bundle of this name is configured; see /status\n";
    assert_eq!((ran.code, ran.stderr.as_str()), (1, expected));
    for arguments in [
        &["a", "--admin", "ftp://127.0.0.1"][..],
        &["a", "--admin", "unix:"],
        &["a", "--admin", "127.0.0.1:8090"],
        &["a", "--wait", "0s"],
        &["a", "--wait", "6m"],
        &[],
    ] {
        let mut all = vec!["refresh"];
        all.extend(arguments);
        let ran = Author::new().run(&all);
        assert_eq!(ran.code, 2, "{arguments:?}: {ran:?}");
    }
    let ran = Author::new().run(&["refresh", "a", "--admin", "http://127.0.0.1:1"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("does not answer"),
        "{ran:?}"
    );
}

/// A check that is under way has perhaps resolved the tag before the push that the caller means.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_during_a_check_waits_for_the_one_after_it() {
    let (registry, gate) = serving().await;
    let hold = Hold::default();
    registry.fail("HEAD", 1, Fault::Held(hold.clone()));
    let before = registry.asked("HEAD").len();
    let refresh = |gate: &Gate| {
        let request = gate.refreshing(gate.name());
        spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() })
    };
    let first = refresh(&gate);
    poll_until("a check under way", async || {
        (registry.asked("HEAD").len() > before).then_some(())
    })
    .await;
    // The answer that is held has the tag of version one.
    let (two, _) = registry.put_artifact("live", &bundle("two"));
    let later: Vec<_> = (0..20).map(|_| refresh(&gate)).collect();
    // All of them are there before the check ends.
    gate.refreshing("other").send().await.unwrap();
    hold.release();
    assert_eq!(first.await.unwrap()["outcome"], "unchanged");
    for answer in later {
        assert_eq!(answer.await.unwrap()["manifest"], json!(two));
    }
    let asked = registry.asked("HEAD").len() - before;
    assert!(asked < 20, "twenty callers share a few checks: {asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_is_not_overridden() {
    let (registry, gate) = serving().await;
    refused(&registry, 429, vec![("retry-after", "600".into())]);
    assert_eq!(gate.refresh().await["failure"]["class"], "rate_limited");
    registry.heal();
    registry.put_artifact("live", &bundle("two"));
    let asked = registry.asked("").len();
    for _ in 0..3 {
        let response = gate.refreshing(gate.name()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["outcome"], "held", "{answer}");
        assert!(answer["next_check"].is_string(), "{answer}");
    }
    let ran = gate.run(&[gate.name()]).await;
    assert!(
        ran.code == 1 && ran.stderr.contains("the next check is at "),
        "{ran:?}"
    );
    assert_eq!(registry.asked("").len(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_takes_long_is_answered_with_202() {
    let (registry, gate) = serving().await;
    registry.fail("HEAD", usize::MAX, Fault::Stall);
    let request = gate.refreshing(gate.name()).header("prefer", "wait=1");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["outcome"], "checking", "{answer}");
}

/// A web page that a user of the machine opens can send requests to loopback, too.
#[tokio::test(flavor = "multi_thread")]
async fn no_web_page_and_no_other_machine_can_cause_a_check() {
    let (registry, gate) = serving().await;
    let asked = registry.asked("").len();
    let url = format!("http://{}/refresh/{}", gate.admin, gate.name());
    let post = || gate.http.post(&url);
    let json = || post().header("content-type", "application/json");
    let reason = async |request: RequestBuilder, status: u16| {
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        error(response).await["reason"].as_str().unwrap().to_owned()
    };
    for (request, status, expected) in [
        (post(), 415, "unsupported_media_type"),
        (
            post().header("content-type", "text/plain").body("{}"),
            415,
            "unsupported_media_type",
        ),
        (
            json().header("origin", "http://evil.example"),
            403,
            "forbidden",
        ),
        (json().header("origin", "null"), 403, "forbidden"),
        (json().header("host", "evil.example"), 403, "forbidden"),
        (
            json().header("x-forwarded-for", "10.0.0.1"),
            403,
            "forbidden",
        ),
        (json().header("forwarded", "for=10.0.0.1"), 403, "forbidden"),
        (json().body(vec![b' '; 5000]), 413, "too_large"),
    ] {
        assert_eq!(reason(request, status).await, expected);
    }
    let no_bundle = gate.refreshing("authz%2Fother");
    assert_eq!(reason(no_bundle, 404).await, "not_found");
    assert_eq!(reason(gate.refreshing("%ff"), 400).await, "bad_request");
    let get: Response = gate.http.get(&url).send().await.unwrap();
    assert_eq!(get.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(header(&get, "allow"), "POST");
    assert_eq!(error(get).await["reason"], "method_not_allowed");
    assert_eq!(registry.asked("").len(), asked, "a check was caused");
    // The name of the bundle has a slash, which may be encoded.
    let encoded = gate.name().replace('/', "%2F");
    let response = gate.refreshing(&encoded).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_lacks_evidence_is_served_once_it_is_signed_and_refreshed() {
    let (registry, signer) = (FaultyRegistry::start().await, Signer::new());
    let (digest, _): (Digest, _) = registry.put_artifact("live", &bundle("one"));
    let mut setup = Setup {
        policy: signer.policy(),
        ..Setup::default()
    };
    setup.rules.poll = HOUR;
    let gate = Gate::with(&registry, setup).await;
    assert_eq!(gate.refresh().await["failure"]["class"], "evidence");
    signer.sign_legacy(&registry, &digest);
    assert_eq!(gate.refresh().await["outcome"], "changed");
}
