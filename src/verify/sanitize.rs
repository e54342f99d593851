//! Foreign text in reports and messages.

use crate::telemetry::cut;

/// The longest text, in bytes.
const MAX_BYTES: usize = 300;

/// Removes control characters from `text` and cuts it: a hostile registry must be able neither
/// to fill the log nor to control a terminal.
pub(super) fn sanitize(text: &str) -> String {
    let shown: String = text
        .chars()
        .filter(|character| !character.is_control())
        .collect();
    cut(&shown, MAX_BYTES).into_owned()
}
