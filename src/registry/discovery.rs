//! What a registry says that it has: tags, repositories, and whether it lets us in.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde::Deserialize;

use super::{
    client::{Call, ReadFailure, Target, Wire},
    error::RegistryError,
    scope::Access,
};

/// Names asked for at a time; registries give fewer where they like.
const PAGE: usize = 1000;
/// A registry whose pages don't end is not followed for ever.
const MAX_PAGES: usize = 1000;
const PAGE_LIMIT: u64 = 16 << 20;

#[derive(Deserialize)]
struct Tags {
    // `null` where there are none, in some registries.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

/// `GET /v2/<name>/tags/list`, all pages. Sorted here: not every registry does.
pub(super) async fn tags(wire: &Wire, path: &str) -> Result<Vec<String>, RegistryError> {
    let first = format!("{path}/tags/list?n={PAGE}");
    let listed = pages(wire, "tags", Access::Pull(path), &first, tags_in).await?;
    listed.ok_or_else(|| RegistryError::NoSuchRepository { repository: format!("{}/{path}", wire.host()) })
}

/// `GET /v2/_catalog`, all pages; an extension, which many registries don't have.
pub(super) async fn repositories(wire: &Wire) -> Result<Option<Vec<String>>, RegistryError> {
    let first = format!("_catalog?n={PAGE}");
    match pages(wire, "catalog", Access::Catalog, &first, repositories_in).await {
        Err(RegistryError::Status { status: 400 | 405 | 501, .. }) => Ok(None),
        listed => listed,
    }
}

/// `GET /v2/`: shows the credentials and nothing else.
pub(super) async fn greet(wire: &Wire) -> Result<(), RegistryError> {
    let call = call("login", Access::Nothing, Target::Below(""));
    let response = wire.within("login", wire.deadline(), wire.send(&call)).await?;
    match response.status() {
        StatusCode::NOT_FOUND => Err(wire.protocol("login", "no registry answers at /v2/".to_owned())),
        _ => Ok(()),
    }
}

/// The tags of a page, if it is one.
pub(super) fn tags_in(body: &[u8]) -> Option<Vec<String>> {
    serde_json::from_slice(body).ok().map(|page: Tags| page.tags.unwrap_or_default())
}

/// The repositories of a page, if it is one.
pub(super) fn repositories_in(body: &[u8]) -> Option<Vec<String>> {
    serde_json::from_slice(body).ok().map(|page: Catalog| page.repositories.unwrap_or_default())
}

async fn pages(
    wire: &Wire,
    operation: &'static str,
    access: Access<'_>,
    first: &str,
    names: fn(&[u8]) -> Option<Vec<String>>,
) -> Result<Option<Vec<String>>, RegistryError> {
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut target = Target::Below(first);
    for _ in 0..MAX_PAGES {
        let call = call(operation, access, target);
        let page = async {
            let response = wire.send(&call).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let next = wire.next_page(&response);
            let body = wire.read_limited(response, PAGE_LIMIT).await.map_err(|failure| match failure {
                ReadFailure::TooLarge => wire.protocol(operation, format!("a page is over {PAGE_LIMIT} bytes long")),
                ReadFailure::Broken(reason) => wire.unreachable(operation, reason),
            })?;
            let names =
                names(&body).ok_or_else(|| wire.protocol(operation, "the answer is not a list of names".to_owned()))?;
            Ok(Some((names, next)))
        };
        let page = wire.within(operation, wire.deadline(), page).await?;
        let Some((names, next)) = page else { return Ok((!seen.is_empty()).then(|| found.into_iter().collect())) };
        found.extend(names);
        match next {
            Some(url) if seen.insert(url.clone()) => target = Target::At(url),
            _ => break,
        }
    }
    Ok(Some(found.into_iter().collect()))
}

fn call<'a>(operation: &'static str, access: Access<'a>, target: Target<'a>) -> Call<'a> {
    Call { operation, method: Method::GET, access, target, payload: None }
}
