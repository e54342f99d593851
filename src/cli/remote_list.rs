//! What a registry has: `bundlegate tags` and `bundlegate images --remote`.

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{flags::RegistryFlags, interruptible, say, say_json, store_flag, table, tell};
use crate::{
    oci::{Digest, Reference, Repository},
    registry::{Class, Registries, RegistryError, Source},
};

/// Tags that are resolved at a time.
const AT_ONCE: usize = 8;

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Table,
    Json,
    /// Names alone.
    Quiet,
}

/// A tag, what it names, and whether signatures of that lie under tags of their own.
struct Tagged {
    tag: String,
    digest: Option<Digest>,
    signed: bool,
}

impl Form {
    pub(super) fn of(json: bool, quiet: bool) -> Self {
        match (json, quiet) {
            (true, _) => Self::Json,
            (false, true) => Self::Quiet,
            (false, false) => Self::Table,
        }
    }
}

/// Lists `HOST/REPOSITORY`'s tags, or `HOST`'s repositories that contain `search`.
pub(super) async fn run(remote: &str, search: Option<&str>, form: Form, flags: &RegistryFlags) -> anyhow::Result<()> {
    if remote.contains('/') {
        if search.is_some() {
            bail!("--search: it looks for repositories; name the registry alone, without {remote:?}'s path");
        }
        return tags(remote.trim_end_matches('/'), form, flags).await;
    }
    let access = flags.access()?;
    let host = Repository::Registry { host: remote.to_owned(), path: String::new() };
    let (registries, _) = flags.registries(access.as_ref(), &host)?;
    let found = interruptible(registries.repositories(remote)).await??;
    let found = found.with_context(|| {
        format!("{remote}: the registry keeps no list; name a repository, such as {remote}/acme/authz")
    })?;
    let found: Vec<_> = found.into_iter().filter(|name| search.is_none_or(|word| name.contains(word))).collect();
    let names = found.iter().map(|name| format!("{remote}/{name}"));
    match form {
        Form::Json => say_json(&names.map(|name| json!({ "repository": name })).collect::<Value>()),
        Form::Quiet => say_lines(names.map(|name| table::printable(&name))),
        Form::Table => say(&table::columns(["REPOSITORY"], &names.map(|name| [name]).collect::<Vec<_>>())),
    }
}

/// Lists the tags of a repository.
pub(super) async fn tags(repository: &str, form: Form, flags: &RegistryFlags) -> anyhow::Result<()> {
    let access = flags.access()?;
    let repository = store_flag::repository(repository).map_err(anyhow::Error::msg)?;
    let (registries, _) = flags.registries(access.as_ref(), &repository)?;
    let tags = interruptible(tagged(&registries, &repository)).await??;
    shown(&repository, &tags, form)
}

async fn tagged(registries: &Registries, repository: &Repository) -> anyhow::Result<Vec<Tagged>> {
    let all = registries.tags(repository).await?;
    let source = registries.source(repository)?;
    // One look for any number of tags.
    let signatures: HashSet<&str> =
        all.iter().filter(|tag| is_of_signatures(tag)).filter_map(|tag| signed_stem(tag)).collect();
    let resolved = stream::iter(all.iter().filter(|tag| !is_of_signatures(tag)).map(|tag| {
        let source = &source;
        async move { Ok::<_, anyhow::Error>((tag.clone(), digest(source, repository, tag).await?)) }
    }));
    let mut resolved = resolved.buffered(AT_ONCE);
    let mut tagged = Vec::new();
    while let Some(one) = resolved.next().await {
        let (tag, digest) = one?;
        let stem = digest.as_ref().map(|digest| format!("{}-{}", digest.algorithm(), digest.hex()));
        let signed = stem.is_some_and(|stem| signatures.contains(stem.as_str()));
        tagged.push(Tagged { tag, digest, signed });
    }
    Ok(tagged)
}

/// What a tag names. One that can't be asked for, or that the registry has no sound manifest
/// for, is listed without a digest: a pusher must not be able to hide the others.
async fn digest(source: &Source, repository: &Repository, tag: &str) -> anyhow::Result<Option<Digest>> {
    let Ok(reference) = format!("{repository}:{tag}").parse::<Reference>() else { return Ok(None) };
    match source.resolve(&reference).await {
        Ok(pinned) => Ok(Some(pinned.digest().clone())),
        // Gone since it was listed.
        Err(RegistryError::NoSuchReference { .. }) => Ok(None),
        Err(error) if error.class() == Class::Defect || matches!(error, RegistryError::Protocol { .. }) => {
            tell(&format!("{reference}: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn shown(repository: &Repository, tags: &[Tagged], form: Form) -> anyhow::Result<()> {
    match form {
        Form::Json => {
            let tags = tags.iter().map(|one| {
                // A signature that only the registry's own list of referrers knows was not
                // looked for, so nothing is known where no tag tells of one.
                let signed = one.signed.then_some(true);
                json!({ "repository": repository.to_string(), "tag": one.tag, "digest": one.digest, "signed": signed })
            });
            say_json(&tags.collect::<Value>())
        }
        Form::Quiet => say_lines(tags.iter().map(|one| format!("{repository}:{}", table::printable(&one.tag)))),
        Form::Table => {
            let row = |one: &Tagged| {
                let digest = one.digest.as_ref().map_or("-", |digest| &digest.hex()[..12]);
                let signed = if one.signed { "yes" } else { "-" };
                [repository.to_string(), one.tag.clone(), digest.to_owned(), signed.to_owned()]
            };
            let rows: Vec<_> = tags.iter().map(row).collect();
            say(&table::columns(["REPOSITORY", "TAG", "DIGEST", "SIGNED"], &rows))
        }
    }
}

fn say_lines(lines: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() { Ok(()) } else { say(&lines.join("\n")) }
}

/// The digest in a tag of a signature: cosign's own (`.sig`), or the list of referrers.
fn signed_stem(tag: &str) -> Option<&str> {
    match tag.split_once('.') {
        None => Some(tag),
        Some((stem, "sig")) => Some(stem),
        Some(_) => None,
    }
}

/// `sha256-<hex>`, with or without an ending.
fn is_of_signatures(tag: &str) -> bool {
    let stem = tag.split('.').next().unwrap_or_default();
    stem.split_once('-').is_some_and(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().is_ok())
}
