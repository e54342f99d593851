//! The tags of a repository, shared by all bundles that choose among them.

use std::{collections::BTreeSet, fmt, sync::Arc};

use reqwest::{
    Method, StatusCode,
    header::{DATE, ETAG, HeaderMap, HeaderValue, LAST_MODIFIED},
};
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use tokio::{sync::Mutex, task::spawn_blocking, time::Instant};
use url::Url;

use super::{
    client::{Call, Target},
    discovery::{MAX_PAGES, PAGE_SIZE, read_page},
    error::RegistryError,
    layout::LayoutReader,
    remote::Remote,
};
use crate::oci::is_tag;

/// The most tags of a list, those counted that are listed twice. A longer list is refused and not
/// cut: the highest version may be in the part that is missing.
const MAX_TAGS: usize = 100_000;
/// A longer page is parsed off the async threads.
const LONG_PAGE: usize = 64 << 10;

/// The tags of a repository at one time.
#[derive(Debug, Clone)]
pub struct TagList {
    /// The tags, sorted. While the registry's list is the same, this is the same allocation.
    pub tags: Arc<[Arc<str>]>,
    /// When the list was requested.
    pub as_of: Instant,
}

/// The failure of a list, shared by the callers that waited for it.
#[derive(Debug, Clone)]
pub struct FailedTagList {
    /// The error.
    pub error: Arc<RegistryError>,
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
    failure: Option<FailedTagList>,
}

/// A page that the registry can confirm without sending it again.
#[derive(Debug)]
struct Page {
    /// `None` for the first page.
    url: Option<Url>,
    validators: Validators,
    tags: Vec<Arc<str>>,
    /// How many texts were listed, tags or not.
    listed: usize,
    next: Option<Url>,
}

/// The body of a page.
#[derive(Deserialize)]
struct Body {
    // `null` where there are none, in some registries.
    tags: Option<Listed>,
}

/// The texts of a page, of which those are kept that are tags: what is none can't be requested
/// either. Beyond [`MAX_TAGS`] texts are counted and not kept.
#[derive(Default)]
struct Listed {
    tags: Vec<Arc<str>>,
    count: usize,
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
    ) -> Result<TagList, FailedTagList> {
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
    ) -> Result<TagList, FailedTagList> {
        let mut state = self.0.lock().await;
        if let Some(known) = state.known(not_before) {
            return known;
        }
        let as_of = Instant::now();
        let tags = layout.tags().await.and_then(|tags| {
            if tags.len() > MAX_TAGS {
                return Err(too_many("oci-layout"));
            }
            let tags = tags.iter().map(String::as_str).filter(|text| is_tag(text));
            Ok((tags.map(Arc::from).collect(), Vec::new()))
        });
        state.conclude(as_of, tags)
    }
}

impl State {
    fn known(&self, not_before: Instant) -> Option<Result<TagList, FailedTagList>> {
        match (&self.failure, &self.list) {
            (Some(failure), _) if failure.as_of >= not_before => Some(Err(failure.clone())),
            (None, Some(list)) if list.as_of >= not_before => Some(Ok(list.clone())),
            _ => None,
        }
    }

    fn conclude(
        &mut self,
        as_of: Instant,
        listed: Result<(BTreeSet<Arc<str>>, Vec<Page>), RegistryError>,
    ) -> Result<TagList, FailedTagList> {
        let (tags, pages) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                let error = Arc::new(error);
                let failure = FailedTagList { error, as_of };
                self.failure = Some(failure.clone());
                return Err(failure);
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
    let (mut seen, mut listed) = (BTreeSet::new(), 0);
    let mut url: Option<Url> = None;
    for _ in 0..MAX_PAGES {
        let same = known.iter().find(|page| page.url == url);
        let page = match (page(remote, url.as_ref(), same).await?, same) {
            (Answer::Page(page), _) => *page,
            (Answer::NotModified, Some(page)) => Page {
                url: page.url.clone(),
                validators: page.validators.clone(),
                tags: page.tags.clone(),
                listed: page.listed,
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
        listed += page.listed;
        if listed > MAX_TAGS {
            return Err(too_many(transport.host()));
        }
        tags.extend(page.tags.iter().cloned());
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
    let validators = Validators::of(response.headers());
    let body = read_page(transport, "tags", response).await?;
    let parsed = if body.len() > LONG_PAGE {
        spawn_blocking(move || parse(&body)).await.ok().flatten()
    } else {
        parse(&body)
    };
    let Listed { tags, count } = parsed.ok_or_else(|| {
        transport.protocol("tags", "the answer is not a list of names".to_owned())
    })?;
    // After one more tag the last page, if it is full, has the same body, and a link that a 304
    // need not have.
    let may_grow = count >= PAGE_SIZE && next.is_none();
    Ok(Answer::Page(Box::new(Page {
        url: url.cloned(),
        validators: validators.unless(may_grow),
        tags,
        listed: count,
        next,
    })))
}

/// `None` where the body is no page of a list.
fn parse(body: &[u8]) -> Option<Listed> {
    let body: Body = serde_json::from_slice(body).ok()?;
    Some(body.tags.unwrap_or_default())
}

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListedVisitor)
    }
}

struct ListedVisitor;

impl<'de> Visitor<'de> for ListedVisitor {
    type Value = Listed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of names")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Listed, A::Error> {
        let mut listed = Listed::default();
        while let Some(name) = names.next_element::<String>()? {
            listed.count += 1;
            if listed.count <= MAX_TAGS && is_tag(&name) {
                listed.tags.push(name.into());
            }
        }
        Ok(listed)
    }
}

impl Validators {
    /// Of two changes within a second `Last-Modified` may show the first only, so that it counts
    /// once a second has passed (RFC 9110, section 8.8.2.2).
    fn of(headers: &HeaderMap) -> Self {
        let seconds = |name| {
            let text = headers.get(name)?.to_str().ok()?;
            let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text);
            Some(parsed.ok()?.as_second())
        };
        let modified: Option<i64> = seconds(LAST_MODIFIED);
        let is_strong = modified
            .zip(seconds(DATE))
            .is_some_and(|(modified, now)| modified < now);
        let last_modified = headers.get(LAST_MODIFIED).filter(|_| is_strong);
        Self {
            etag: headers.get(ETAG).cloned(),
            last_modified: last_modified.cloned(),
        }
    }

    fn unless(self, unusable: bool) -> Self {
        if unusable { Self::default() } else { self }
    }

    fn any(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_counted_with_all_its_texts_and_kept_with_few() {
        let read = parse(br#"{"tags": ["1.0.0", "1.0.0", "a/b", ""]}"#).unwrap();
        assert_eq!((read.tags.len(), read.count), (2, 4));
        let body = format!(r#"{{"tags": [{}"x"]}}"#, r#""x","#.repeat(MAX_TAGS + 9));
        let read = parse(body.as_bytes()).unwrap();
        assert_eq!((read.tags.len(), read.count), (MAX_TAGS, MAX_TAGS + 10));
        for empty in [r#"{"tags": null}"#, "{}", r#"{"tags": []}"#] {
            assert_eq!(parse(empty.as_bytes()).unwrap().count, 0);
        }
        assert!(parse(br#"{"tags": [1]}"#).is_none());
    }

    #[test]
    fn a_time_of_change_counts_a_second_later() {
        for (date, counts) in [
            ("Sun, 29 Nov 2026 10:00:00 GMT", false),
            ("Sun, 29 Nov 2026 10:00:01 GMT", true),
            ("today", false),
        ] {
            let headers = [
                (LAST_MODIFIED, "Sun, 29 Nov 2026 10:00:00 GMT"),
                (DATE, date),
                (ETAG, "\"one\""),
            ];
            let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
            let validators = Validators::of(&headers.into_iter().collect());
            assert_eq!(validators.last_modified.is_some(), counts, "{date}");
            assert!(validators.etag.is_some());
        }
    }
}
