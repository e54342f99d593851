use crate::bundle::yaml::to_json;

#[test]
fn an_error_names_line_and_column() {
    for (text, error) in [
        ("a: 1\nb: [1,\n", "3:1: expected a value"),
        (
            "a: 1\n\tb: 2",
            "2:1: a tab can't be used for indentation; use spaces",
        ),
        ("a: 'x\nb: 2\n", "1:4: unterminated quoted string"),
        ("a: 1\nb\n", "2:1: a mapping key without `:`"),
        (
            "a: b: c",
            "1:5: a mapping value can't start here; quote a text that contains `: `",
        ),
        ("a: *x", "1:4: unknown alias *x: no anchor &x precedes it"),
        ("a: @b", "1:4: a value can't start with `@`; quote it"),
        (
            "%YAML 1.2\n---\n",
            "1:1: OPA refuses `%YAML 1.2`: only 1.1 may be declared",
        ),
        (
            "a: 1\nb: .inf\n",
            "2:4: JSON can't represent infinity or NaN; quote it",
        ),
        (
            "a:\n  ~: b\n",
            "2:3: a mapping key can't be null or a timestamp, because JSON has string keys only; quote it",
        ),
        (
            "? [a]\n: b",
            "1:3: a mapping key can't be a sequence or a mapping, because JSON has string keys only",
        ),
        ("a: !!int x", "1:4: the text does not match its tag !!int"),
        ("a: !!binary x", "1:4: the value of !!binary is not base64"),
        (
            "<<: 1",
            "1:5: a merge key `<<` takes a mapping or a sequence of mappings",
        ),
        (
            "a: &x [*x]",
            "1:8: the value of the anchor &x contains itself",
        ),
        ("~: 1\n~: 2\n", "2:1: duplicate key in a mapping"),
        ("a: b\u{1}", "1:5: the character U+0001 is not allowed"),
        (
            "é: \"\\q\"",
            "1:5: unknown escape; in double quotes write a backslash as `\\\\`",
        ),
        (
            "a:\r\n  b\r\n c: d",
            "3:3: a mapping value can't start here; quote a text that contains `: `",
        ),
    ] {
        assert_eq!(
            to_json(text.as_bytes()).unwrap_err().to_string(),
            error,
            "{text:?}"
        );
    }
    let error = to_json(b"a: 1\nb: \xff").unwrap_err();
    assert_eq!(error.to_string(), "2:4: the text is not valid UTF-8");
}
