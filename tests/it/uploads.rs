//! The upload side of the faulty registry.

use std::collections::HashMap;

use bundlegate::oci::Digest;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming};

/// How uploads are treated; the usual registry by default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manners {
    /// Locations without scheme and host.
    pub(crate) relative: bool,
    /// `OCI-Chunk-Min-Length`.
    pub(crate) least_chunk: Option<u64>,
    /// Repositories that blobs may be taken over from.
    pub(crate) mounts: Vec<String>,
    /// Whether manifests with a subject are indexed, and said to be.
    pub(crate) indexes_subjects: bool,
}

/// Open uploads by their number.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    open: HashMap<u64, Vec<u8>>,
    opened: u64,
}

/// A request that is none of reading.
pub(crate) struct Wish {
    pub(crate) host: String,
    pub(crate) method: String,
    pub(crate) path: String,
    /// `Content-Range`.
    pub(crate) range: Option<String>,
    /// `Content-Type`.
    pub(crate) kind: String,
    pub(crate) bytes: Vec<u8>,
}

/// The effect of a request other than GET and HEAD.
pub(crate) enum Taken {
    Answer(Response<Full<Bytes>>),
    /// This belongs under that path from now on.
    Keep {
        path: String,
        kind: String,
        bytes: Bytes,
        answer: Response<Full<Bytes>>,
    },
}

/// Reads a body as far as `most` bytes; `false` where it was cut off there.
pub(crate) async fn body(request: Request<Incoming>, most: usize) -> (Vec<u8>, bool) {
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
        if bytes.len() >= most {
            bytes.truncate(most);
            return (bytes, false);
        }
    }
    (bytes, true)
}

impl Uploads {
    /// The bytes of a broken PATCH, which a good registry keeps.
    pub(crate) fn keep_part(&mut self, path: &str, bytes: &[u8]) {
        if let Some(open) = number(path).and_then(|id| self.open.get_mut(&id)) {
            open.extend_from_slice(bytes);
        }
    }

    pub(crate) fn answer(&mut self, manners: &Manners, wish: Wish) -> Taken {
        let Wish {
            host,
            method,
            path,
            range,
            kind,
            bytes,
        } = wish;
        if method == "PUT" && path.contains("/manifests/") {
            let digest = Digest::sha256(&bytes);
            let subject =
                manners.indexes_subjects && String::from_utf8_lossy(&bytes).contains("\"subject\"");
            let mut answer = Response::builder()
                .status(201)
                .header("docker-content-digest", digest.to_string());
            if subject {
                answer = answer.header("oci-subject", "sha256:whatever");
            }
            let answer = answer.body(Full::default()).unwrap();
            return Taken::Keep {
                path,
                kind,
                bytes: bytes.into(),
                answer,
            };
        }
        if method == "POST" {
            return self.open(manners, &host, &path);
        }
        let Some(id) = number(&path).filter(|id| self.open.contains_key(id)) else {
            return status(404);
        };
        let open = self.open.get_mut(&id).unwrap();
        match method.as_str() {
            "PATCH" => {
                let start: u64 = range
                    .and_then(|range| range.split('-').next()?.parse().ok())
                    .unwrap_or(0);
                if start != open.len() as u64 {
                    return status(416);
                }
                open.extend_from_slice(&bytes);
                Taken::Answer(self.location(manners, &host, id, 202))
            }
            "GET" => Taken::Answer(self.location(manners, &host, id, 204)),
            "DELETE" => {
                self.open.remove(&id);
                status(204)
            }
            "PUT" => {
                open.extend_from_slice(&bytes);
                let digest = path
                    .split("digest=")
                    .nth(1)
                    .unwrap_or_default()
                    .replace("%3A", ":");
                let all = self.open.remove(&id).unwrap();
                if Digest::sha256(&all).as_str() != digest {
                    return status(400);
                }
                let repository = path.split("/blobs/").next().unwrap();
                let answer = Response::builder()
                    .status(201)
                    .header("docker-content-digest", &digest);
                Taken::Keep {
                    path: format!("{repository}/blobs/{digest}"),
                    kind: "application/octet-stream".to_owned(),
                    bytes: all.into(),
                    answer: answer.body(Full::default()).unwrap(),
                }
            }
            _ => status(405),
        }
    }

    fn open(&mut self, manners: &Manners, host: &str, path: &str) -> Taken {
        let from = path.split("from=").nth(1);
        if from.is_some_and(|from| manners.mounts.iter().any(|mount| mount == from)) {
            return status(201);
        }
        self.opened += 1;
        self.open.insert(self.opened, Vec::new());
        Taken::Answer(self.location(manners, host, self.opened, 202))
    }

    fn location(
        &self,
        manners: &Manners,
        host: &str,
        id: u64,
        status: u16,
    ) -> Response<Full<Bytes>> {
        let path = format!("/v2/acme/authz/blobs/uploads/{id}?_state=a%3Db");
        let location = if manners.relative {
            path
        } else {
            format!("http://{host}{path}")
        };
        let length = self.open[&id].len();
        let mut answer = Response::builder()
            .status(status)
            .header("location", location);
        answer = answer.header("range", format!("0-{}", length.saturating_sub(1)));
        if let Some(least) = manners.least_chunk {
            answer = answer.header("oci-chunk-min-length", least);
        }
        answer.body(Full::default()).unwrap()
    }
}

fn number(path: &str) -> Option<u64> {
    let rest = path.split("/blobs/uploads/").nth(1)?;
    // Whoever loses the query has lost the session.
    rest.split_once("?_state=a%3Db")?.0.parse().ok()
}

fn status(status: u16) -> Taken {
    Taken::Answer(
        Response::builder()
            .status(status)
            .body(Full::default())
            .unwrap(),
    )
}
