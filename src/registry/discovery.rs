//! Content discovery: the tags of a repository, the repositories of a registry, and the check of
//! the credentials.

use std::collections::BTreeSet;

use bytes::Bytes;
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;

use super::{
    client::{Call, RegistryClient, Target},
    error::RegistryError,
    remote::Remote,
    scope::TokenScope,
    transport::{ReadFailure, Transport},
};

/// Names requested per page; a registry may send fewer.
pub(super) const PAGE_SIZE: usize = 1000;
/// The most pages that are followed: a registry's pages may never end.
pub(super) const MAX_PAGES: usize = 1000;
const MAX_PAGE_BYTES: u64 = 16 << 20;

#[derive(Deserialize)]
struct Tags {
    // `null` where there are none, in some registries.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

/// `GET /v2/<name>/tags/list`, all pages; `None` when there is no such repository. Sorts the tags,
/// as some registries don't.
pub(super) async fn tags(remote: &Remote) -> Result<Option<Vec<String>>, RegistryError> {
    let first = format!("{}/tags/list?n={PAGE_SIZE}", remote.path);
    let call = Call {
        mirror_of: remote.mirror_of(),
        ..call("tags", TokenScope::Pull(&remote.path), Target::Path(&first))
    };
    pages(&remote.client, call, tags_in).await
}

/// `GET /v2/_catalog`, all pages: an extension that many registries lack.
pub(super) async fn repositories(
    client: &RegistryClient,
) -> Result<Option<Vec<String>>, RegistryError> {
    let first = format!("_catalog?n={PAGE_SIZE}");
    let call = call("catalog", TokenScope::Catalog, Target::Path(&first));
    match pages(client, call, repositories_in).await {
        Err(RegistryError::Status {
            status: 400 | 405 | 501,
            ..
        }) => Ok(None),
        listed => listed,
    }
}

/// `GET /v2/`: checks the credentials.
pub(super) async fn ping(client: &RegistryClient) -> Result<(), RegistryError> {
    let call = call("login", TokenScope::Unscoped, Target::Path(""));
    let response = client
        .transport
        .within("login", client.transport.deadline(), client.send(&call))
        .await?;
    match response.status() {
        StatusCode::NOT_FOUND => Err(client.transport.protocol(
            "login",
            "the server has no /v2/, so it is not a registry".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// The tags of a page; `None` where the body is no such page.
pub(super) fn tags_in(body: &[u8]) -> Option<Vec<String>> {
    serde_json::from_slice(body)
        .ok()
        .map(|page: Tags| page.tags.unwrap_or_default())
}

/// The repositories of a page; `None` where the body is no such page.
pub(super) fn repositories_in(body: &[u8]) -> Option<Vec<String>> {
    serde_json::from_slice(body)
        .ok()
        .map(|page: Catalog| page.repositories.unwrap_or_default())
}

async fn pages(
    client: &RegistryClient,
    mut call: Call<'_>,
    names: fn(&[u8]) -> Option<Vec<String>>,
) -> Result<Option<Vec<String>>, RegistryError> {
    let (transport, operation) = (&client.transport, call.operation);
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for _ in 0..MAX_PAGES {
        let page = async {
            let response = client.send(&call).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let next = transport.next_page(operation, &response)?;
            let body = read_page(transport, operation, response).await?;
            let names = names(&body).ok_or_else(|| {
                transport.protocol(operation, "the answer is not a list of names".to_owned())
            })?;
            Ok(Some((names, next)))
        };
        let page = transport
            .within(operation, transport.deadline(), page)
            .await?;
        let Some((names, next)) = page else {
            return Ok((!seen.is_empty()).then(|| found.into_iter().collect()));
        };
        found.extend(names);
        match next {
            Some(url) if seen.insert(url.clone()) => call.target = Target::Url(url),
            _ => break,
        }
    }
    Ok(Some(found.into_iter().collect()))
}

/// The body of a page.
pub(super) async fn read_page(
    transport: &Transport,
    operation: &'static str,
    response: Response,
) -> Result<Bytes, RegistryError> {
    let read = transport.read_limited(response, MAX_PAGE_BYTES).await;
    read.map_err(|failure| match failure {
        ReadFailure::TooLarge => {
            let reason = format!("a page is longer than {MAX_PAGE_BYTES} bytes");
            transport.protocol(operation, reason)
        }
        ReadFailure::Broken(reason) => transport.unreachable(operation, reason),
    })
}

fn call<'a>(operation: &'static str, scope: TokenScope<'a>, target: Target<'a>) -> Call<'a> {
    Call {
        operation,
        method: Method::GET,
        scope,
        target,
        mirror_of: None,
        accept: "application/json",
        from: None,
        validators: None,
        body: None,
    }
}
