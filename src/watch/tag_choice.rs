//! The choice of the tag, before each check of a bundle whose reference has a rule.
//!
//! The highest tag is chosen whatever artifact it names: one that is refused leaves the served
//! version in place, with the failure in the status, as a moved tag does. A lower tag is chosen only
//! after the one above it has been deleted, whatever the list says: this holds for the tag that was
//! chosen before and for the one that is served, which the history on disk records.

use std::{collections::BTreeSet, sync::Arc};

use tokio::{task::spawn_blocking, time::Instant};

use super::{
    expect::UNEXPECTED_VERSION,
    history::History,
    refresh::{Pipeline, RefreshResult, transient},
};
use crate::{
    oci::{TagOrder, TagRule},
    publish::{ChosenTag, Failure, FailureClass, Outcome, Snapshot, Step},
    registry::{FailedTagList, RegistryError, TagList},
    telemetry::{SENTENCE_BYTES, cut},
    verify::TrustPolicy,
};

/// Tags of one list that are passed over because they name nothing. Some registries list a tag
/// whose manifest was deleted.
const MAX_MISSING: usize = 8;
/// The metric label of a list without a tag that matches and exists.
const NO_MATCH: &str = "no_matching_tag";

/// The choice of a check.
#[derive(Debug, Clone)]
pub struct Choice {
    /// When the list of tags was requested: what the check says is as old as the list.
    pub as_of: Instant,
    /// The chosen tag; `None` if no tag matches, or the list failed.
    pub chosen: Option<ChosenTag>,
    /// The tag that was chosen before the present one, if it was higher and is gone.
    pub gone: Option<String>,
    /// The list, by which an unchanged one is recognised.
    list: Option<Arc<[Arc<str>]>>,
}

/// What a choice depends on, beside the registry.
#[derive(Debug, Clone, Copy)]
pub(super) struct TagLookup<'a> {
    /// A list that was requested before this time is not used.
    pub(super) not_before: Instant,
    /// The last choice with a tag.
    pub(super) last: Option<&'a Choice>,
}

/// The tag that a rule chose from a list.
struct Candidate {
    tag: String,
    candidates: usize,
}

impl Pipeline {
    /// Checks the registry once, under one policy. With a rule, chooses the tag first. The versions
    /// `serving` and `known_defect` are not fetched again.
    pub(super) async fn check(
        &self,
        policy: &Arc<TrustPolicy>,
        serving: Option<&Snapshot>,
        known_defect: Option<&Failure>,
        past: &History,
        lookup: TagLookup<'_>,
    ) -> RefreshResult {
        let Some(rule) = self.reference.rule() else {
            return self.refresh(policy, serving, known_defect, past).await;
        };
        let failed = |choice: Choice, failure: Failure| RefreshResult {
            choice: Some(choice),
            ..RefreshResult::of(Outcome::Failed(failure))
        };
        let list = match self.list(lookup.not_before).await {
            Ok(list) => list,
            Err((as_of, failure)) => return failed(Choice::of(as_of, lookup), failure),
        };
        let before = [lookup.last.and_then(Choice::tag), past.tag()];
        let mut missing = BTreeSet::new();
        loop {
            let candidate = match self.choose(&list, &missing, lookup.last).await {
                Ok(candidate) => candidate,
                Err(failure) => return failed(Choice::of(list.as_of, lookup), failure),
            };
            let tag = candidate.as_ref().map(|candidate| candidate.tag.as_str());
            let gone = match self.confirm_gone(rule, &list, tag, before).await {
                Ok(gone) => gone,
                Err(failure) => return failed(Choice::of(list.as_of, lookup), failure),
            };
            let Some(candidate) = candidate else {
                let choice = Choice {
                    gone,
                    chosen: None,
                    ..Choice::of(list.as_of, lookup)
                };
                return failed(choice, self.no_match(list.tags.len(), &missing));
            };
            let Some(tagged) = self.tagged(&candidate.tag) else {
                // The list has only tags.
                missing.insert(candidate.tag);
                continue;
            };
            // A tag that names another version than its manifest is a defect of the tag.
            let is_same_tag = lookup.last.and_then(Choice::tag) == Some(&*candidate.tag);
            let gone = gone.or_else(|| {
                let before = lookup.last.filter(|_| is_same_tag);
                before.and_then(|last| last.gone.clone())
            });
            let known_defect =
                known_defect.filter(|known| is_same_tag || known.reason != UNEXPECTED_VERSION);
            let result = tagged.refresh(policy, serving, known_defect, past).await;
            if is_missing(&result) {
                missing.insert(candidate.tag);
                if missing.len() < MAX_MISSING {
                    continue;
                }
                return failed(
                    Choice::of(list.as_of, lookup),
                    self.too_many_missing(&missing),
                );
            }
            let reason = reason(rule, candidate.candidates, gone.as_deref(), &missing);
            let choice = Choice {
                chosen: Some(ChosenTag {
                    tag: candidate.tag,
                    candidates: candidate.candidates,
                    reason: cut(&reason, SENTENCE_BYTES).into_owned(),
                }),
                gone,
                as_of: list.as_of,
                // A tag that names nothing is looked at again, though the list stays the same.
                list: missing.is_empty().then(|| Arc::clone(&list.tags)),
            };
            return RefreshResult {
                choice: Some(choice),
                ..result
            };
        }
    }

    /// The list of tags; empty for a repository that does not exist.
    ///
    /// # Errors
    /// When the list fails, with the time of the request.
    async fn list(&self, not_before: Instant) -> Result<TagList, (Instant, Failure)> {
        let FailedTagList { error, as_of } = match self.source().tags(not_before).await {
            Ok(list) => return Ok(list),
            Err(failed) => failed,
        };
        if matches!(*error, RegistryError::NoSuchRepository { .. }) {
            let tags = Arc::default();
            return Ok(TagList { tags, as_of });
        }
        let failure = self.registry_failure(Step::Resolve, None, &error);
        let message = format!("{}: {}", self.reference, failure.message);
        Err((as_of, Failure { message, ..failure }))
    }

    /// The choice of the rule, without the tags that name nothing.
    ///
    /// # Errors
    /// When the choice panicked, which is a bug.
    async fn choose(
        &self,
        list: &TagList,
        missing: &BTreeSet<String>,
        last: Option<&Choice>,
    ) -> Result<Option<Candidate>, Failure> {
        let is_same = |last: &&Choice| {
            missing.is_empty()
                && last
                    .list
                    .as_ref()
                    .is_some_and(|known| Arc::ptr_eq(known, &list.tags))
        };
        if let Some(chosen) = last.filter(is_same).and_then(|last| last.chosen.as_ref()) {
            return Ok(Some(Candidate {
                tag: chosen.tag.clone(),
                candidates: chosen.candidates,
            }));
        }
        let (reference, tags, missing) = (
            self.reference.clone(),
            Arc::clone(&list.tags),
            missing.clone(),
        );
        // A long list takes a while.
        let chosen = spawn_blocking(move || {
            let tags = tags.iter().map(|tag| &**tag);
            let choice = reference
                .rule()?
                .choose(tags.filter(|tag| !missing.contains(*tag)))?;
            Some(Candidate {
                tag: choice.tag.to_owned(),
                candidates: choice.candidates,
            })
        });
        chosen.await.map_err(|error| {
            let message = format!("{}: the choice of the tag failed: {error}", self.reference);
            failure(FailureClass::Transient, "internal", message)
        })
    }

    /// The first of the tags `before`, of which one was chosen and one is served, that the rule
    /// prefers to the one that it chooses now, and that is gone.
    ///
    /// # Errors
    /// When one of them still exists: the list is incomplete, and the version being served must not
    /// be replaced by an older one because of that.
    async fn confirm_gone(
        &self,
        rule: &TagRule,
        list: &TagList,
        tag: Option<&str>,
        before: [Option<&str>; 2],
    ) -> Result<Option<String>, Failure> {
        let [chosen, served] = before;
        let served = served.filter(|_| served != chosen);
        let mut gone = None;
        for last in [chosen, served].into_iter().flatten() {
            let is_gone = self.confirm_one_gone(rule, list, tag, last).await?;
            gone = gone.or(is_gone);
        }
        Ok(gone)
    }

    /// As [`Self::confirm_gone`], for one tag.
    async fn confirm_one_gone(
        &self,
        rule: &TagRule,
        list: &TagList,
        tag: Option<&str>,
        last: &str,
    ) -> Result<Option<String>, Failure> {
        let preferred = rule.choose([last].into_iter().chain(tag));
        if Some(last) == tag || preferred.is_none_or(|preferred| preferred.tag != last) {
            return Ok(None);
        }
        let is_listed = list
            .tags
            .binary_search_by(|listed| (**listed).cmp(last))
            .is_ok();
        let Some(reference) = self.reference.tagged(last).filter(|_| !is_listed) else {
            // It was listed, and found to name nothing.
            return Ok(Some(last.to_owned()));
        };
        // The list is that of the registry itself, and a mirror may still have the tag.
        match self.source().at_origin().resolve(&reference).await {
            Err(RegistryError::NoSuchReference { .. }) => Ok(Some(last.to_owned())),
            Err(error) => Err(self.registry_failure(Step::Resolve, None, &error)),
            Ok(pinned) => {
                let message = format!(
                    "the list of tags of {} lacks {last}, which is still there; it is asked again",
                    self.reference.repository()
                );
                Err(transient(
                    Step::Resolve,
                    pinned.digest(),
                    "incomplete_list",
                    message,
                ))
            }
        }
    }

    /// The same pipeline for one tag.
    fn tagged(&self, tag: &str) -> Option<Self> {
        let text = self.reference.rule()?.version_text(tag);
        Some(Self {
            reference: self.reference.tagged(tag)?,
            version_text: text.map(Into::into),
            ..self.clone()
        })
    }

    fn no_match(&self, listed: usize, missing: &BTreeSet<String>) -> Failure {
        let found = match listed {
            0 => "the repository has no tags, or does not exist".to_owned(),
            listed => format!("none of {listed} tags matches{}", not_there(missing)),
        };
        let message = format!("{}: {found}", self.reference);
        failure(FailureClass::NotFound, NO_MATCH, message)
    }

    fn too_many_missing(&self, missing: &BTreeSet<String>) -> Failure {
        let message = format!(
            "{}: {MAX_MISSING} tags that match are listed, but name nothing{}",
            self.reference,
            not_there(missing)
        );
        failure(FailureClass::Transient, NO_MATCH, message)
    }
}

impl Choice {
    /// The last choice, which still holds as far as is known.
    fn of(as_of: Instant, lookup: TagLookup<'_>) -> Self {
        Self {
            as_of,
            chosen: lookup.last.and_then(|last| last.chosen.clone()),
            gone: None,
            list: None,
        }
    }

    pub(super) fn tag(&self) -> Option<&str> {
        self.chosen.as_ref().map(|chosen| chosen.tag.as_str())
    }
}

fn failure(class: FailureClass, reason: &'static str, message: String) -> Failure {
    Failure {
        class,
        step: Step::Resolve,
        digest: None,
        below: Arc::default(),
        etag: None,
        reason,
        message,
    }
}

/// Whether the tag of a check names nothing.
fn is_missing(result: &RefreshResult) -> bool {
    matches!(
        &result.outcome,
        Outcome::Failed(Failure {
            class: FailureClass::NotFound,
            step: Step::Resolve,
            ..
        })
    )
}

fn reason(
    rule: &TagRule,
    candidates: usize,
    gone: Option<&str>,
    missing: &BTreeSet<String>,
) -> String {
    let which = match (candidates, rule.order()) {
        (1, TagOrder::Version(range)) => format!("the only version in {range}"),
        (1, _) => "the only tag that matches".to_owned(),
        (many, TagOrder::Version(range)) => format!("the highest of {many} versions in {range}"),
        (many, TagOrder::Alphabetical(pick)) => {
            format!("the {pick} of {many} tags in alphabetical order")
        }
        (many, TagOrder::Numerical(pick)) => format!("the {pick} of {many} numbers"),
    };
    let gone = gone.map_or_else(String::new, |gone| format!("; {gone} is gone"));
    format!("{which}{gone}{}", not_there(missing))
}

fn not_there(missing: &BTreeSet<String>) -> String {
    if missing.is_empty() {
        return String::new();
    }
    let tags: Vec<_> = missing.iter().map(String::as_str).collect();
    format!("; listed, but not there: {}", tags.join(", "))
}
