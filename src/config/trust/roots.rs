//! `trust.roots`: trusted certificate authorities, logs and timestamp authorities.

use std::{cell::OnceCell, collections::BTreeMap, time::Duration};

use bytes::Bytes;
use url::Url;

use crate::{
    config::{
        files::Base,
        keys,
        problem::Problem,
        raw,
        values::{Period, name},
    },
    verify::{BadRoot, BadSource, RootSource, TrustRoot, TufOptions},
};

/// Returns the current state of a root, such as the last one fetched from its TUF repository. For
/// an unknown root this is [`RootSource::initial`].
pub type CurrentRoot<'a> = &'a dyn Fn(&str, &RootSource) -> Result<TrustRoot, BadRoot>;

/// The roots by name.
pub(super) struct Roots<'a> {
    written: BTreeMap<String, (RootSource, TrustRoot)>,
    current: CurrentRoot<'a>,
    /// The public-good root, if it is used without being configured.
    sigstore: OnceCell<TrustRoot>,
}

impl<'a> Roots<'a> {
    /// Reads all of `trust.roots`.
    pub(super) fn read(
        raw: BTreeMap<String, raw::TrustRoot>,
        current: CurrentRoot<'a>,
        base: Base<'_>,
    ) -> Result<Self, Problem> {
        let mut written = BTreeMap::new();
        for (name, raw) in raw {
            let root = read(&name, raw, current, base).map_err(|problem| problem.at(&name))?;
            written.insert(name, root);
        }
        Ok(Self {
            written,
            current,
            sigstore: OnceCell::new(),
        })
    }

    /// The root with this name.
    pub(super) fn named(&self, name: &str) -> Result<TrustRoot, Problem> {
        match self.written.get(name) {
            Some((_, root)) => Ok(root.clone()),
            None if name == SIGSTORE => self.default_root(),
            None => {
                let names = self.written.keys().map(String::as_str).chain([SIGSTORE]);
                let suggestion = keys::suggestion(name, names);
                Err(Problem::new(format!(
                    "trust.roots has no {name:?}; {suggestion}"
                )))
            }
        }
    }

    /// The default root.
    pub(super) fn sigstore(&self) -> Result<TrustRoot, Problem> {
        self.named(SIGSTORE)
    }

    /// The sources and the roots, by name.
    pub(super) fn into_parts(self) -> (BTreeMap<String, RootSource>, BTreeMap<String, TrustRoot>) {
        let default_root = self
            .sigstore
            .into_inner()
            .map(|root| (SIGSTORE.to_owned(), (RootSource::sigstore(), root)));
        let all = self.written.into_iter().chain(default_root);
        all.map(|(name, (source, root))| ((name.clone(), source), (name, root)))
            .unzip()
    }

    fn default_root(&self) -> Result<TrustRoot, Problem> {
        if let Some(root) = self.sigstore.get() {
            return Ok(root.clone());
        }
        let root = (self.current)(SIGSTORE, &RootSource::sigstore())
            .map_err(|error| Problem::new(error.to_string()))?;
        Ok(self.sigstore.get_or_init(|| root).clone())
    }
}

fn read(
    root: &str,
    raw: raw::TrustRoot,
    current: CurrentRoot<'_>,
    base: Base<'_>,
) -> Result<(RootSource, TrustRoot), Problem> {
    name(root)?;
    let (source, key) = match (raw.builtin, raw.trusted_root, raw.tuf) {
        (Some(builtin), None, tuf) => {
            check_builtin(&builtin).map_err(|problem| problem.at("builtin"))?;
            (
                RootSource::Builtin {
                    tuf: builtin_tuf(tuf).map_err(|problem| problem.at("tuf"))?,
                },
                "builtin",
            )
        }
        (None, Some(file), None) => {
            let text = base
                .text(&file)
                .map_err(|problem| problem.at("trusted_root"))?;
            let root = current(root, &RootSource::File(text.clone())).map_err(|error| {
                Problem::new(format!(
                    "{}: {error}; use a trusted_root.json",
                    file.display()
                ))
                .at("trusted_root")
            })?;
            return Ok((RootSource::File(text), root));
        }
        (None, None, Some(tuf)) => (
            RootSource::Tuf(repository(tuf, base).map_err(|problem| problem.at("tuf"))?),
            "tuf",
        ),
        (None, Some(_), Some(_)) => {
            let message = "a `trusted_root` file is not refreshed; keep `tuf` or `trusted_root`";
            return Err(Problem::new(message).at("tuf"));
        }
        (Some(_), Some(_), _) => {
            return Err(Problem::new(
                "a root has one source; keep `builtin` or `trusted_root`",
            ));
        }
        (None, None, None) => {
            let message = "the root has no source; write `builtin: sigstore`, `trusted_root: FILE` or \
                            `tuf: { url: URL, root: FILE }`";
            return Err(Problem::new(message));
        }
    };
    let root = current(root, &source).map_err(|error| Problem::new(error.to_string()).at(key))?;
    Ok((source, root))
}

fn check_builtin(word: &str) -> Result<(), Problem> {
    if word == SIGSTORE {
        return Ok(());
    }
    let suggestion = keys::suggestion(word, [SIGSTORE].into_iter());
    Err(Problem::new(format!(
        "no root {word:?} is built in; {suggestion}"
    )))
}

fn builtin_tuf(raw: Option<raw::Tuf>) -> Result<Option<TufOptions>, Problem> {
    match raw {
        None => Ok(RootSource::sigstore().tuf().cloned()),
        Some(raw::Tuf::Keyword(word)) if word == raw::NONE => Ok(None),
        Some(raw::Tuf::Keyword(word)) => Err(Problem::new(format!(
            "{word:?} is neither `none` nor `{{ refresh: TIME }}`; write one of them"
        ))),
        Some(raw::Tuf::Keys(tuf)) => {
            let foreign = tuf
                .url
                .as_ref()
                .map(|_| "url")
                .or_else(|| tuf.root.as_ref().map(|_| "root"));
            if let Some(key) = foreign {
                let message = "the built-in root comes from its own repository; remove this, or remove `builtin`";
                return Err(Problem::new(message).at(key));
            }
            let Some(refresh) = refresh(tuf.refresh)? else {
                return builtin_tuf(None);
            };
            Ok(Some(TufOptions::sigstore(refresh)))
        }
    }
}

fn repository(raw: raw::Tuf, base: Base<'_>) -> Result<TufOptions, Problem> {
    let tuf = match raw {
        raw::Tuf::Keyword(word) => {
            let message = format!(
                "{word:?} is not a repository; write `{{ url: URL, root: FILE }}`, or add `builtin`"
            );
            return Err(Problem::new(message));
        }
        raw::Tuf::Keys(tuf) => tuf,
    };
    let Some(url) = &tuf.url else {
        return Err(Problem::new("missing; write it, or add `builtin`").at("url"));
    };
    let Some(file) = &tuf.root else {
        let message =
            "without it any answer would be trusted; name the repository's first trusted root.json";
        return Err(Problem::new(message).at("root"));
    };
    let url = Url::parse(url).map_err(|error| {
        Problem::new(format!(
            "{url:?} is not a URL: {error}; write one such as https://tuf.example.com/"
        ))
        .at("url")
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            Problem::new("a URL must not contain a secret; remove user and password").at("url"),
        );
    }
    let refresh = refresh(tuf.refresh)?;
    let root = base.bytes(file).map_err(|problem| problem.at("root"))?;
    TufOptions::new(url, Bytes::copy_from_slice(&root), refresh).map_err(|error| match error {
        BadSource::Url(_) => Problem::new(error.to_string()).at("url"),
        BadSource::Root(_) => {
            Problem::new(format!("{}: {error}; name a root.json", file.display())).at("root")
        }
    })
}

fn refresh(time: Option<Period>) -> Result<Option<Duration>, Problem> {
    time.map(|time| time.at_least(MIN_REFRESH, "24h"))
        .transpose()
        .map_err(|problem| problem.at("refresh"))
}

pub(in crate::config) const SIGSTORE: &str = "sigstore";
/// The minimum refresh interval, short enough for tests of a rotation. A public repository should
/// be refreshed daily.
pub(in crate::config) const MIN_REFRESH: Duration = Duration::from_secs(1);
