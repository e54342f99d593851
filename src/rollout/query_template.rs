//! The PromQL query of a check, with variables.

use serde::{Deserialize, Serialize};

use crate::telemetry::cut;

/// The maximum size of a query before its variables are replaced, in bytes.
const MAX_QUERY_BYTES: usize = 4 << 10;
/// The maximum size of a value before it is escaped, in bytes. Revisions come from artifacts and may
/// be longer.
const MAX_VALUE_BYTES: usize = 1 << 10;
/// The maximum size of the text that an error quotes, in bytes.
const MAX_QUOTED_BYTES: usize = 64;

const KNOWN: [(&str, Variable); 7] = [
    ("bundle", Variable::Bundle),
    ("stable.revision", Variable::StableRevision),
    ("stable.manifest", Variable::StableManifest),
    ("candidate.revision", Variable::CandidateRevision),
    ("candidate.manifest", Variable::CandidateManifest),
    ("step", Variable::Step),
    ("percent", Variable::Percent),
];

/// A PromQL query in which `{{NAME}}` stands for a value of [`Variables`]: `bundle`,
/// `stable.revision`, `stable.manifest`, `candidate.revision`, `candidate.manifest`, `step` and
/// `percent`. Spaces within the braces are allowed.
///
/// A variable that is a text is accepted only between double or single quotes, where its value can be
/// escaped: a revision is chosen by the author of the artifact, and must not change the query. After
/// `=~` and `!~` the value is escaped as a regular expression too, so it matches itself only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueryTemplate {
    text: String,
    parts: Vec<Part>,
}

/// The values of the variables.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variables<'a> {
    /// The name of the bundle.
    pub bundle: &'a str,
    /// The version that the fleet runs.
    pub stable: VersionText<'a>,
    /// The version that is rolled out.
    pub candidate: VersionText<'a>,
    /// The number of the current step, from 1.
    pub step: usize,
    /// The share of clients in the current step, from 0 to 100.
    pub percent: f64,
}

/// What identifies a version in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionText<'a> {
    /// The revision in the bundle's manifest; empty if there is none.
    pub revision: &'a str,
    /// The digest of the OCI manifest.
    pub manifest: &'a str,
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Only white space.
    #[error("the query is empty")]
    Empty,
    /// Larger than 4 KiB.
    #[error(
        "the query has {bytes} bytes, more than {MAX_QUERY_BYTES}; write a recording rule in \
         Prometheus, and query its metric"
    )]
    TooLong {
        /// The size of the text.
        bytes: usize,
    },
    /// `{{` without `}}`.
    #[error("`{text}` begins a variable that does not end; add `}}}}`")]
    Unclosed {
        /// The text from the braces on, cut.
        text: String,
    },
    /// A variable that does not exist.
    #[error("`{{{{{name}}}}}` is not a variable; write one of {}", known())]
    Unknown {
        /// The name, cut.
        name: String,
    },
    /// A text where its value can't be escaped.
    #[error(
        "`{{{{{name}}}}}` is not between double or single quotes, where its value is escaped; \
         write \"{{{{{name}}}}}\""
    )]
    Unquoted {
        /// The name of the variable.
        name: &'static str,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Number(Variable),
    Quoted { variable: Variable, string: Quotes },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variable {
    Bundle,
    StableRevision,
    StableManifest,
    CandidateRevision,
    CandidateManifest,
    Step,
    Percent,
}

/// A string of PromQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quotes {
    quote: char,
    /// It follows `=~` or `!~`.
    is_regex: bool,
}

/// Where in a query a position is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Code {
        is_after_tilde: bool,
    },
    Comment,
    String(Quotes),
    /// After a backslash in a string.
    Escape(Quotes),
}

impl QueryTemplate {
    /// Parses a query of at most 4 KiB. Whether it is valid PromQL is for Prometheus to say.
    ///
    /// # Errors
    /// See [`TemplateError`].
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.trim().is_empty() {
            return Err(TemplateError::Empty);
        }
        if text.len() > MAX_QUERY_BYTES {
            return Err(TemplateError::TooLong { bytes: text.len() });
        }
        let mut parts = Vec::new();
        let mut place = Place::Code {
            is_after_tilde: false,
        };
        let mut rest = text;
        while let Some((before, braces)) = rest.find("{{").map(|at| rest.split_at(at)) {
            let Some((name, after)) = braces[2..].split_once("}}") else {
                let text = quoted(braces);
                return Err(TemplateError::Unclosed { text });
            };
            place = before.chars().fold(place, Place::after);
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::variable(name.trim(), place)?);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        let text = text.to_owned();
        Ok(Self { text, parts })
    }

    /// The query with these values. A value above 1 KiB is cut. At most 2 MiB.
    pub fn render(&self, variables: &Variables<'_>) -> String {
        let mut query = String::with_capacity(self.text.len());
        for part in &self.parts {
            match part {
                Part::Text(text) => query.push_str(text),
                Part::Number(variable) => query.push_str(&variables.value(*variable)),
                Part::Quoted { variable, string } => {
                    string.push_escaped(&mut query, &variables.value(*variable));
                }
            }
        }
        query
    }

    /// The query as it was parsed.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl TryFrom<String> for QueryTemplate {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<QueryTemplate> for String {
    fn from(template: QueryTemplate) -> Self {
        template.text
    }
}

impl Variables<'_> {
    fn value(&self, variable: Variable) -> String {
        match variable {
            Variable::Bundle => self.bundle.to_owned(),
            Variable::StableRevision => self.stable.revision.to_owned(),
            Variable::StableManifest => self.stable.manifest.to_owned(),
            Variable::CandidateRevision => self.candidate.revision.to_owned(),
            Variable::CandidateManifest => self.candidate.manifest.to_owned(),
            Variable::Step => self.step.to_string(),
            Variable::Percent => self.percent.to_string(),
        }
    }
}

impl Part {
    fn variable(name: &str, place: Place) -> Result<Self, TemplateError> {
        let known = KNOWN.iter().find(|(known, _)| *known == name);
        let Some(&(name, variable)) = known else {
            let name = quoted(name);
            return Err(TemplateError::Unknown { name });
        };
        match (variable, place) {
            (Variable::Step | Variable::Percent, _) => Ok(Self::Number(variable)),
            // A string between backticks has no escapes.
            (_, Place::String(string)) if string.quote != '`' => {
                Ok(Self::Quoted { variable, string })
            }
            _ => Err(TemplateError::Unquoted { name }),
        }
    }
}

impl Place {
    /// The place after a character.
    fn after(self, char: char) -> Self {
        match self {
            Self::Code { is_after_tilde } => match char {
                '"' | '\'' | '`' => Self::String(Quotes {
                    quote: char,
                    is_regex: is_after_tilde,
                }),
                '#' => Self::Comment,
                // PromQL has the tilde in `=~` and `!~` only.
                '~' => Self::Code {
                    is_after_tilde: true,
                },
                _ => Self::Code {
                    is_after_tilde: is_after_tilde && char.is_whitespace(),
                },
            },
            Self::String(string) if char == string.quote => Self::Code {
                is_after_tilde: false,
            },
            Self::String(string) if char == '\\' && string.quote != '`' => Self::Escape(string),
            Self::Escape(string) => Self::String(string),
            Self::Comment if char == '\n' => Self::Code {
                is_after_tilde: false,
            },
            Self::Comment | Self::String(_) => self,
        }
    }
}

impl Quotes {
    fn push_escaped(self, query: &mut String, value: &str) {
        let value = cut(value, MAX_VALUE_BYTES);
        let value = match self.is_regex {
            true => regex::escape(&value),
            false => value.into_owned(),
        };
        for char in value.chars() {
            match char {
                '\\' => query.push_str("\\\\"),
                '\n' => query.push_str("\\n"),
                _ if char == self.quote => query.extend(['\\', char]),
                // Prometheus takes the replacement character for invalid UTF-8.
                char::REPLACEMENT_CHARACTER => query.push_str("\\ufffd"),
                _ => query.push(char),
            }
        }
    }
}

/// The beginning of a text, for an error.
fn quoted(text: &str) -> String {
    match text.len() > MAX_QUOTED_BYTES {
        true => format!("{}…", &text[..text.floor_char_boundary(MAX_QUOTED_BYTES)]),
        false => text.to_owned(),
    }
}

fn known() -> String {
    KNOWN.map(|(name, _)| format!("{{{{{name}}}}}")).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "sha256:1111";

    fn variables(revision: &str) -> Variables<'_> {
        Variables {
            bundle: "authz/main",
            stable: VersionText {
                revision: "v1",
                manifest: "sha256:0000",
            },
            candidate: VersionText {
                revision,
                manifest: MANIFEST,
            },
            step: 2,
            percent: 0.5,
        }
    }

    fn rendered(template: &str, revision: &str) -> String {
        let template = QueryTemplate::parse(template).unwrap();
        template.render(&variables(revision))
    }

    #[test]
    fn variables_are_replaced_and_nothing_else() {
        for (template, query) in [
            (r#"up{job="x"} == bool 1"#, r#"up{job="x"} == bool 1"#),
            (r#"{__name__=~"a"}"#, r#"{__name__=~"a"}"#),
            (r#"{__name__=~"a"}}"#, r#"{__name__=~"a"}}"#),
            ("vector({{step}})", "vector(2)"),
            ("vector({{ percent }}) + {{\tstep }}", "vector(0.5) + 2"),
            (r#"x{b="{{bundle}}"}"#, r#"x{b="authz/main"}"#),
            (
                r#"x{a="{{stable.revision}}/{{stable.manifest}}"}"#,
                r#"x{a="v1/sha256:0000"}"#,
            ),
            (
                r"x{a='{{candidate.revision}}',b='{{ candidate.manifest }}'}",
                "x{a='v2',b='sha256:1111'}",
            ),
            // Braces right beside those of a selector.
            (r#"x{a="{{bundle}}"}}"#, r#"x{a="authz/main"}}"#),
            (
                "x # it's\n + y{a=\"{{bundle}}\"}",
                "x # it's\n + y{a=\"authz/main\"}",
            ),
            (r#"x{a="\"",b="{{bundle}}"}"#, r#"x{a="\"",b="authz/main"}"#),
            (r#"x{a=`\`,b="{{bundle}}"}"#, r#"x{a=`\`,b="authz/main"}"#),
        ] {
            assert_eq!(rendered(template, "v2"), query);
        }
    }

    #[test]
    fn a_value_is_escaped_for_its_place() {
        for (template, revision, query) in [
            (r#""{{candidate.revision}}""#, r#"a"b'c"#, r#""a\"b'c""#),
            ("'{{candidate.revision}}'", r#"a"b'c"#, r#"'a"b\'c'"#),
            (r#""{{candidate.revision}}""#, "a\\", r#""a\\""#),
            (r#""{{candidate.revision}}""#, "a\nb", r#""a\nb""#),
            (r#""{{candidate.revision}}""#, "a\u{fffd}", r#""a\ufffd""#),
            (r#""{{candidate.revision}}""#, "{{step}}", r#""{{step}}""#),
            (r#"x{a="{{candidate.revision}}"}"#, "1.2", r#"x{a="1.2"}"#),
            (
                r#"x{a=~"{{candidate.revision}}"}"#,
                "1.2",
                r#"x{a=~"1\\.2"}"#,
            ),
            (
                r#"x{a !~ '{{candidate.revision}}.*'}"#,
                ".*",
                r"x{a !~ '\\.\\*.*'}",
            ),
            (
                r#"x{a=~"y",b="{{candidate.revision}}"}"#,
                "1.2",
                r#"x{a=~"y",b="1.2"}"#,
            ),
        ] {
            assert_eq!(rendered(template, revision), query, "{template} {revision}");
        }
    }

    #[test]
    fn a_long_value_is_cut_and_stays_distinct() {
        let template = r#"x{a="{{candidate.revision}}"}"#;
        let long = "ä".repeat(32 << 10);
        let query = rendered(template, &long);
        assert!(query.len() <= template.len() + MAX_VALUE_BYTES, "{query}");
        assert_ne!(query, rendered(template, &format!("{long}b")));
    }

    #[test]
    fn errors_say_what_to_write() {
        let long = "x".repeat(MAX_QUERY_BYTES + 1);
        for (template, error) in [
            (" \n", "the query is empty"),
            (
                &*long,
                "the query has 4097 bytes, more than 4096; write a recording rule in Prometheus, \
                 and query its metric",
            ),
            (
                "x{a=\"{{candidate.revision}\"}",
                "`{{candidate.revision}\"}` begins a variable that does not end; add `}}`",
            ),
            (
                "{{candidate}}",
                "`{{candidate}}` is not a variable; write one of {{bundle}}, {{stable.revision}}, \
                 {{stable.manifest}}, {{candidate.revision}}, {{candidate.manifest}}, {{step}}, \
                 {{percent}}",
            ),
            (
                "x{a={{bundle}}}",
                "`{{bundle}}` is not between double or single quotes, where its value is escaped; \
                 write \"{{bundle}}\"",
            ),
        ] {
            let parsed = QueryTemplate::parse(template);
            assert_eq!(parsed.unwrap_err().to_string(), error);
        }
        let long = format!("{{{{{}", "ä".repeat(100));
        let error = QueryTemplate::parse(&long).unwrap_err().to_string();
        assert!(error.len() < 150, "{error}");
    }

    #[test]
    fn a_text_is_refused_where_its_value_could_change_the_query() {
        for template in [
            "x{a=`{{candidate.revision}}`}",
            "x # \"{{candidate.revision}}\"",
            r#"x{a="b"} + {{candidate.revision}}"#,
            r#""\{{candidate.revision}}""#,
            r#""a\"" + {{candidate.revision}} + """#,
            r#"'"' + {{candidate.revision}}"#,
        ] {
            let parsed = QueryTemplate::parse(template);
            let name = "candidate.revision";
            assert_eq!(parsed, Err(TemplateError::Unquoted { name }), "{template}");
        }
    }

    #[test]
    fn a_template_is_a_text_in_json() {
        let template = QueryTemplate::parse(r#"x{a="{{bundle}}"}"#).unwrap();
        let json = serde_json::to_string(&template).unwrap();
        assert_eq!(json, r#""x{a=\"{{bundle}}\"}""#);
        assert_eq!(
            serde_json::from_str::<QueryTemplate>(&json).unwrap(),
            template
        );
        assert!(serde_json::from_str::<QueryTemplate>(r#""{{nothing}}""#).is_err());
    }
}
