//! Runs a subcommand on several references.

use serde_json::{Value, json};

use super::{interruptible, print, print_json};
use crate::oci::{PinnedReference, Reference};

/// Runs `work` on one reference after the other until one fails. Prints the pinned references, one
/// per line or as one JSON list; those before a failure are printed as well.
pub(super) async fn in_order(
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
            Ok(pinned) => print(&pinned.to_string())?,
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    if json {
        print_json(&Value::from(done))?;
    }
    ended
}
