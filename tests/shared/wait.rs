//! Conditions that a test waits for.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// The limit for anything that must happen, on however busy a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `look` until it returns a value, and returns that value with the time it took. Fails the
/// test after [`PATIENCE`], even if `look` itself does not return.
pub(crate) async fn poll_until<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> (T, Duration) {
    let began = Instant::now();
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(INTERVAL).await;
        }
    };
    match timeout(PATIENCE, looking).await {
        Ok(found) => (found, began.elapsed()),
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}
