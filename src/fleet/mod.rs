//! The fleet view: which clients run which version of which bundle.
//!
//! | file | holds |
//! |---|---|
//! | `report` | what an OPA reports about itself and its bundles, read within limits |
//! | `matching` | which bundle of this server a reported bundle is |

mod matching;
mod report;

pub use self::{
    matching::{Polled, match_bundles},
    report::{BundleReport, OpaInstance, Report, ReportError, ReportedError},
};
