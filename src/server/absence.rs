//! What a client learns about a bundle that has nothing to serve.
//!
//! A client with a credential gets the reason as `/status` has it. An anonymous one gets the kind of
//! the reason in general words: the whole one may name registries, addresses, digests, signers and
//! files.

use std::borrow::Cow;

use super::{reply::Reply, response};
use crate::{
    catalog::Refusal,
    publish::{FailureClass, Handle, Withdrawal},
};

/// How much a client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// The whole reason.
    Full,
    /// The kind of the reason.
    General,
}

/// The reply for a bundle that was refused or withdrawn.
pub(super) fn withdrawn(handle: &Handle, withdrawal: &Withdrawal, detail: Detail) -> Reply {
    let message = match detail {
        Detail::Full => Cow::Borrowed(&*withdrawal.reason),
        Detail::General => {
            let class = handle.failure_class().filter(|class| !class.may_pass());
            general(class.map_or("no version may be served", describe))
        }
    };
    response::absent("withdrawn", &message, handle.name()).into()
}

/// The reply for a bundle of which no version is known yet.
pub(super) fn pending(handle: &Handle, detail: Detail) -> Reply {
    let message = match detail {
        Detail::Full => pending_reason(handle).into(),
        Detail::General if handle.status().suspended => general("it is suspended"),
        Detail::General => {
            let class = handle.failure_class();
            general(class.map_or("no attempt to fetch it has finished yet", describe))
        }
    };
    response::absent("pending", &message, handle.name()).into()
}

/// The reply for a bundle that is not added on demand.
pub(super) fn refused(refusal: &Refusal, name: &str, detail: Detail) -> Reply {
    let (reason, words) = match refusal.is_withdrawn {
        true => ("withdrawn", "no version may be served"),
        false => ("pending", "no version has been fetched yet"),
    };
    let message = match detail {
        Detail::Full => Cow::Borrowed(&*refusal.message),
        Detail::General => general(words),
    };
    response::absent(reason, &message, name).into()
}

/// Why a pending bundle has no version yet.
fn pending_reason(handle: &Handle) -> String {
    let status = handle.status();
    if status.suspended {
        return "it is suspended, and no version is stored; remove `suspend` to fetch it"
            .to_owned();
    }
    let failure = status.last_failure.map(|failure| failure.message);
    failure.unwrap_or_else(|| "the first attempt to fetch it has not finished yet".to_owned())
}

fn general(words: &str) -> Cow<'static, str> {
    format!("{words}; /status of the admin listener has the details").into()
}

fn describe(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Transient => "the registry does not answer, or not as it should",
        FailureClass::RateLimited(_) => "the registry limits the rate of requests",
        FailureClass::NotFound => "the registry has no such version",
        FailureClass::Denied => "the registry denies access",
        FailureClass::Evidence | FailureClass::Revoked | FailureClass::Distrusted => {
            "the version is not trusted"
        }
        FailureClass::Defect => "the version is defective",
    }
}
