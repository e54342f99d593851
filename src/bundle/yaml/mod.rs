//! Parses YAML exactly as OPA 1.22.2 does.
//!
//! OPA converts YAML with go.yaml.in/yaml/v3, a port of libyaml 0.1: YAML 1.1 syntax, the types
//! of YAML 1.2 with some of 1.1, and deviations of its own. No crate reads the same texts to the
//! same values, so this parser follows go-yaml wherever go-yaml deviates from a specification.
//!
//! ```text
//! bytes → text (input) → tokens (scanner) → events (parser) → nodes (tree)
//!   → OPA's changes (normalize) → values (decode) → JSON (json)
//! ```
//!
//! Time and memory are linear in the size of the text: the scanner looks ahead at most 1 024
//! characters, no function recurses, and aliases are bounded by the rule of go-yaml and by the size
//! of the output.

mod binary;
mod block_scalar;
mod comment;
mod convert;
mod cursor;
mod decode;
mod error;
mod flow_scalar;
mod input;
mod json;
mod key;
mod normalize;
mod number;
mod object;
mod parser;
mod plain_scalar;
mod resolve;
mod scalar;
mod scanner;
mod tag;
mod timestamp;
mod token;
mod tree;

pub(super) use convert::to_json;
pub(super) use error::YamlError;

#[cfg(test)]
mod tests;
