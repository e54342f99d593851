//! `bundlegate images`.

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use clap::Args;
use globset::{Glob, GlobSet};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{flags::RegistryFlags, print, print_json, remote_list, store_flag::StoreFlag, table};
use crate::images::Image;

/// Arguments of `images`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// List only images whose name contains FILTER, or matches it if it has a `*`.
    #[arg(value_name = "FILTER", conflicts_with = "remote")]
    word: Option<String>,
    /// Same as FILTER; docker's `reference=FILTER` works as well.
    #[arg(short, long, value_name = "FILTER", conflicts_with_all = ["remote", "word"])]
    filter: Option<String>,
    /// Print only short digests, each once; `rm`, `tag`, `push`, `save` and `inspect` accept them.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// List a registry instead: the tags of HOST/REPOSITORY, or the repositories of HOST if the
    /// registry lists them.
    #[arg(long, value_name = "HOST[/REPOSITORY]")]
    remote: Option<String>,
    /// List only repositories whose name contains WORD.
    #[arg(long, value_name = "WORD", requires = "remote")]
    search: Option<String>,
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    registry: RegistryFlags,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate images
  bundlegate images acme/authz
  bundlegate rm $(bundlegate images -q 'ghcr.io/acme/*')
  bundlegate images --remote registry.lan:5000 --search authz

RECEIVED is when the image was added to the store. SIGNED means that the store has a signature
of it, unverified; the registry may have more. `bundlegate verify` verifies them.";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    if let Some(from) = &options.remote {
        let format = remote_list::ListFormat::of(options.json, options.quiet);
        return remote_list::run(from, options.search.as_deref(), format, &options.registry).await;
    }
    let filter = options.filter()?;
    let mut images = options.store.open()?.list()?;
    images.retain(|image| {
        filter
            .as_ref()
            .is_none_or(|filter| filter.matches(&image.name()))
    });
    if options.json {
        return print_json(&images.iter().map(to_json).collect::<Value>());
    }
    if options.quiet {
        let mut seen = HashSet::new();
        let digests = images.iter().filter(|image| seen.insert(&image.digest));
        let lines: Vec<_> = digests.map(|image| short(image).to_owned()).collect();
        return if lines.is_empty() {
            Ok(())
        } else {
            print(&lines.join("\n"))
        };
    }
    let now = crate::telemetry::now();
    let rows: Vec<_> = images.iter().map(|image| row(image, now)).collect();
    print(&table::columns(
        [
            "REPOSITORY",
            "TAG",
            "DIGEST",
            "REVISION",
            "RECEIVED",
            "SIZE",
            "SIGNED",
        ],
        &rows,
    ))
}

/// A filter of image names.
enum Filter {
    Word(String),
    Glob(Box<GlobSet>),
}

impl Filter {
    fn new(text: &str) -> anyhow::Result<Self> {
        let text = text.strip_prefix("reference=").unwrap_or(text);
        if text.len() > MAX_FILTER_BYTES {
            bail!("the filter is longer than {MAX_FILTER_BYTES} bytes; shorten it");
        }
        if !text.contains('*') {
            return Ok(Self::Word(text.to_owned()));
        }
        // As in docker, a repository matches all its tags.
        let mut globs = GlobSet::builder();
        for text in [text.to_owned(), format!("{text}:*"), format!("{text}@*")] {
            globs.add(Glob::new(&text).with_context(|| format!("--filter {text:?}"))?);
        }
        Ok(Self::Glob(Box::new(
            globs
                .build()
                .with_context(|| format!("--filter {text:?}"))?,
        )))
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Word(word) => name.contains(word.as_str()),
            Self::Glob(globs) => globs.is_match(name),
        }
    }
}

impl Options {
    fn filter(&self) -> anyhow::Result<Option<Filter>> {
        self.word
            .as_ref()
            .or(self.filter.as_ref())
            .map(|text| Filter::new(text))
            .transpose()
    }
}

fn short(image: &Image) -> &str {
    &image.digest.hex()[..12]
}

fn row(image: &Image, now: Timestamp) -> [String; 7] {
    [
        image.repository.clone(),
        image.tag.clone().unwrap_or_else(|| "-".to_owned()),
        short(image).to_owned(),
        image.revision.clone(),
        image
            .created
            .map_or_else(|| "-".to_owned(), |created| table::age(created, now)),
        table::size(image.size),
        // The cell is not `no`, because `sign` writes to the registry, which may have a signature.
        if image.signed { "yes" } else { NOT_IN_STORE }.to_owned(),
    ]
}

fn to_json(image: &Image) -> Value {
    json!({ "repository": image.repository, "tag": image.tag, "digest": image.digest,
        "revision": image.revision, "created": image.created.map(|created| format!("{created:.3}")),
        "size": image.size, "signed": image.signed })
}

/// The maximum length of a filter, in bytes; image names are shorter.
const MAX_FILTER_BYTES: usize = 1024;
/// The SIGNED column of an image without a signature in the store.
pub(super) const NOT_IN_STORE: &str = "not in the store";
