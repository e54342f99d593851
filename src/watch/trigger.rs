//! Why the registry is checked, and since when the gateway may know of a new version.

use tokio::time::Instant;

use crate::publish::Outcome;

/// Why the registry is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trigger {
    /// The first check of a watcher.
    Start,
    /// The schedule.
    Poll,
    /// A notification of the registry, or a change of a layout folder.
    Notification,
    /// A client that runs another version.
    Request,
    /// An operator.
    Refresh,
}

impl Trigger {
    pub(super) const ALL: [Self; 5] = [
        Self::Start,
        Self::Poll,
        Self::Notification,
        Self::Request,
        Self::Refresh,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Poll => "poll",
            Self::Notification => "notification",
            Self::Request => "request",
            Self::Refresh => "refresh",
        }
    }
}

/// A reason for a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) trigger: Trigger,
    /// When it came up. `None` is the start of the check.
    pub(super) since: Option<Instant>,
}

impl From<Trigger> for Cause {
    /// A reason that comes up when the check begins.
    fn from(trigger: Trigger) -> Self {
        Self {
            trigger,
            since: None,
        }
    }
}

impl Cause {
    pub(super) fn since(trigger: Trigger, since: Instant) -> Self {
        Self {
            trigger,
            since: Some(since),
        }
    }

    /// The reason that remains after a check that began at `began`: a new version that was found or
    /// announced, and could not be fetched for a reason that may pass. The time of a version that
    /// was refused is not counted: its publisher has to act.
    pub(super) fn left_by(self, outcome: &Outcome, began: Instant) -> Option<Self> {
        let Outcome::Failed(failure) = outcome else {
            return None;
        };
        let is_known = failure.digest.is_some() || self.trigger == Trigger::Notification;
        (failure.class.may_pass() && is_known).then(|| Self {
            since: self.since.or(Some(began)),
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        oci::Digest,
        publish::{Failure, FailureClass, Step},
    };

    #[tokio::test]
    async fn a_version_counts_as_known_while_it_can_not_be_fetched_and_not_while_it_is_refused() {
        let (began, digest) = (Instant::now(), Digest::sha256(b"new"));
        let failed = |class, digest: Option<&Digest>| {
            Outcome::Failed(Failure {
                class,
                step: Step::Fetch,
                digest: digest.cloned(),
                below: Arc::default(),
                etag: None,
                reason: "test",
                message: "a failure".to_owned(),
            })
        };
        let polled = Cause::from(Trigger::Poll);
        let (found, silent) = (
            failed(FailureClass::Transient, Some(&digest)),
            failed(FailureClass::Transient, None),
        );
        assert_eq!(
            polled.left_by(&found, began),
            Some(Cause::since(Trigger::Poll, began))
        );
        assert_eq!(polled.left_by(&silent, began), None);
        let hint = Instant::now();
        let notified = Cause::since(Trigger::Notification, hint);
        assert_eq!(notified.left_by(&silent, began), Some(notified));
        let refused = failed(FailureClass::Evidence, Some(&digest));
        assert_eq!(notified.left_by(&refused, began), None);
        assert_eq!(notified.left_by(&Outcome::Unchanged, began), None);
    }
}
