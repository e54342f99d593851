//! `eval` and `repl` on a bundle in a layout folder.

use serde_json::json;

use crate::command::Author;

const POLICY: &[(&str, &str)] = &[
    (
        "authz/authz.rego",
        "package authz\n\ndefault allow := false\n\nallow if input.user in data.people.admins\n",
    ),
    ("people/data.json", r#"{"admins": ["alice"]}"#),
];
const REF: &str = "oci-layout:layout:v1";

fn author() -> Author {
    let author = Author::new();
    author.artifact(POLICY);
    author
}

#[test]
fn a_question_is_answered_in_the_json_of_opa_eval() {
    let author = author();
    author.write("input.json", r#"{"user": "alice"}"#);
    let answer = author
        .run(&["eval", REF, "data.authz.allow", "--input", "input.json"])
        .json();
    let expression =
        json!({"value": true, "text": "data.authz.allow", "location": {"row": 1, "col": 1}});
    assert_eq!(answer, json!({"result": [{"expressions": [expression]}]}));
    let answer = author
        .run_with(
            &["eval", REF, "x := data.authz.allow", "-i", "-"],
            "user: bob\n",
            &[],
        )
        .json();
    assert_eq!(answer["result"][0]["bindings"], json!({"x": false}));
    assert_eq!(
        author.run(&["eval", REF, "data.authz.nothing"]).json(),
        json!({})
    );
}

/// The functions that policies call most, beside the evaluator's core.
#[test]
fn the_usual_builtins_are_there() {
    let author = author();
    for (query, expected) in [
        (r#"regex.match("^a+$", "aaa")"#, json!(true)),
        (
            r#"glob.match("*.example.com", ["."], "api.example.com")"#,
            json!(true),
        ),
        (r#"base64.decode(base64.encode("x"))"#, json!("x")),
        (r#"hex.encode("x")"#, json!("78")),
        (
            r#"net.cidr_contains("10.0.0.0/8", "10.1.2.3")"#,
            json!(true),
        ),
        (r#"semver.compare("1.2.0", "1.10.0")"#, json!(-1)),
        (
            r#"time.parse_rfc3339_ns("1970-01-01T00:00:01Z")"#,
            json!(1_000_000_000),
        ),
        (r#"urlquery.encode("a b")"#, json!("a+b")),
        (r#"yaml.unmarshal("a: 1").a"#, json!(1)),
        (
            r#"json.patch({"a": 1}, [{"op": "add", "path": "/b", "value": 2}]).b"#,
            json!(2),
        ),
        (
            r#"graph.reachable({"a": ["b"], "b": []}, {"a"})"#,
            json!(["a", "b"]),
        ),
    ] {
        assert_eq!(
            author.run(&["eval", REF, query]).json()["result"][0]["expressions"][0]["value"],
            expected,
            "{query}"
        );
    }
}

#[test]
fn what_can_not_be_answered_is_one_line_with_the_reason() {
    let author = author();
    author.write("broken.json", "{");
    for (arguments, expected) in [
        (&["eval", REF, "data.authz."][..], "unexpected end of input"),
        (
            &["eval", REF, "nothing(1)"],
            "could not find function nothing",
        ),
        (
            &["eval", REF, "1", "--input", "missing.json"],
            "missing.json",
        ),
        (&["eval", "oci-layout:layout:v2", "1"], "no such tag"),
        (&["eval", "oci-layout:nowhere", "1"], "nowhere"),
        (&["eval", REF, &"[".repeat(40)], "nested too deep"),
        // No registry listens there; the store is searched first.
        (
            &["eval", "127.0.0.1:1/authz:v1", "1", "--plain-http"],
            "not in the image store: ",
        ),
    ] {
        let ran = author.run(arguments);
        assert!(ran.error().contains(expected), "{arguments:?}: {ran:?}");
    }
    let broken = author.run(&["eval", REF, "1", "--input", "broken.json"]);
    assert_eq!(broken.code, 1);
    let lines: Vec<_> = broken.stderr.lines().collect();
    assert!(
        lines[0].contains("broken.json:1:1: ") && lines[1..] == ["  1 | {", "    | ^"],
        "{broken:?}"
    );
    assert_eq!(author.run(&["eval", REF]).code, 2);
    assert_eq!(author.run(&["eval", "authz:v1", "1"]).code, 2);
}

#[test]
fn rego_that_the_evaluator_does_not_know_names_its_place_and_the_way_out() {
    let author = Author::new();
    author.artifact(&[(
        "new.rego",
        "package new\n\nimport rego.v9\n\nallow if { {{ }\n",
    )]);
    let ran = author.run(&["eval", REF, "data.new"]);
    assert!(
        ran.error().contains("new.rego:") && ran.error().contains("opa eval -b"),
        "{ran:?}"
    );
}

#[test]
fn lines_of_a_script_are_answered_one_by_one() {
    let author = author();
    author.write("bob.json", r#"{"user": "bob"}"#);
    let script = "# who may?\n\ndata.authz.allow\n:input {\"user\": \"alice\"}\ndata.authz.allow\n:input @bob.json\n\
                  data.authz.allow\nx := data.people.admins[_]\ninput.nothing\n:packages\n:quit\nnot reached\n";
    let ran = author.run_with(&["repl", REF], script, &[]);
    assert_eq!(
        ran.ok(),
        "false\ntrue\nfalse\n{\"x\":\"alice\"}\nundefined\ndata.authz\n"
    );
}

#[test]
fn a_script_with_a_bad_line_goes_on_and_fails_at_the_end() {
    let author = author();
    let ran = author.run_with(&["repl", REF], "1 +\n:nonsense\n2 + 2\n", &[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "4\n"), "{ran:?}");
    let told: Vec<_> = ran.stderr.lines().collect();
    assert!(
        told[0].contains("line 1: ") && told[1].contains("line 2: :nonsense") && told.len() == 3,
        "{told:?}"
    );
}
