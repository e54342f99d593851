//! `eval` gives the JSON that the real OPA gives, on the same bundle.

use serde_json::Value;

use crate::support::{Artifact, Author, Kind, Registry};

const POLICY: &[(&str, &str)] = &[
    (
        "authz/authz.rego",
        "package authz\n\nimport data.people\n\ndefault allow := false\n\nallow if input.user in people.admins\n\n\
         rights contains right if {\n\tsome right in people.rights[input.user]\n\tstartswith(right, \"re\")\n}\n\n\
         deny contains sprintf(\"%s may not %s\", [input.user, input.action]) if not allow\n",
    ),
    (
        "people/data.json",
        r#"{"admins": ["alice"], "rights": {"bob": ["read", "rest", "write"]}, "pi": 3.14, "big": 12345678901234567890}"#,
    ),
    ("people/more/data.yaml", "list:\n  - 1\n  - two\n"),
];

const QUERIES: &[&str] = &[
    "data.authz.allow",
    "data.authz",
    "data.authz.rights",
    "data.authz.nothing",
    "data.people",
    "x := data.people.more.list[i]",
    "x := 1; y := x + 1; y > 1",
    "1 == 2",
    "input.user",
    "[right | some right in data.authz.rights]",
    "count(data.people.rights.bob) / 2",
    "regex.match(`^a`, input.user)",
    "time.format(0)",
    "json.marshal({\"b\": 1, \"a\": [true, null]})",
    "some name; data.people.rights[name]",
];

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_opa() {
    let (author, registry) = (Author::new(), Registry::start(Kind::Distribution).await);
    let artifact = Artifact::built("r1", POLICY).await;
    registry.push("acme/authz:v1", &artifact.file()).await;
    let reference = registry.reference("acme/authz:v1");
    let bundle = artifact.file();
    for user in ["alice", "bob"] {
        author.write(
            "input.json",
            &format!(r#"{{"user": "{user}", "action": "write"}}"#),
        );
        for query in QUERIES {
            let opa = [
                "eval",
                "--bundle",
                bundle.to_str().unwrap(),
                "--input",
                "input.json",
                query,
            ];
            let theirs = author.peer("opa", &opa).await.json();
            let ours = author
                .run(&[
                    "eval",
                    &reference,
                    query,
                    "--input",
                    "input.json",
                    "--plain-http",
                ])
                .await
                .json();
            assert_eq!(sorted(ours), sorted(theirs), "{user}: {query}");
        }
    }
}

/// Answers come in whatever order.
fn sorted(mut answer: Value) -> Value {
    if let Some(results) = answer["result"].as_array_mut() {
        results.sort_by_key(Value::to_string);
    }
    answer
}
