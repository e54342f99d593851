//! `trust.authorities`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::roots::Roots;
use crate::{
    config::{
        files::Base,
        keys,
        name_matcher::{NameMatcher, refused},
        problem::Problem,
        raw,
        values::{self, PointInTime, name},
    },
    verify::{
        Authority, AuthorityKey, AuthorityKind, BadKey, CaRoots, FulcioExtension, Identity,
        Pattern, PublicKey, San, Scheme, SigningTime, TlogPolicy, TrustRoot, X509,
    },
};

/// Reads all of `trust.authorities`.
pub(super) fn read(
    raw: BTreeMap<String, raw::Authority>,
    roots: &Roots<'_>,
    base: Base<'_>,
) -> Result<BTreeMap<String, Authority>, Problem> {
    let mut authorities = BTreeMap::new();
    for (name, raw) in raw {
        let authority = authority(&name, raw, roots, base).map_err(|problem| problem.at(&name))?;
        authorities.insert(name, authority);
    }
    spread_revocations(&mut authorities);
    Ok(authorities)
}

fn authority(
    authority: &str,
    raw: raw::Authority,
    roots: &Roots<'_>,
    base: Base<'_>,
) -> Result<Authority, Problem> {
    // The names appear in a header, separated by commas.
    name(authority)?;
    let mut tlog = tlog_policy(raw.tlog.as_deref()).map_err(|problem| problem.at("tlog"))?;
    let misplaced = |kind: &str| match &raw.root {
        Some(root) => Err(Problem::new(format!(
            "write it inside, as `{kind}: {{ root: {root}, … }}`"
        ))
        .at("root")),
        None => Ok(()),
    };
    let (kind, root) = match (raw.keys, raw.keyless, raw.x509) {
        (Some(keys), None, None) => {
            let root = root_of(raw.root.as_deref(), tlog != TlogPolicy::None, roots)?;
            (
                AuthorityKind::Keys(
                    authority_keys(&keys, base).map_err(|problem| problem.at("keys"))?,
                ),
                root,
            )
        }
        (None, Some(keyless), None) => {
            misplaced("keyless")?;
            let root = root_of(keyless.root.as_deref(), true, roots)
                .map_err(|problem| problem.at("keyless"))?;
            (
                AuthorityKind::Keyless(identity(keyless).map_err(|problem| problem.at("keyless"))?),
                root,
            )
        }
        (None, None, Some(x509)) => {
            misplaced("x509")?;
            // No log is checked in this case.
            let now = x509.time.as_deref() == Some("now");
            if now && raw.tlog.is_some() && tlog != TlogPolicy::None {
                let message =
                    "with `time: now` no log is checked; write `tlog: none`, or another time";
                return Err(Problem::new(message).at("tlog"));
            }
            tlog = if now { TlogPolicy::None } else { tlog };
            let (x509, root) =
                private_ca(x509, tlog, roots, base).map_err(|problem| problem.at("x509"))?;
            (AuthorityKind::X509(x509), root)
        }
        (None, None, None) => {
            return Err(Problem::new(
                "the authority has no kind; write one of `keys`, `keyless` and `x509`",
            ));
        }
        _ => {
            return Err(Problem::new(
                "an authority has one kind; keep one of `keys`, `keyless` and `x509`",
            ));
        }
    };
    let authority = Authority {
        name: authority.to_owned(),
        kind,
        tlog,
        root,
    };
    authority.check().map_err(Problem::from)?;
    Ok(authority)
}

fn tlog_policy(word: Option<&str>) -> Result<TlogPolicy, Problem> {
    word.map_or(Ok(TlogPolicy::Require), |word| values::word(word, &TLOG))
}

/// The root with this name. Without a name, the public-good root if one is needed.
fn root_of(
    name: Option<&str>,
    needed: bool,
    roots: &Roots<'_>,
) -> Result<Option<TrustRoot>, Problem> {
    match name {
        Some(name) => roots
            .named(name)
            .map(Some)
            .map_err(|problem| problem.at("root")),
        None if needed => roots.sigstore().map(Some),
        None => Ok(None),
    }
}

fn authority_keys(raw: &[raw::KeyFile], base: Base<'_>) -> Result<Vec<AuthorityKey>, Problem> {
    if raw.is_empty() {
        return Err(Problem::new(
            "the list is empty; name a PEM public key file",
        ));
    }
    let mut keys: Vec<AuthorityKey> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (index, raw) in raw.iter().enumerate() {
        let key = key(raw, base).and_then(|key| {
            match places.insert(key.key.identity().to_owned(), index) {
                // If the key had two sets of conditions, the looser one would apply.
                Some(twin) => Err(Problem::new(format!(
                    "the same key as keys[{twin}]; keep one of them"
                ))),
                None => Ok(key),
            }
        });
        keys.push(key.map_err(|problem| problem.at_index(index))?);
    }
    Ok(keys)
}

fn key(raw: &raw::KeyFile, base: Base<'_>) -> Result<AuthorityKey, Problem> {
    let raw = match raw {
        raw::KeyFile::Keyword(path) => {
            return public_key(path.as_ref(), None, base).map(AuthorityKey::from);
        }
        raw::KeyFile::Keys(raw) => raw,
    };
    let key = AuthorityKey {
        key: public_key(&raw.file, raw.schemes.as_deref(), base)?,
        not_before: raw.not_before.map(|PointInTime(at)| at),
        not_after: raw.not_after.map(|PointInTime(at)| at),
        revoked: raw.revoked,
    };
    key.check().map_err(Problem::from)?;
    Ok(key)
}

fn public_key(
    path: &Path,
    schemes: Option<&[String]>,
    base: Base<'_>,
) -> Result<PublicKey, Problem> {
    let text = base.text(path)?;
    let refused = |reason: String| Problem::new(format!("{}: {reason}", path.display()));
    if text.matches("-----BEGIN PUBLIC KEY-----").count() > 1 {
        return Err(refused(
            "the file has several keys; put each in its own file".to_owned(),
        ));
    }
    let not_a_key = |error: BadKey| match error {
        BadKey::NotPem(_) | BadKey::Broken(_) => {
            refused(format!("{error}; name the file of a public key"))
        }
        error => refused(error.to_string()),
    };
    let Some(schemes) = schemes else {
        return PublicKey::from_pem(&text).map_err(not_a_key);
    };
    let named = schemes.iter().enumerate().map(|(index, name)| {
        Scheme::named(name).ok_or_else(|| {
            let suggestion = keys::suggestion(name, Scheme::names());
            Problem::new(format!("{name:?} is not a signature scheme; {suggestion}"))
                .at_index(index)
                .at("schemes")
        })
    });
    let named = named.collect::<Result<Vec<_>, _>>()?;
    PublicKey::with_schemes(&text, &named).map_err(|error| match error {
        BadKey::OtherScheme { .. } | BadKey::NoScheme => {
            Problem::new(error.to_string()).at("schemes")
        }
        error => not_a_key(error),
    })
}

/// Applies each revocation to the same key in all authorities: a stolen key is revoked completely,
/// even if one of the places that name it was overlooked.
fn spread_revocations(authorities: &mut BTreeMap<String, Authority>) {
    let keys = authorities.values().flat_map(Authority::keys);
    let revoked: BTreeSet<_> = keys
        .filter(|key| key.revoked)
        .map(|key| key.key.identity().to_owned())
        .collect();
    for authority in authorities.values_mut() {
        if let AuthorityKind::Keys(keys) = &mut authority.kind {
            keys.iter_mut()
                .for_each(|key| key.revoked |= revoked.contains(key.key.identity()));
        }
    }
}

fn identity(raw: raw::Keyless) -> Result<Identity, Problem> {
    let url = "a URL such as \"https://token.actions.githubusercontent.com\"";
    let issuer = NameMatcher {
        key: "issuer",
        is: |text| text.contains("://"),
        kind: url,
    };
    let issuer = issuer
        .pattern(raw.issuer, raw.issuer_regex)?
        .ok_or_else(|| missing("issuer", "anyone with an account anywhere", url))?;
    let signer = "an e-mail address or a workflow's URI";
    let subject = NameMatcher {
        key: "subject",
        is: |text| text.contains(['@', ':']),
        kind: signer,
    };
    let subject = subject
        .pattern(raw.subject, raw.subject_regex)?
        .ok_or_else(|| missing("subject", "anyone known to the issuer", signer))?;
    let claims = raw
        .claims
        .into_iter()
        .map(|(name, text)| claim(&name, &text).map_err(|problem| problem.at(&name)));
    let claims = claims
        .collect::<Result<_, _>>()
        .map_err(|problem| problem.at("claims"))?;
    Ok(Identity {
        issuer,
        subject,
        claims,
    })
}

fn missing(key: &str, anyone: &str, wanted: &str) -> Problem {
    Problem::new(format!(
        "without it {anyone} could sign; write `{key}`, {wanted}"
    ))
    .at(key)
}

fn claim(name: &str, text: &str) -> Result<(FulcioExtension, Pattern), Problem> {
    let claim = FulcioExtension::named(name).ok_or_else(|| {
        let suggestion = keys::suggestion(name, FulcioExtension::names());
        Problem::new(format!("unknown claim; {suggestion}"))
    })?;
    Ok((claim, Pattern::glob(text).map_err(refused)?))
}

fn private_ca(
    raw: raw::X509,
    tlog: TlogPolicy,
    roots: &Roots<'_>,
    base: Base<'_>,
) -> Result<(X509, Option<TrustRoot>), Problem> {
    let time = signing_time(raw.time.as_deref()).map_err(|problem| problem.at("time"))?;
    if time == SigningTime::Rekor && tlog == TlogPolicy::None {
        let message =
            "the log that proves the time is not checked; write `tlog: require`, or another time";
        return Err(Problem::new(message).at("time"));
    }
    let root = root_of(
        raw.root.as_deref(),
        tlog != TlogPolicy::None || time != SigningTime::Now,
        roots,
    )?;
    let uri = NameMatcher {
        key: "san_uri",
        is: |text| text.contains(':'),
        kind: "a URI such as \"spiffe://corp/ci/*\"",
    };
    let email = NameMatcher {
        key: "san_email",
        is: |text| text.contains('@'),
        kind: "an e-mail address",
    };
    let uri = uri.pattern(raw.san_uri, raw.san_uri_regex)?;
    let email = email.pattern(raw.san_email, raw.san_email_regex)?;
    let subject = match (uri, email) {
        (Some(pattern), None) => San::Uri(pattern),
        (None, Some(pattern)) => San::Email(pattern),
        (None, None) => {
            let anyone = "without it anyone with a certificate could sign";
            return Err(
                Problem::new(format!("{anyone}; write `san_uri` or `san_email`")).at("san_uri"),
            );
        }
        (Some(_), Some(_)) => {
            return Err(Problem::new(
                "a certificate is matched by one name; keep `san_uri` or `san_email`",
            ));
        }
    };
    let roots = base.text(&raw.roots).and_then(|text| {
        CaRoots::from_pem(&text).map_err(|error| {
            Problem::new(format!(
                "{}: {error}; use PEM certificates of the authority",
                raw.roots.display()
            ))
        })
    });
    Ok((
        X509 {
            roots: roots.map_err(|problem| problem.at("roots"))?,
            subject,
            time,
        },
        root,
    ))
}

fn signing_time(word: Option<&str>) -> Result<SigningTime, Problem> {
    word.map(|word| values::word(word, &TIMES)).ok_or_else(|| {
        let ways = "`tsa` (a timestamp), `rekor` (a log) or `now` (the certificate is valid while it is served)";
        Problem::new(format!("without it nothing proves when a certificate was used; write {ways}"))
    })?
}

/// The words of `tlog`; the last is the default.
pub(in crate::config) const TLOG: [(&str, TlogPolicy); 3] = [
    ("none", TlogPolicy::None),
    ("if_present", TlogPolicy::IfPresent),
    ("require", TlogPolicy::Require),
];
/// The words of `x509.time`.
pub(in crate::config) const TIMES: [(&str, SigningTime); 3] = [
    ("tsa", SigningTime::Tsa),
    ("rekor", SigningTime::Rekor),
    ("now", SigningTime::Now),
];
