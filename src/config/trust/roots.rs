//! `trust.roots`: certificate authorities, logs and timestamp authorities that are believed.

use std::{cell::OnceCell, collections::BTreeMap, time::Duration};

use bytes::Bytes;
use url::Url;

use crate::{
    config::{
        files::Base,
        keys,
        problem::Problem,
        raw,
        values::{Time, name},
    },
    verify::{BadRoot, BadSource, RootSource, TrustRoot, TufOptions},
};

/// How a root is at the moment: what its repository delivered last, say. For a root of which
/// nothing is known, [`RootSource::initial`].
pub type CurrentRoot<'a> = &'a dyn Fn(&str, &RootSource) -> Result<TrustRoot, BadRoot>;

/// All roots by name.
pub(super) struct Roots<'a> {
    written: BTreeMap<String, (RootSource, TrustRoot)>,
    current: CurrentRoot<'a>,
    /// The public-good one, where it is not written and somebody relies on it.
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
        Ok(Self { written, current, sigstore: OnceCell::new() })
    }

    /// The root of this name.
    pub(super) fn named(&self, name: &str) -> Result<TrustRoot, Problem> {
        match self.written.get(name) {
            Some((_, root)) => Ok(root.clone()),
            None if name == SIGSTORE => self.unwritten(),
            None => {
                let names = self.written.keys().map(String::as_str).chain([SIGSTORE]);
                let suggestion = keys::suggestion(name, names);
                Err(Problem::new(format!("trust.roots has no {name:?}; {suggestion}")))
            }
        }
    }

    /// The one that is meant where none is named.
    pub(super) fn sigstore(&self) -> Result<TrustRoot, Problem> {
        self.named(SIGSTORE)
    }

    /// Where they come from, and how they are.
    pub(super) fn into_parts(self) -> (BTreeMap<String, RootSource>, BTreeMap<String, TrustRoot>) {
        let unwritten = self.sigstore.into_inner().map(|root| (SIGSTORE.to_owned(), (RootSource::sigstore(), root)));
        let all = self.written.into_iter().chain(unwritten);
        all.map(|(name, (source, root))| ((name.clone(), source), (name, root))).unzip()
    }

    fn unwritten(&self) -> Result<TrustRoot, Problem> {
        if let Some(root) = self.sigstore.get() {
            return Ok(root.clone());
        }
        let root =
            (self.current)(SIGSTORE, &RootSource::sigstore()).map_err(|error| Problem::new(error.to_string()))?;
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
            (RootSource::Builtin { tuf: builtin_tuf(tuf).map_err(|problem| problem.at("tuf"))? }, "builtin")
        }
        (None, Some(file), None) => {
            let text = base.text(&file).map_err(|problem| problem.at("trusted_root"))?;
            let root = current(root, &RootSource::File(text.clone())).map_err(|error| {
                Problem::new(format!("{}: {error}; give a trusted_root.json", file.display())).at("trusted_root")
            })?;
            return Ok((RootSource::File(text), root));
        }
        (None, None, Some(tuf)) => {
            (RootSource::Tuf(repository(tuf, base).map_err(|problem| problem.at("tuf"))?), "tuf")
        }
        (None, Some(_), Some(_)) => {
            let sentence =
                "a file is not refreshed; remove it, or take the root from a repository without `trusted_root`";
            return Err(Problem::new(sentence).at("tuf"));
        }
        (Some(_), Some(_), _) => {
            return Err(Problem::new("a root comes from one place; keep `builtin` or `trusted_root`"));
        }
        (None, None, None) => {
            let sentence = "nothing says where it comes from; write `builtin: sigstore`, `trusted_root: FILE` or \
                            `tuf: { url: URL, root: FILE }`";
            return Err(Problem::new(sentence));
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
    Err(Problem::new(format!("no root {word:?} is built in; {suggestion}")))
}

fn builtin_tuf(raw: Option<raw::Tuf>) -> Result<Option<TufOptions>, Problem> {
    match raw {
        None => Ok(RootSource::sigstore().tuf().cloned()),
        Some(raw::Tuf::Word(word)) if word == "none" => Ok(None),
        Some(raw::Tuf::Word(word)) => {
            Err(Problem::new(format!("{word:?} is neither `none` nor `{{ refresh: TIME }}`; write one of them")))
        }
        Some(raw::Tuf::Keys(tuf)) => {
            let foreign = tuf.url.as_ref().map(|_| "url").or_else(|| tuf.root.as_ref().map(|_| "root"));
            if let Some(key) = foreign {
                let sentence = "the built-in root comes from its own repository; remove this, or remove `builtin`";
                return Err(Problem::new(sentence).at(key));
            }
            let Some(refresh) = refresh(tuf.refresh)? else { return builtin_tuf(None) };
            Ok(Some(TufOptions::sigstore(refresh)))
        }
    }
}

fn repository(raw: raw::Tuf, base: Base<'_>) -> Result<TufOptions, Problem> {
    let tuf = match raw {
        raw::Tuf::Word(word) => {
            let sentence = format!("{word:?} is no repository; write `{{ url: URL, root: FILE }}`, or add `builtin`");
            return Err(Problem::new(sentence));
        }
        raw::Tuf::Keys(tuf) => tuf,
    };
    let Some(url) = &tuf.url else { return Err(Problem::new("is missing; write it, or add `builtin`").at("url")) };
    let Some(file) = &tuf.root else {
        let sentence = "without it whoever answers would be believed; name the repository's first trusted root.json";
        return Err(Problem::new(sentence).at("root"));
    };
    let url = Url::parse(url).map_err(|error| {
        Problem::new(format!("{url:?} is no URL: {error}; write one such as https://tuf.example.com/")).at("url")
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Problem::new("a secret is not written in a URL; remove user and password").at("url"));
    }
    let refresh = refresh(tuf.refresh)?;
    let root = base.bytes(file).map_err(|problem| problem.at("root"))?;
    TufOptions::new(url, Bytes::copy_from_slice(&root), refresh).map_err(|error| match error {
        BadSource::Url(_) => Problem::new(error.to_string()).at("url"),
        BadSource::Root(_) => Problem::new(format!("{}: {error}; name a root.json", file.display())).at("root"),
    })
}

fn refresh(time: Option<Time>) -> Result<Option<Duration>, Problem> {
    time.map(|time| time.at_least(LEAST_REFRESH, "24h")).transpose().map_err(|problem| problem.at("refresh"))
}

const SIGSTORE: &str = "sigstore";
/// Often enough to watch a rotation happen; a repository that many ask should be asked daily.
const LEAST_REFRESH: Duration = Duration::from_secs(1);
