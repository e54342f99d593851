//! Rego rules for attestations.

use std::{fmt, sync::Arc, time::Duration};

use regorus::{Engine, utils::limits::ExecutionTimerConfig};

use crate::oci::Digest;

/// The rule that has to be true; the convention of cosign's own Rego policies.
const QUERY: &str = "data.signature.allow";
/// The time limit of one evaluation.
const RULE_TIMEOUT: Duration = Duration::from_secs(1);

/// A checked Rego module in `package signature`, whose rule `allow` is true for an acceptable
/// statement. `input` is the statement.
#[derive(Clone)]
pub struct AttestationRule {
    text: Arc<str>,
    engine: Arc<Engine>,
}

/// An error in the text of a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write `package signature` and a rule `allow`")]
pub struct BadRule(String);

impl AttestationRule {
    /// Reads a module.
    ///
    /// # Errors
    /// When it is not Rego, or defines no `data.signature.allow`.
    pub fn parse(name: &str, text: &str) -> Result<Self, BadRule> {
        let bad =
            |error: String| BadRule(error.lines().last().unwrap_or_default().trim().to_owned());
        let mut engine = Engine::new();
        engine.set_rego_v0(false);
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: RULE_TIMEOUT,
            check_interval: std::num::NonZeroU32::MIN.saturating_add(255),
        });
        let package = engine
            .add_policy(name.to_owned(), text.to_owned())
            .map_err(|error| bad(error.to_string()))?;
        if package != "data.signature" {
            return Err(BadRule(format!(
                "the module is in package {}",
                package.trim_start_matches("data.")
            )));
        }
        let rule = Self {
            text: text.into(),
            engine: Arc::new(engine),
        };
        // A first evaluation finds modules that can't be evaluated at all.
        rule.run("{}").map_err(bad)?;
        Ok(rule)
    }

    /// Whether the rule allows `statement`, a JSON text.
    pub(super) fn allows(&self, statement: &str) -> Result<bool, String> {
        self.run(statement)
    }

    fn run(&self, statement: &str) -> Result<bool, String> {
        let mut engine = Engine::clone(&self.engine);
        engine
            .set_input_json(statement)
            .map_err(|error| error.to_string())?;
        match engine.eval_rule(QUERY.to_owned()) {
            Ok(regorus::Value::Bool(allowed)) => Ok(allowed),
            Ok(regorus::Value::Undefined) => Ok(false),
            Ok(_) => Err("allow is neither true nor false".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl fmt::Debug for AttestationRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AttestationRule")
            .field(&Digest::sha256(self.text.as_bytes()).as_str())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "package signature\n\nallow if input.predicate.builder == \"ci\"\n";

    #[test]
    fn a_rule_allows_statements_by_their_content() {
        let rule = AttestationRule::parse("rule.rego", RULE).unwrap();
        assert_eq!(rule.allows(r#"{"predicate": {"builder": "ci"}}"#), Ok(true));
        assert_eq!(
            rule.allows(r#"{"predicate": {"builder": "laptop"}}"#),
            Ok(false)
        );
        assert_eq!(rule.allows("{}"), Ok(false));
    }

    #[test]
    fn an_invalid_rule_is_rejected() {
        for (text, expected) in [
            ("package signature\nallow if {", "rule `allow`"),
            ("package other\nallow if true", "package other"),
            ("package signature\ndeny if true", "allow"),
        ] {
            let error = AttestationRule::parse("rule.rego", text)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
