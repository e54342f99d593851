//! `bundlegate images`.

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use clap::Args;
use globset::{Glob, GlobSet};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{flags::RegistryFlags, remote_list, say, say_json, store_flag::StoreFlag, table};
use crate::images::Image;

/// How to run `images`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Only images whose name contains this, or matches it where it has `*` in it.
    #[arg(value_name = "FILTER", conflicts_with = "remote")]
    word: Option<String>,
    /// The same, as a flag; `reference=FILTER` as docker has it will do.
    #[arg(short, long, value_name = "FILTER", conflicts_with_all = ["remote", "word"])]
    filter: Option<String>,
    /// Print short digests alone, each once: what `rm`, `tag`, `push`, `save` and `inspect` take.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// List what a registry has instead: the tags of HOST/REPOSITORY, or the repositories
    /// of HOST where it keeps a list of them.
    #[arg(long, value_name = "HOST[/REPOSITORY]")]
    remote: Option<String>,
    /// Only repositories whose name contains this.
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

RECEIVED is when the store got the image. SIGNED says that a signature lies beside it in the
store; the registry may have more, and `bundlegate verify` judges them.";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    if let Some(from) = &options.remote {
        let form = remote_list::Form::of(options.json, options.quiet);
        return remote_list::run(from, options.search.as_deref(), form, &options.registry).await;
    }
    let filter = options.filter()?;
    let mut images = options.store.open()?.list()?;
    images.retain(|image| filter.as_ref().is_none_or(|filter| filter.fits(&image.name())));
    if options.json {
        return say_json(&images.iter().map(in_json).collect::<Value>());
    }
    if options.quiet {
        let mut seen = HashSet::new();
        let digests = images.iter().filter(|image| seen.insert(&image.digest));
        let lines: Vec<_> = digests.map(|image| short(image).to_owned()).collect();
        return if lines.is_empty() { Ok(()) } else { say(&lines.join("\n")) };
    }
    let now = crate::telemetry::now();
    let rows: Vec<_> = images.iter().map(|image| row(image, now)).collect();
    say(&table::columns(["REPOSITORY", "TAG", "DIGEST", "REVISION", "RECEIVED", "SIZE", "SIGNED"], &rows))
}

/// Which names are listed.
enum Filter {
    Word(String),
    Glob(Box<GlobSet>),
}

impl Filter {
    fn new(text: &str) -> anyhow::Result<Self> {
        let text = text.strip_prefix("reference=").unwrap_or(text);
        if text.len() > FILTER_BYTES {
            bail!("a filter has {FILTER_BYTES} bytes at most; write a shorter one");
        }
        if !text.contains('*') {
            return Ok(Self::Word(text.to_owned()));
        }
        // A repository stands for all its tags, as in docker.
        let mut globs = GlobSet::builder();
        for text in [text.to_owned(), format!("{text}:*"), format!("{text}@*")] {
            globs.add(Glob::new(&text).with_context(|| format!("--filter {text:?}"))?);
        }
        Ok(Self::Glob(Box::new(globs.build().with_context(|| format!("--filter {text:?}"))?)))
    }

    fn fits(&self, name: &str) -> bool {
        match self {
            Self::Word(word) => name.contains(word.as_str()),
            Self::Glob(globs) => globs.is_match(name),
        }
    }
}

impl Options {
    fn filter(&self) -> anyhow::Result<Option<Filter>> {
        self.word.as_ref().or(self.filter.as_ref()).map(|text| Filter::new(text)).transpose()
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
        image.created.map_or_else(|| "-".to_owned(), |created| table::age(created, now)),
        table::size(image.size),
        // `sign` writes to the registry, so that nothing here says nothing of there.
        if image.signed { "yes" } else { NOT_HERE }.to_owned(),
    ]
}

fn in_json(image: &Image) -> Value {
    json!({ "repository": image.repository, "tag": image.tag, "digest": image.digest,
        "revision": image.revision, "created": image.created.map(|created| format!("{created:.3}")),
        "size": image.size, "signed": image.signed })
}

/// No name of an image is longer.
const FILTER_BYTES: usize = 1024;
/// What is told of signatures that may be in the registry.
pub(super) const NOT_HERE: &str = "not in the store";
