//! In which condition a bundle is, which decides where it stands on the page.

use crate::{
    fleet::{BundleCounts, ClientState},
    publish::{FailureClass, StateKind},
    server::overview::BundleOverview,
};

/// The condition of a bundle, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Condition {
    /// Nothing is served any more, or the first version is refused.
    Withdrawn,
    /// A newer version is refused; the one before is served.
    Refused,
    /// The last check failed for another reason.
    Failing,
    /// Clients can't activate the served version, or don't run it in time.
    ClientsBehind,
    /// Nothing is served yet.
    Pending,
    /// An older version is served than before.
    Older,
    Suspended,
    Serving,
}

impl Condition {
    pub(super) const ALL: [Self; 8] = [
        Self::Withdrawn,
        Self::Refused,
        Self::Failing,
        Self::ClientsBehind,
        Self::Pending,
        Self::Older,
        Self::Suspended,
        Self::Serving,
    ];

    /// `clients` are those of the bundle, if they are recorded.
    pub(super) fn of(bundle: &BundleOverview, clients: Option<&BundleCounts>) -> Self {
        let status = &bundle.status;
        let is_behind = clients.is_some_and(|clients| {
            clients.of(ClientState::Failing) + clients.of(ClientState::Behind) > 0
        });
        match (status.state, &status.last_failure) {
            (StateKind::Withdrawn, _) => Self::Withdrawn,
            (StateKind::Serving, Some(failure)) if is_refusal(failure.class) => Self::Refused,
            (_, Some(_)) => Self::Failing,
            (_, None) if is_behind => Self::ClientsBehind,
            (StateKind::Serving, None) if status.older.is_some() => Self::Older,
            (_, None) if status.suspended => Self::Suspended,
            (StateKind::Pending, None) => Self::Pending,
            (StateKind::Serving, None) => Self::Serving,
        }
    }

    /// Whether an operator has to look at it.
    pub(super) fn is_problem(self) -> bool {
        matches!(
            self,
            Self::Withdrawn | Self::Refused | Self::Failing | Self::ClientsBehind | Self::Older
        )
    }

    /// Whether it is counted even if no bundle is in it.
    pub(super) fn is_counted_always(self) -> bool {
        matches!(
            self,
            Self::Withdrawn | Self::Refused | Self::Failing | Self::Serving
        )
    }

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Withdrawn => "Withdrawn",
            Self::Refused => "Newer version refused",
            Self::Failing => "Check failed",
            Self::ClientsBehind => "Clients failing or behind",
            Self::Pending => "Pending",
            Self::Older => "Older than before",
            Self::Suspended => "Suspended",
            Self::Serving => "Serving",
        }
    }

    /// The name in the style sheet and the script.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Withdrawn => "withdrawn",
            Self::Refused => "refused",
            Self::Failing => "failing",
            Self::ClientsBehind => "clients-behind",
            Self::Pending => "pending",
            Self::Older => "older",
            Self::Suspended => "suspended",
            Self::Serving => "serving",
        }
    }

    pub(super) fn count_id(self) -> &'static str {
        match self {
            Self::Withdrawn => "count-withdrawn",
            Self::Refused => "count-refused",
            Self::Failing => "count-failing",
            Self::ClientsBehind => "count-clients-behind",
            Self::Pending => "count-pending",
            Self::Older => "count-older",
            Self::Suspended => "count-suspended",
            Self::Serving => "count-serving",
        }
    }

    pub(super) fn colour(self) -> &'static str {
        match self {
            Self::Withdrawn => "bad",
            Self::Refused | Self::Failing | Self::ClientsBehind | Self::Older => "warn",
            Self::Pending | Self::Suspended => "calm",
            Self::Serving => "good",
        }
    }
}

/// Whether a failure is a verdict about a version: that it must not, or can't, be served.
pub(super) fn is_refusal(class: FailureClass) -> bool {
    match class {
        FailureClass::Evidence
        | FailureClass::Revoked
        | FailureClass::Defect
        | FailureClass::Distrusted => true,
        FailureClass::Transient
        | FailureClass::RateLimited(_)
        | FailureClass::NotFound
        | FailureClass::Denied => false,
    }
}
