//! The fleet view: which client runs which version of a bundle, and since when.

mod options;

pub use options::Options;
