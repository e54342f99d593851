//! `bundlegate images --remote`: what a registry has.

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{flags::RegistryFlags, interruptible, say, table};
use crate::{
    oci::{Digest, Reference, Repository},
    registry::{Registries, RegistryError},
};

/// Tags that are resolved at a time.
const AT_ONCE: usize = 8;

/// A tag, what it names, and whether signatures of that lie under tags of their own.
struct Tagged {
    tag: String,
    digest: Option<Digest>,
    signed: bool,
}

/// Lists `HOST/REPOSITORY`'s tags, or `HOST`'s repositories that contain `search`.
pub(super) async fn run(remote: &str, search: Option<&str>, json: bool, flags: &RegistryFlags) -> anyhow::Result<()> {
    let access = flags.access()?;
    let repository = match remote.contains('/') {
        true => {
            let reference: Reference = format!("{}:any", remote.trim_end_matches('/')).parse()?;
            reference.repository().clone()
        }
        false => Repository::Registry { host: remote.to_owned(), path: String::new() },
    };
    let (registries, _) = flags.registries(access.as_ref(), &repository)?;
    if remote.contains('/') {
        if search.is_some() {
            bail!("--search: it looks for repositories; name the registry alone, such as {}", repository.host());
        }
        let tags = interruptible(tags(&registries, &repository)).await??;
        return say(&shown(&repository, &tags, json));
    }
    let found = interruptible(registries.repositories(remote)).await??;
    let found = found.with_context(|| {
        format!("{remote}: the registry keeps no list; name a repository, such as {remote}/acme/authz")
    })?;
    let found: Vec<_> = found.into_iter().filter(|name| search.is_none_or(|word| name.contains(word))).collect();
    if json {
        let found: Value = found.iter().map(|name| json!({ "repository": format!("{remote}/{name}") })).collect();
        return say(&format!("{found:#}"));
    }
    let rows: Vec<_> = found.iter().map(|name| [format!("{remote}/{name}")]).collect();
    say(&table::columns(["REPOSITORY"], &rows))
}

async fn tags(registries: &Registries, repository: &Repository) -> anyhow::Result<Vec<Tagged>> {
    let all = registries.tags(repository).await?;
    let source = registries.source(repository)?;
    let resolved = stream::iter(all.iter().filter(|tag| !is_of_signatures(tag)).map(|tag| {
        let source = &source;
        async move {
            let reference: Reference = format!("{repository}:{tag}").parse()?;
            let digest = match source.resolve(&reference).await {
                Ok(pinned) => Some(pinned.digest().clone()),
                // Gone since it was listed.
                Err(RegistryError::NoSuchReference { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            Ok::<_, anyhow::Error>((tag.clone(), digest))
        }
    }));
    let mut resolved = resolved.buffered(AT_ONCE);
    let mut tagged = Vec::new();
    while let Some(one) = resolved.next().await {
        let (tag, digest) = one?;
        let stem = digest.as_ref().map(|digest| format!("{}-{}", digest.algorithm(), digest.hex()));
        let signed = stem.is_some_and(|stem| {
            all.iter().any(|tag| tag.strip_prefix(&stem).is_some_and(|end| matches!(end, "" | ".sig")))
        });
        tagged.push(Tagged { tag, digest, signed });
    }
    Ok(tagged)
}

fn shown(repository: &Repository, tags: &[Tagged], json: bool) -> String {
    if json {
        let tags: Value = tags
            .iter()
            .map(|one| {
                // A signature that only the registry's own list of referrers knows was not
                // looked for, so nothing is known where no tag tells of one.
                let signed = one.signed.then_some(true);
                json!({ "repository": repository.to_string(), "tag": one.tag, "digest": one.digest, "signed": signed })
            })
            .collect();
        return format!("{tags:#}");
    }
    let rows: Vec<_> = tags
        .iter()
        .map(|one| {
            let digest = one.digest.as_ref().map_or("-", |digest| &digest.hex()[..12]);
            let signed = if one.signed { "yes" } else { "-" };
            [repository.to_string(), one.tag.clone(), digest.to_owned(), signed.to_owned()]
        })
        .collect();
    table::columns(["REPOSITORY", "TAG", "DIGEST", "SIGNED"], &rows)
}

/// `sha256-<hex>`, with or without an ending.
fn is_of_signatures(tag: &str) -> bool {
    let stem = tag.split('.').next().unwrap_or_default();
    stem.split_once('-').is_some_and(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().is_ok())
}
