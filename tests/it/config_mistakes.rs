//! Mistakes in a configuration, with the sentences that `bundlegate config check` prints, and
//! whether an editor with the schema marks them.
//!
//! `config_mistakes/mistakes.txt` has them all. A mistake begins with `## TITLE`; its text stands
//! below a minimal configuration ([`LEAST`]), or alone if the title begins with `whole: `. `<FF>` is a
//! byte that is not UTF-8, and `<MiB>` a comment of a mebibyte. Then come the lines that the program
//! prints, and what the schema says: `refuses`, or `cannot see` for what depends on a file, on a name
//! elsewhere, or on a grammar of its own. `UPDATE_MISTAKES=1` writes the present ones into the file.

use std::{fmt::Write as _, fs, path::Path};

use boon::{Compiler, SchemaIndex, Schemas};
use bundlegate::config;
use serde_json::Value;

use crate::command::Author;

const FILE: &str = "tests/it/config_mistakes/mistakes.txt";
const LEAST: &str = "version: 1
clients: [{ name: anyone, anonymous: true, bundles: ['**'] }]
";

/// One mistake of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mistake {
    title: String,
    text: String,
    /// The printed lines, and then the verdict of the schema.
    found: Vec<String>,
}

impl Mistake {
    /// The content of the configuration.
    fn content(&self) -> Vec<u8> {
        let least = match self.title.starts_with("whole: ") {
            true => "",
            false => LEAST,
        };
        let mut content = Vec::new();
        let text = format!("{least}{}", self.text).replace("<MiB>", &"#".repeat(1 << 20));
        for (index, part) in text.split("<FF>").enumerate() {
            if index > 0 {
                content.push(0xff);
            }
            content.extend(part.bytes());
        }
        content
    }

    fn render(&self) -> String {
        let mut text = format!("## {}\n{}", self.title, self.text);
        for line in &self.found {
            writeln!(text, "=> {line}").unwrap();
        }
        text
    }
}

fn mistakes() -> Vec<Mistake> {
    let file = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE)).unwrap();
    let mistakes = file.split("## ").skip(1).map(|block| {
        let (title, rest) = block.split_once('\n').unwrap();
        let (found, text): (Vec<_>, Vec<_>) = rest
            .trim_end_matches('\n')
            .split('\n')
            .partition(|line| line.starts_with("=> "));
        let text = text.iter().map(|line| format!("{line}\n")).collect();
        Mistake {
            title: title.to_owned(),
            text,
            found: found.iter().map(|line| line[3..].to_owned()).collect(),
        }
    });
    mistakes.collect()
}

/// A folder with good and bad files for the mistakes to name.
fn folder() -> Author {
    let author = Author::new();
    let pair = || rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
    let (one, other) = (pair(), pair());
    let public = |pair: &rcgen::CertifiedKey<rcgen::KeyPair>| pair.signing_key.public_key_pem();
    for (name, content) in [
        ("tls.crt", one.cert.pem()),
        ("tls.key", one.signing_key.serialize_pem()),
        ("other.key", other.signing_key.serialize_pem()),
        ("release.pub", public(&one)),
        ("two.pub", public(&one) + &public(&other)),
        ("tokens", "s3cret\n".to_owned()),
        ("spaces.tokens", "s3cret\nnot a token\n".to_owned()),
        ("empty", String::new()),
        (
            "cut.pem",
            "-----BEGIN CERTIFICATE-----\nMIIB!!\n-----END".to_owned(),
        ),
        ("root.json", "{}".to_owned()),
        (
            "broken.rego",
            "package signature\n\nallow if input.x ==\n".to_owned(),
        ),
        ("cache/x", "not a cache".to_owned()),
    ] {
        author.write(name, &content);
    }
    fs::create_dir(author.path("folder")).unwrap();
    author
}

/// The validator of an editor.
struct Schema {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Schema {
    fn new() -> Self {
        let mut compiler = Compiler::new();
        let (mut schemas, id) = (Schemas::new(), "urn:schema");
        compiler.add_resource(id, config::schema()).unwrap();
        let index = compiler.compile(id, &mut schemas);
        let index = index.unwrap_or_else(|error| panic!("{error:#}"));
        Self { schemas, index }
    }

    fn verdict(&self, content: &[u8]) -> &'static str {
        let value: Option<Value> = serde_saphyr::from_slice(content).ok();
        match value.map(|value| self.schemas.validate(&value, self.index).is_ok()) {
            Some(false) => "schema: refuses",
            Some(true) => "schema: cannot see",
            None => "schema: cannot see (not YAML)",
        }
    }
}

#[test]
fn every_mistake_has_its_sentence() {
    let (author, schema) = (folder(), Schema::new());
    let written = mistakes();
    let found: Vec<_> = written
        .iter()
        .map(|mistake| {
            let content = mistake.content();
            fs::write(author.path("bundlegate.yaml"), &content).unwrap();
            let ran = author.run(&["config", "check"]);
            assert_eq!(
                (ran.code, ran.stdout.as_str()),
                (1, ""),
                "{mistake:?}: {ran:?}"
            );
            let lines = ran.stderr.lines().map(|line| {
                line.strip_prefix("bundlegate: ")
                    .unwrap_or_else(|| panic!("{}: {line}", mistake.title))
                    .to_owned()
            });
            let mut found: Vec<_> = lines.collect();
            found.push(schema.verdict(&content).to_owned());
            Mistake {
                found,
                ..mistake.clone()
            }
        })
        .collect();
    if std::env::var_os("UPDATE_MISTAKES").is_some() {
        let text: Vec<_> = found.iter().map(Mistake::render).collect();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
        return fs::write(file, text.join("\n")).unwrap();
    }
    assert!(written.len() >= 60, "{} mistakes", written.len());
    let differ = written
        .iter()
        .zip(&found)
        .filter(|(written, found)| written != found);
    let report: String = differ
        .map(|(written, found)| difference(written, found))
        .collect();
    assert!(report.is_empty(), "differs from {FILE}:\n{report}");
}

/// A mistake whose sentences are others, with the lines that went and came.
fn difference(written: &Mistake, found: &Mistake) -> String {
    let mut text = format!("\n## {}\n{}", written.title, written.text);
    let lines = |sign: &str, these: &Mistake, those: &Mistake| {
        let only = these
            .found
            .iter()
            .filter(|line| !those.found.contains(line));
        only.map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    text.push_str(&lines("-", written, found));
    text.push_str(&lines("+", found, written));
    text
}

/// A sentence that an operator reads: the place, the key, the problem and a way out, in one line.
#[test]
fn every_sentence_says_where_and_what_to_do() {
    for mistake in mistakes() {
        let (verdict, sentences) = mistake.found.split_last().unwrap();
        assert!(verdict.starts_with("schema: "), "{mistake:?}");
        assert!(!sentences.is_empty(), "{mistake:?}");
        for sentence in sentences {
            assert!(sentence.starts_with("bundlegate.yaml:"), "{sentence}");
            let way_out = sentence.contains("; ") || sentence.ends_with('?');
            assert!(way_out, "no way out: {sentence}");
            assert!(!sentence.contains("s3cret"), "{sentence}");
        }
    }
}
