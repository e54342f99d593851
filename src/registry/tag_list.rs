//! The tags of a repository, shared by all bundles that choose among them.

use std::{collections::BTreeSet, sync::Arc};

use reqwest::{
    Method, Response, StatusCode,
    header::{ETAG, HeaderValue, LAST_MODIFIED},
};
use tokio::{sync::Mutex, time::Instant};
use url::Url;

use super::{
    client::{Call, Target},
    discovery::{MAX_PAGES, PAGE_SIZE, read_page, tags_in},
    error::RegistryError,
    layout::LayoutReader,
    remote::Remote,
};
use crate::oci::is_tag;

/// The most tags of a list. A longer list is refused and not cut: the highest version may be in
/// the part that is missing.
const MAX_TAGS: usize = 100_000;

/// The tags of a repository at one time.
#[derive(Debug, Clone)]
pub struct TagList {
    /// The tags, sorted. While the registry's list is the same, this is the same allocation.
    pub tags: Arc<[Arc<str>]>,
    /// When the list was requested.
    pub as_of: Instant,
}

/// The list of one repository, and the lookup of a newer one. Bundles that ask at the same time
/// share one lookup, and its failure.
#[derive(Debug, Default)]
pub(super) struct SharedTagList(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    list: Option<TagList>,
    pages: Vec<Page>,
    failure: Option<(Instant, Arc<RegistryError>)>,
}

/// A page that the registry can confirm without sending it again.
#[derive(Debug)]
struct Page {
    /// `None` for the first page.
    url: Option<Url>,
    validators: Validators,
    tags: Vec<Arc<str>>,
    next: Option<Url>,
}

/// What identifies the state of a page (RFC 9110, section 8.8).
#[derive(Debug, Clone, Default)]
pub(super) struct Validators {
    pub(super) etag: Option<HeaderValue>,
    pub(super) last_modified: Option<HeaderValue>,
}

/// A page of a list.
enum Answer {
    /// The page is as it was.
    NotModified,
    Page(Box<Page>),
    Missing,
}

impl SharedTagList {
    /// A list of a registry that was requested at `not_before` or later.
    pub(super) async fn remote(
        &self,
        remote: &Remote,
        not_before: Instant,
    ) -> Result<TagList, Arc<RegistryError>> {
        let mut state = self.0.lock().await;
        if let Some(known) = state.known(not_before) {
            return known;
        }
        let as_of = Instant::now();
        let transport = &remote.client.transport;
        let listed = transport
            .within("tags", transport.deadline(), list(remote, &state.pages))
            .await;
        state.conclude(as_of, listed)
    }

    /// As [`Self::remote`], of a layout folder.
    pub(super) async fn layout(
        &self,
        layout: &LayoutReader,
        not_before: Instant,
    ) -> Result<TagList, Arc<RegistryError>> {
        let mut state = self.0.lock().await;
        if let Some(known) = state.known(not_before) {
            return known;
        }
        let as_of = Instant::now();
        let tags = layout.tags().await.and_then(|tags| {
            let tags: BTreeSet<_> = only_tags(&tags).collect();
            if tags.len() > MAX_TAGS {
                return Err(too_many("oci-layout"));
            }
            Ok((tags, Vec::new()))
        });
        state.conclude(as_of, tags)
    }
}

impl State {
    fn known(&self, not_before: Instant) -> Option<Result<TagList, Arc<RegistryError>>> {
        match (&self.failure, &self.list) {
            (Some((at, error)), _) if *at >= not_before => Some(Err(Arc::clone(error))),
            (None, Some(list)) if list.as_of >= not_before => Some(Ok(list.clone())),
            _ => None,
        }
    }

    fn conclude(
        &mut self,
        as_of: Instant,
        listed: Result<(BTreeSet<Arc<str>>, Vec<Page>), RegistryError>,
    ) -> Result<TagList, Arc<RegistryError>> {
        let (tags, pages) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                let error = Arc::new(error);
                self.failure = Some((as_of, Arc::clone(&error)));
                return Err(error);
            }
        };
        self.failure = None;
        self.pages = pages;
        let same = self.list.as_ref().map(|list| &list.tags);
        let same = same.filter(|known| known.iter().eq(tags.iter()));
        let list = TagList {
            tags: same.cloned().unwrap_or_else(|| tags.into_iter().collect()),
            as_of,
        };
        self.list = Some(list.clone());
        Ok(list)
    }
}

/// `GET /v2/<name>/tags/list`, all pages. Asks only for what has changed since `known`, where the
/// registry has validators for its pages.
///
/// A list that lacks its end is an error: otherwise a lower version than the highest one would be
/// chosen.
async fn list(
    remote: &Remote,
    known: &[Page],
) -> Result<(BTreeSet<Arc<str>>, Vec<Page>), RegistryError> {
    let transport = &remote.client.transport;
    let failed = |reason: &str| transport.protocol("tags", reason.to_owned());
    let (mut tags, mut pages) = (BTreeSet::new(), Vec::new());
    let mut seen = BTreeSet::new();
    let mut url: Option<Url> = None;
    for _ in 0..MAX_PAGES {
        let same = known.iter().find(|page| page.url == url);
        let page = match (page(remote, url.as_ref(), same).await?, same) {
            (Answer::Page(page), _) => *page,
            (Answer::NotModified, Some(page)) => Page {
                url: page.url.clone(),
                validators: page.validators.clone(),
                tags: page.tags.clone(),
                next: page.next.clone(),
            },
            (Answer::NotModified, None) => {
                return Err(failed("HTTP 304 for a page that was not known"));
            }
            (Answer::Missing, _) if url.is_none() => {
                let repository = format!("{}/{}", transport.host(), remote.path);
                return Err(RegistryError::NoSuchRepository { repository });
            }
            (Answer::Missing, _) => return Err(failed("a page of the list is missing")),
        };
        tags.extend(page.tags.iter().cloned());
        if tags.len() > MAX_TAGS {
            return Err(too_many(transport.host()));
        }
        let next = page.next.clone();
        if page.validators.any() {
            pages.push(page);
        }
        match next {
            None => return Ok((tags, pages)),
            Some(next) if seen.insert(next.clone()) => url = Some(next),
            Some(_) => return Err(failed("the pages of the list repeat")),
        }
    }
    Err(failed(&format!("the list has more than {MAX_PAGES} pages")))
}

async fn page(
    remote: &Remote,
    url: Option<&Url>,
    known: Option<&Page>,
) -> Result<Answer, RegistryError> {
    let transport = &remote.client.transport;
    let first = format!("{}/tags/list?n={PAGE_SIZE}", remote.path);
    let target = match url {
        None => Target::Path(&first),
        Some(url) => Target::Url(url.clone()),
    };
    let call = Call {
        accept: "application/json",
        validators: known.map(|page| &page.validators),
        ..remote.call("tags", Method::GET, target)
    };
    let response = remote.client.send(&call).await?;
    match response.status() {
        StatusCode::NOT_FOUND => return Ok(Answer::Missing),
        StatusCode::NOT_MODIFIED => return Ok(Answer::NotModified),
        _ => {}
    }
    let next = transport.next_page("tags", &response)?;
    let validators = Validators::of(&response);
    let body = read_page(transport, "tags", response).await?;
    let tags = tags_in(&body).ok_or_else(|| {
        transport.protocol("tags", "the answer is not a list of names".to_owned())
    })?;
    Ok(Answer::Page(Box::new(Page {
        url: url.cloned(),
        validators,
        tags: only_tags(&tags).collect(),
        next,
    })))
}

impl Validators {
    fn of(response: &Response) -> Self {
        let header = |name| response.headers().get(name).cloned();
        Self {
            etag: header(ETAG),
            last_modified: header(LAST_MODIFIED),
        }
    }

    fn any(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }
}

/// The texts that are tags: what is none can't be requested either.
fn only_tags(texts: &[String]) -> impl Iterator<Item = Arc<str>> {
    let tags = texts.iter().map(String::as_str).filter(|text| is_tag(text));
    tags.map(Arc::from)
}

fn too_many(host: &str) -> RegistryError {
    RegistryError::Protocol {
        operation: "tags",
        host: host.to_owned(),
        reason: format!(
            "the list has more than {MAX_TAGS} tags; delete old ones, or name one tag instead of `semver` or `filter_tags`"
        ),
    }
}
