//! Lists the content of a registry, for `bundlegate tags` and `bundlegate images --remote`.

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{eprint, flags::RegistryFlags, interruptible, print, print_json, store_flag, table};
use crate::{
    oci::{Digest, Reference, Repository, TagRule, is_signature_tag},
    registry::{Class, Registries, RegistryError, Source},
};

/// Tags that are resolved at the same time.
const MAX_CONCURRENT_RESOLVES: usize = 8;

/// The output format of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListFormat {
    Table,
    Json,
    /// One name per line.
    Quiet,
}

/// A tag, its digest, and whether a signature tag exists for that digest.
struct ListedTag {
    tag: String,
    digest: Option<Digest>,
    signed: bool,
}

impl ListFormat {
    pub(super) fn of(json: bool, quiet: bool) -> Self {
        match (json, quiet) {
            (true, _) => Self::Json,
            (false, true) => Self::Quiet,
            (false, false) => Self::Table,
        }
    }
}

/// Lists `HOST/REPOSITORY`'s tags, or `HOST`'s repositories that contain `search`.
pub(super) async fn run(
    remote: &str,
    search: Option<&str>,
    format: ListFormat,
    flags: &RegistryFlags,
) -> anyhow::Result<()> {
    if remote.contains('/') {
        if search.is_some() {
            bail!(
                "--search searches repositories; name only the registry, without the path of {remote:?}"
            );
        }
        return tags(remote.trim_end_matches('/'), None, format, flags).await;
    }
    let cli_config = flags.cli_config()?;
    let host = Repository::Registry {
        host: remote.to_owned(),
        path: String::new(),
    };
    let (registries, _) = flags.registries(cli_config.as_ref(), &host)?;
    let found = interruptible(registries.repositories(remote)).await??;
    let found = found.with_context(|| {
        format!("{remote}: the registry does not list its repositories; name a repository, such as {remote}/acme/authz")
    })?;
    let found: Vec<_> = found
        .into_iter()
        .filter(|name| search.is_none_or(|word| name.contains(word)))
        .collect();
    let names = found.iter().map(|name| format!("{remote}/{name}"));
    match format {
        ListFormat::Json => print_json(
            &names
                .map(|name| json!({ "repository": name }))
                .collect::<Value>(),
        ),
        ListFormat::Quiet => print_lines(names.map(|name| table::printable(&name))),
        ListFormat::Table => print(&table::columns(
            ["REPOSITORY"],
            &names.map(|name| [name]).collect::<Vec<_>>(),
        )),
    }
}

/// Lists the tags of a repository: with a rule those that it has to choose from, the chosen one
/// first.
pub(super) async fn tags(
    repository: &str,
    rule: Option<&TagRule>,
    format: ListFormat,
    flags: &RegistryFlags,
) -> anyhow::Result<()> {
    let cli_config = flags.cli_config()?;
    let repository = store_flag::repository(repository).map_err(anyhow::Error::msg)?;
    let (registries, _) = flags.registries(cli_config.as_ref(), &repository)?;
    let tags = interruptible(list_tags(&registries, &repository, rule)).await??;
    print_tags(&repository, &tags, format)
}

async fn list_tags(
    registries: &Registries,
    repository: &Repository,
    rule: Option<&TagRule>,
) -> anyhow::Result<Vec<ListedTag>> {
    let all = registries.tags(repository).await?;
    let source = registries.source(repository)?;
    // A set, so that each tag costs one lookup.
    let signatures: HashSet<&str> = all
        .iter()
        .filter(|tag| is_signature_tag(tag))
        .filter_map(|tag| signed_stem(tag))
        .collect();
    let names = all.iter().map(String::as_str);
    let shown = match rule {
        Some(rule) => rule.candidates(names),
        None => names.filter(|tag| !is_signature_tag(tag)).collect(),
    };
    let resolved = stream::iter(shown.into_iter().map(|tag| {
        let source = &source;
        async move {
            let digest = digest(source, repository, tag).await?;
            Ok::<_, anyhow::Error>((tag.to_owned(), digest))
        }
    }));
    let mut resolved = resolved.buffered(MAX_CONCURRENT_RESOLVES);
    let mut tagged = Vec::new();
    while let Some(one) = resolved.next().await {
        let (tag, digest) = one?;
        let stem = digest
            .as_ref()
            .map(|digest| format!("{}-{}", digest.algorithm(), digest.hex()));
        let signed = stem.is_some_and(|stem| signatures.contains(stem.as_str()));
        tagged.push(ListedTag {
            tag,
            digest,
            signed,
        });
    }
    Ok(tagged)
}

/// The digest of a tag. `None` for a tag that is not a valid reference or whose manifest is
/// broken: one bad tag must not fail the whole list.
async fn digest(
    source: &Source,
    repository: &Repository,
    tag: &str,
) -> anyhow::Result<Option<Digest>> {
    let Ok(reference) = format!("{repository}:{tag}").parse::<Reference>() else {
        return Ok(None);
    };
    match source.resolve(&reference).await {
        Ok(pinned) => Ok(Some(pinned.digest().clone())),
        // Deleted since the tags were listed.
        Err(RegistryError::NoSuchReference { .. }) => Ok(None),
        Err(error)
            if error.class() == Class::Defect
                || matches!(error, RegistryError::Protocol { .. }) =>
        {
            eprint(&format!("{reference}: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn print_tags(
    repository: &Repository,
    tags: &[ListedTag],
    format: ListFormat,
) -> anyhow::Result<()> {
    match format {
        ListFormat::Json => {
            let tags = tags.iter().map(|one| {
                // The value is `null` and not `false`, because the referrers API was not queried:
                // the digest may have a signature without a tag.
                let signed = one.signed.then_some(true);
                json!({ "repository": repository.to_string(), "tag": one.tag, "digest": one.digest, "signed": signed })
            });
            print_json(&tags.collect::<Value>())
        }
        ListFormat::Quiet => print_lines(
            tags.iter()
                .map(|one| format!("{repository}:{}", table::printable(&one.tag))),
        ),
        ListFormat::Table => {
            let row = |one: &ListedTag| {
                let digest = one
                    .digest
                    .as_ref()
                    .map_or("-", |digest| &digest.hex()[..12]);
                let signed = if one.signed { "yes" } else { "-" };
                [
                    repository.to_string(),
                    one.tag.clone(),
                    digest.to_owned(),
                    signed.to_owned(),
                ]
            };
            let rows: Vec<_> = tags.iter().map(row).collect();
            print(&table::columns(
                ["REPOSITORY", "TAG", "DIGEST", "SIGNED"],
                &rows,
            ))
        }
    }
}

fn print_lines(lines: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() {
        Ok(())
    } else {
        print(&lines.join("\n"))
    }
}

/// The digest in a signature tag: cosign's `.sig` tag or the referrers tag.
fn signed_stem(tag: &str) -> Option<&str> {
    match tag.split_once('.') {
        None => Some(tag),
        Some((stem, "sig")) => Some(stem),
        Some(_) => None,
    }
}
