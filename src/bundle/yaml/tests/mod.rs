mod limits;
mod opa;
mod positions;
pub(crate) mod snippets;

use super::to_json;
use snippets::{REFUSED, rows};

/// The JSON of a text, or [`REFUSED`].
fn read(text: &[u8]) -> String {
    to_json(text).map_or_else(
        |_| REFUSED.to_owned(),
        |json| String::from_utf8(json).unwrap(),
    )
}

#[test]
fn every_snippet_becomes_the_json_that_opa_makes_of_it() {
    assert!(rows().count() > 900);
    let wrong: Vec<String> = rows()
        .map(|(text, json)| (text, json, read(text.as_bytes())))
        .filter(|(_, json, ours)| **json != ours.as_str())
        .map(|(text, json, ours)| format!("{text:?}\n  OPA: {json}\n  we:  {ours}"))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn yaml_scalars_have_the_values_of_opa() {
    let yaml =
        b"countries: [NO, SE]\nzip: 01234\nmode: 0755\nsize: 1e3\nflags: 0x_1F\ncount: 1_000\n";
    assert_eq!(
        read(yaml),
        r#"{"count":1000,"countries":["NO","SE"],"flags":31,"mode":493,"size":1000,"zip":668}"#
    );
}

#[test]
fn json_is_valid_yaml() {
    let json = r#"{"a":[1,-0.5,true,null,"x\u00e9\n\"",{}],"b":{"c":[]}}"#;
    assert_eq!(
        read(json.as_bytes()),
        "{\"a\":[1,-0.5,true,null,\"xé\\n\\\"\",{}],\"b\":{\"c\":[]}}"
    );
}

#[test]
fn utf_16_with_a_byte_order_mark_is_read() {
    let text = "a: é\u{1f600}\nb: [1]\n";
    for (mark, unit) in [
        ([0xff, 0xfe], u16::to_le_bytes as fn(u16) -> [u8; 2]),
        ([0xfe, 0xff], u16::to_be_bytes as fn(u16) -> [u8; 2]),
    ] {
        let mut bytes = mark.to_vec();
        bytes.extend(text.encode_utf16().flat_map(unit));
        assert_eq!(read(&bytes), "{\"a\":\"é\u{1f600}\",\"b\":[1]}");
        bytes.push(b'a');
        assert_eq!(
            to_json(&bytes).unwrap_err().to_string(),
            "3:1: the UTF-16 text ends within a character"
        );
        bytes.truncate(2);
        bytes.extend(unit(0xd83d));
        assert_eq!(
            to_json(&bytes).unwrap_err().to_string(),
            "1:1: the text is not valid UTF-16"
        );
    }
}

/// go-yaml looks for the mark at the start of its read buffer, and then drops the first character
/// of each line in it: OPA reads `\u{feff}\u{feff}a: 1\nbc: 2` as {"a":1,"c":2}.
#[test]
fn a_byte_order_mark_inside_a_text_is_refused() {
    assert_eq!(read("\u{feff}a: 1".as_bytes()), r#"{"a":1}"#);
    assert_eq!(read(b"\"\\uFEFFa\""), "\"\u{feff}a\"");
    for text in [
        "\u{feff}\u{feff}a: 1\nbc: 2",
        "a: 1\n\u{feff}b: 2",
        "a: \"\u{feff}\"",
    ] {
        let error = to_json(text.as_bytes()).unwrap_err();
        assert!(
            error.reason().contains("byte order mark"),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn keys_of_different_types_with_one_name_in_json_are_refused() {
    for text in [
        "c: {<<: {'1': a}, 1: b}",
        "{1: a, &k '1': b, ? *k : c, 1.0: d}",
    ] {
        assert_eq!(read(text.as_bytes()), REFUSED, "{text:?}");
    }
}
