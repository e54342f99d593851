//! The hosts that a blob is read from, one after the other: a transfer that fails at one of them
//! continues at the next with the bytes that it has.

use std::collections::VecDeque;

use futures_util::FutureExt as _;
use reqwest::{Response, StatusCode, header};

use tokio::time::Duration;

use super::{
    deadline::Deadline,
    error::RegistryError,
    hosts::{MAX_MIRROR_WAIT, noted, observed},
    remote::Remote,
};
use crate::oci::Descriptor;

/// A mirror that sends fewer bytes in a second is given up for the next host.
const MIN_MIRROR_SPEED: u64 = 64 << 10;

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
            let deadline = deadline(&remote, descriptor.size);
            let begun = noted(&remote, "blob", begin(&remote, descriptor, from)).boxed();
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

/// The end of a transfer: after `timeouts.total`, and at a mirror that is too slow earlier.
fn deadline(remote: &Remote, size: u64) -> Deadline {
    let total = remote.client.transport.timeouts().total;
    let slowest = MAX_MIRROR_WAIT + Duration::from_secs(size / MIN_MIRROR_SPEED);
    Deadline::after(if remote.is_mirror() {
        total.min(slowest)
    } else {
        total
    })
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::{Instant, sleep},
    };

    use super::{
        super::{blob_stream::BlobStream, hosts::tests::remote},
        *,
    };

    const CONTENT: &[u8] = &[7; 640 << 10];

    /// Sends the whole to every request, `pause` after each of the first bytes if it is not zero.
    async fn host(pause: Duration) -> Remote {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let head = format!(
                    "HTTP/1.1 200 x\r\ncontent-length: {}\r\n\r\n",
                    CONTENT.len()
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                let mut rest = CONTENT;
                while !pause.is_zero() && stream.write_all(&rest[..1]).await.is_ok() {
                    rest = &rest[1..];
                    sleep(pause).await;
                }
                let _ = stream.write_all(rest).await;
            }
        });
        remote(&host)
    }

    /// It would take a week, and its connection never falls silent.
    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_sends_too_slowly_is_given_up_for_the_next_host() {
        let mirror = host(Duration::from_secs(1)).await;
        let origin = host(Duration::ZERO).await;
        let hosts = BlobHosts::new(&[mirror.mirroring("r.example")], &origin);
        let layer = Descriptor::of("a/b", CONTENT);
        let began = Instant::now();
        let stream = BlobStream::open(layer, hosts).await.unwrap().unwrap();
        let blob = stream.collect().await.unwrap();
        assert!(*blob.in_memory().unwrap() == CONTENT);
        let limit = MAX_MIRROR_WAIT + Duration::from_secs(10);
        assert!(began.elapsed() >= limit && began.elapsed() < 2 * limit);
    }
}
