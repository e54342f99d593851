//! Staged roll-outs.
//!
//! | file | holds |
//! |---|---|
//! | `check` | a check: a query with a range, what its results mean, and what the leader counts |
//! | `query_template` | the query of a check, with variables |

mod check;
mod query_template;

pub use self::{
    check::{Check, CheckState, NoData, Outcome, Sample},
    query_template::{QueryTemplate, TemplateError, Variables, VersionText},
};
