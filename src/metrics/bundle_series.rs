//! The series of one metric, which are bound at their first use: those of one bundle are removed with
//! it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use prometheus::core::{MetricVec, MetricVecBuilder};

/// A metric with labels.
pub trait MetricFamily: fmt::Debug + Clone + Send + 'static {
    /// The counter, gauge or histogram of one series.
    type Series: fmt::Debug;

    /// The series with these label values, which exists from now on.
    fn bind(&self, values: &[&str]) -> Self::Series;

    /// Removes the series with these label values, if it exists.
    fn remove(&self, values: &[&str]);
}

/// A bundle from its addition to its removal, for the metrics that have a series of it.
///
/// The removal removes every series that was bound in this scope. After that no series is made in
/// it any more: a request that is still held, or a watcher that is still being stopped, can't bring
/// back the series of a bundle that is gone. A bundle that is added again under the same name gets
/// a scope, and counts from zero.
pub struct BundleScope {
    bundle: Arc<str>,
    /// The removals of the series that were bound; `None` once the bundle was removed.
    removals: Mutex<Option<Vec<Removal>>>,
}

type Removal = Box<dyn FnOnce() + Send>;

/// The series of one bundle in one metric, whose first label is `bundle`. A series is made when its
/// labels are first used, because a bundle that has counted nothing has none.
///
/// Reading takes no lock and hashes nothing: it compares the label values with the few that were
/// used before.
#[derive(Debug)]
pub struct BundleSeries<F: MetricFamily> {
    scope: Arc<BundleScope>,
    family: F,
    bound: Bound<F::Series>,
}

/// The series of a metric whose label values come from a small fixed set. They are made and read as
/// those of a [`BundleSeries`]. Clones share them.
#[derive(Debug, Clone)]
pub struct Series<F: MetricFamily>(Arc<Family<F>>);

#[derive(Debug)]
struct Family<F: MetricFamily> {
    family: F,
    bound: Bound<F::Series>,
}

/// The series that were used so far.
#[derive(Debug)]
struct Bound<S>(Link<S>);

/// A list to which values are only ever appended, so that readers need no lock.
type Link<S> = OnceLock<Box<Node<S>>>;

#[derive(Debug)]
struct Node<S> {
    values: Box<[Box<str>]>,
    /// `None` if the bundle had been removed by then.
    series: Option<S>,
    next: Link<S>,
}

impl<T: MetricVecBuilder + 'static> MetricFamily for MetricVec<T>
where
    T::M: fmt::Debug,
{
    type Series = T::M;

    fn bind(&self, values: &[&str]) -> T::M {
        self.with_label_values(values)
    }

    fn remove(&self, values: &[&str]) {
        // It may be gone already.
        let _ = self.remove_label_values(values);
    }
}

impl BundleScope {
    /// The scope of a bundle that is being added.
    pub fn new(bundle: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            bundle,
            removals: Mutex::new(Some(Vec::new())),
        })
    }

    /// The bundle's name.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// Removes the series of the bundle from every metric, and makes none any more.
    pub fn remove(&self) {
        // No series is bound between the two steps: the lock is held during both.
        let mut removals = self.lock();
        for remove in removals.take().into_iter().flatten() {
            remove();
        }
    }

    /// The series with these label values after the bundle's; `None` once the bundle was removed.
    fn bind<F: MetricFamily>(&self, family: &F, values: &[&str]) -> Option<F::Series> {
        let mut removals = self.lock();
        let removals = removals.as_mut()?;
        let labels: Vec<&str> = [&*self.bundle]
            .into_iter()
            .chain(values.iter().copied())
            .collect();
        let series = family.bind(&labels);
        let (family, labels) = (
            family.clone(),
            labels.into_iter().map(str::to_owned).collect::<Vec<_>>(),
        );
        removals.push(Box::new(move || {
            family.remove(&labels.iter().map(String::as_str).collect::<Vec<_>>());
        }));
        Some(series)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Removal>>> {
        self.removals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for BundleScope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bundle = &self.bundle;
        formatter
            .debug_struct("BundleScope")
            .field("bundle", bundle)
            .finish_non_exhaustive()
    }
}

impl<F: MetricFamily> BundleSeries<F> {
    /// The series of the bundle in `family`. None is made yet.
    pub fn new(scope: &Arc<BundleScope>, family: &F) -> Self {
        Self {
            scope: Arc::clone(scope),
            family: family.clone(),
            bound: Bound(Link::new()),
        }
    }

    /// The series with these values of the labels after `bundle`, which come from a small fixed
    /// set. `None` if the bundle was removed before these values were first used. A series that was
    /// bound before the removal is still returned after it, but is no longer exposed.
    pub fn with(&self, values: &[&str]) -> Option<&F::Series> {
        self.bound
            .get(values, || self.scope.bind(&self.family, values))
    }
}

impl<F: MetricFamily> Series<F> {
    /// The series of `family`. None is made yet.
    pub fn new(family: F) -> Self {
        Self(Arc::new(Family {
            family,
            bound: Bound(Link::new()),
        }))
    }

    /// The series with these label values. It is never `None`.
    pub fn with(&self, values: &[&str]) -> Option<&F::Series> {
        let Family { family, bound } = &*self.0;
        bound.get(values, || Some(family.bind(values)))
    }
}

impl<S> Bound<S> {
    /// The series with these label values, from `bind` at their first use.
    fn get(&self, values: &[&str], bind: impl Fn() -> Option<S>) -> Option<&S> {
        let mut link = &self.0;
        loop {
            let node = link.get_or_init(|| {
                Box::new(Node {
                    values: values.iter().map(|value| Box::from(*value)).collect(),
                    series: bind(),
                    next: Link::new(),
                })
            });
            if node
                .values
                .iter()
                .map(|value| &**value)
                .eq(values.iter().copied())
            {
                return node.series.as_ref();
            }
            link = &node.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use prometheus::{IntCounterVec, IntGaugeVec};

    use super::{super::Metrics, *};

    struct World {
        metrics: Metrics,
        requests: IntCounterVec,
        waiters: IntGaugeVec,
    }

    impl World {
        fn new() -> Self {
            let metrics = Metrics::new();
            let requests = metrics.counters("requests", "-", &["bundle", "code"]);
            let waiters = metrics.gauges("waiters", "-", &["bundle"]);
            Self {
                requests: requests.unwrap(),
                waiters: waiters.unwrap(),
                metrics,
            }
        }

        fn has(&self, text: &str) -> bool {
            self.metrics.render().unwrap().contains(text)
        }
    }

    #[test]
    fn a_series_is_made_at_its_first_use_and_counts_by_its_labels() {
        let world = World::new();
        let requests = BundleSeries::new(&BundleScope::new("authz".into()), &world.requests);
        assert!(!world.has("authz"), "nothing was counted yet");
        for code in ["200", "304", "200"] {
            requests.with(&[code]).unwrap().inc();
        }
        let count = |code| {
            let series = format!(r#"requests{{bundle="authz",code="{code}"}}"#);
            world.metrics.sample(&series)
        };
        assert_eq!(
            ["200", "304", "404"].map(count),
            [Some(2.0), Some(1.0), None]
        );
    }

    #[test]
    fn a_removed_bundle_leaves_no_series_makes_none_and_others_keep_theirs() {
        let world = World::new();
        let scopes = ["going", "staying"].map(|name| BundleScope::new(name.into()));
        let [going, staying] = scopes.each_ref().map(|scope| {
            let requests = BundleSeries::new(scope, &world.requests);
            let waiters = BundleSeries::new(scope, &world.waiters);
            requests.with(&["200"]).unwrap().inc();
            waiters.with(&[]).unwrap().inc();
            (requests, waiters)
        });
        scopes[0].remove();
        scopes[0].remove();
        assert!(!world.has("going"));
        // As a request does that is held beyond the removal.
        going.0.with(&["200"]).unwrap().inc();
        going.1.with(&[]).unwrap().dec();
        assert!(going.0.with(&["404"]).is_none());
        assert!(!world.has("going"));
        staying.0.with(&["404"]).unwrap().inc();
        assert_eq!(
            world.metrics.render().unwrap().matches("staying").count(),
            3
        );
    }

    #[test]
    fn a_bundle_that_is_added_again_counts_from_zero_whatever_the_earlier_one_still_counts() {
        let world = World::new();
        let count = |scope: &Arc<BundleScope>| {
            let requests = BundleSeries::new(scope, &world.requests);
            requests.with(&["200"]).unwrap().inc();
            requests
        };
        let (earlier, later) = (
            BundleScope::new("authz".into()),
            BundleScope::new("authz".into()),
        );
        let before = count(&earlier);
        earlier.remove();
        let _after = count(&later);
        before.with(&["200"]).unwrap().inc();
        earlier.remove();
        let series = r#"requests{bundle="authz",code="200"}"#;
        assert_eq!(world.metrics.sample(series), Some(1.0));
    }

    #[test]
    fn threads_that_count_while_the_bundle_is_removed_leave_no_series() {
        for _ in 0..100 {
            let world = World::new();
            let scope = BundleScope::new("authz".into());
            let requests = BundleSeries::new(&scope, &world.requests);
            thread::scope(|threads| {
                for codes in [["200", "304", "404"], ["404", "503", "200"]] {
                    let requests = &requests;
                    threads.spawn(move || {
                        for code in codes {
                            requests.with(&[code]).inspect(|series| series.inc());
                        }
                    });
                }
                scope.remove();
            });
            assert!(!world.has("authz"));
        }
    }
}
