//! Verbs that take several references.

use serde_json::{Value, json};

use super::{interruptible, say, say_json};
use crate::oci::{PinnedReference, Reference};

/// Does `work` for one after the other until one fails, and tells what was done: a pinned
/// reference a line, or one JSON list. What came before a failure has happened, and is told.
pub(super) async fn in_turn(
    references: &[Reference],
    json: bool,
    work: impl AsyncFn(&Reference) -> anyhow::Result<PinnedReference>,
) -> anyhow::Result<()> {
    let mut done = Vec::new();
    let mut ended = Ok(());
    for reference in references {
        match interruptible(work(reference)).await.flatten() {
            Ok(pinned) if json => {
                done.push(json!({ "reference": reference.to_string(), "digest": pinned.digest() }));
            }
            Ok(pinned) => say(&pinned.to_string())?,
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    if json {
        say_json(&Value::from(done))?;
    }
    ended
}
