//! Entry points of the fuzz target. Compiled for fuzzing only.

use hyper::HeaderMap;

use super::{Kind, Malformed, Notification, Pointer};

/// Parses a body as one of the senders would send it.
///
/// # Errors
/// As [`Kind::parse`].
pub fn parse(choice: u8, body: &[u8]) -> Result<Notification, Malformed> {
    let mut headers = HeaderMap::new();
    let mut set = |name: &'static str, value: &'static str| {
        headers.insert(name, hyper::header::HeaderValue::from_static(value));
    };
    let pointer = Pointer::new("/image").ok_or(Malformed::Missing("/image"))?;
    let kind = match choice % 14 {
        0 => Kind::Distribution,
        1 => {
            set("ce-type", "zotregistry.image.updated");
            Kind::Zot
        }
        2 => Kind::Harbor,
        3 => {
            set("content-type", "application/cloudevents+json");
            Kind::Harbor
        }
        4 => {
            set("x-github-event", "package");
            Kind::Github
        }
        5 => Kind::Gitlab,
        6 => Kind::DockerHub,
        7 => Kind::Quay,
        8 => Kind::Jfrog,
        9 => Kind::Ecr,
        10 => {
            set("content-type", "application/cloudevents+json");
            Kind::Ecr
        }
        11 => Kind::Acr,
        12 => Kind::ArtifactRegistry,
        _ => Kind::Generic(pointer),
    };
    kind.parse(&headers, body)
}
