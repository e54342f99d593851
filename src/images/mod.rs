//! The author's image store: what `build` makes and `pull` brings, by name, on this machine.
//!
//! An OCI image layout, so that skopeo, oras and crane read it: every entry of its index is
//! named by the full reference, signatures lie beside what they vouch for under the tags
//! that a registry would have them under.

mod image;
mod store;

pub use image::Image;
pub use store::{Filling, Images, ImagesError};
