//! The hosts that a blob is read from, one after the other: a transfer that fails at one of them
//! continues at the next with the bytes that it has.

use std::collections::VecDeque;

use futures_util::FutureExt as _;
use reqwest::{Response, StatusCode, header};

use super::{deadline::Deadline, error::RegistryError, hosts::observed, remote::Remote};
use crate::oci::Descriptor;

/// The hosts that have not been asked for a blob yet: mirrors, then the origin, then the mirrors
/// that have failed a moment ago.
#[derive(Debug)]
pub(super) struct BlobHosts {
    next: VecDeque<Remote>,
    /// Asked if no other host answers.
    suspended: VecDeque<Remote>,
    has_mirrors: bool,
    /// Whether a host has answered that it lacks the blob.
    is_answered: bool,
}

/// A transfer that has begun.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) remote: Remote,
    pub(super) response: Response,
    /// The bytes that `response` repeats, because the host does not serve ranges.
    pub(super) repeated: u64,
    pub(super) deadline: Deadline,
}

impl BlobHosts {
    pub(super) fn new(mirrors: &[Remote], origin: &Remote) -> Self {
        Self {
            next: mirrors.iter().chain([origin]).cloned().collect(),
            suspended: VecDeque::new(),
            has_mirrors: !mirrors.is_empty(),
            is_answered: false,
        }
    }

    /// Puts a host back, to be asked first.
    pub(super) fn ask_again(&mut self, host: Remote) {
        self.next.push_front(host);
    }

    /// The transfer of the bytes from `from` on, from the next host that delivers them. `None` when
    /// the origin lacks the blob, or no host is left.
    ///
    /// # Errors
    /// When the origin fails.
    pub(super) async fn request(
        &mut self,
        descriptor: &Descriptor,
        from: u64,
    ) -> Result<Option<Delivery>, RegistryError> {
        let mut failure = None;
        while let Some(remote) = self.pop() {
            if self.is_suspended(&remote) {
                if remote.is_mirror() {
                    self.suspended.push_back(remote);
                } else {
                    let client = &remote.client;
                    failure = Some(client.health.error("blob", client.transport.host()));
                }
                continue;
            }
            let deadline = remote.client.transport.deadline();
            let begun = begin(&remote, descriptor, from).boxed();
            let begun = remote
                .client
                .transport
                .within("blob", deadline.clone(), begun);
            match observed(&remote, begun).await {
                Ok(Some((response, repeated))) => {
                    return Ok(Some(Delivery {
                        remote,
                        response,
                        repeated,
                        deadline,
                    }));
                }
                Ok(None) if remote.is_mirror() => self.is_answered = true,
                Ok(None) => {
                    self.next.clear();
                    self.suspended.clear();
                    return Ok(None);
                }
                Err(_) if remote.is_mirror() => {}
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    fn pop(&mut self) -> Option<Remote> {
        let last_resort = || self.suspended.pop_front().filter(|_| !self.is_answered);
        self.next.pop_front().or_else(last_resort)
    }

    /// Whether a host is to be asked later. The suspended ones are not looked at again.
    fn is_suspended(&self, remote: &Remote) -> bool {
        let health = &remote.client.health;
        if remote.is_mirror() {
            !self.next.is_empty() && !health.admits_mirror()
        } else {
            self.has_mirrors && !health.admits()
        }
    }
}

/// Requests the bytes from `from` on: the answer, and the number of bytes in it that come before
/// them. `None` when the host does not have the blob.
pub(super) async fn begin(
    remote: &Remote,
    descriptor: &Descriptor,
    from: u64,
) -> Result<Option<(Response, u64)>, RegistryError> {
    let first = (from > 0).then_some(from);
    let response = remote.send_blob(&descriptor.digest, first).await?;
    let protocol = |reason: &str| remote.client.transport.protocol("blob", reason.to_owned());
    let repeated = match response.status() {
        StatusCode::NOT_FOUND => return Ok(None),
        _ if from == 0 => 0,
        StatusCode::PARTIAL_CONTENT if starts_at(&response, from) => 0,
        StatusCode::OK => from,
        _ => return Err(protocol("the answer is not the requested range")),
    };
    let announced = response.content_length();
    let expected = descriptor.size - from + repeated;
    if remote.is_mirror() && announced.is_some_and(|announced| announced != expected) {
        return Err(protocol(
            "the mirror has another size than the descriptor says",
        ));
    }
    Ok(Some((response, repeated)))
}

/// Whether a partial answer begins at the byte `first` (`Content-Range: bytes FIRST-LAST/SIZE`, RFC
/// 9110 §14.4).
fn starts_at(response: &Response, first: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE);
    range
        .and_then(|range| range.to_str().ok()?.trim().strip_prefix("bytes"))
        .and_then(|range| range.trim_start().split_once('-')?.0.parse().ok())
        == Some(first)
}
