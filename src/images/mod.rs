//! The author's image store on this machine: the artifacts of `build` and `pull` by name.
//!
//! It is an OCI image layout that skopeo, oras and crane can read. Every entry of its index is
//! named by the full reference; signatures have the tags that they have in a registry.

mod image;
mod store;

pub use image::Image;
pub use store::{Images, ImagesError, WriteLease};
