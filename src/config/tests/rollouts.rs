//! `rollouts`, `prometheus`, and `shared` as far as roll-outs need it.

use super::*;
use crate::{
    promql,
    rollout::{
        Halt, NoData, OnStableLost, Order, QueryTemplate, Rollback, Share, Step, Strategy,
        Tolerance,
    },
};

/// A bundle that follows `careful`, with all that it needs.
const BUNDLE: &str = "shared: { url: 'redis://v' }
prometheus: { url: 'http://p' }
trust: { policies: { dev: unsigned } }
bundles: { a: { reference: 'r.io/a:1', trust: dev, rollout: careful } }
";

#[track_caller]
fn strategy(rest: &str) -> Strategy {
    let config = trust::folder()
        .with(&format!("{BUNDLE}rollouts: {{ careful: {rest} }}\n"))
        .unwrap();
    match &config.bundles[0].rollout {
        RolloutChoice::Strategy(strategy) => Strategy::clone(strategy),
        other => panic!("{other:?}"),
    }
}

fn share(percent: f64) -> Share {
    Share::from_percent(percent).unwrap()
}

#[test]
fn a_strategy_has_defaults_and_ends_with_all_clients() {
    let read = strategy("{ steps: [{ percent: 20, soak: 6m }] }");
    let step = |percent, soak| Step {
        share: share(percent),
        soak: secs(soak),
        ..Step::default()
    };
    let expected = Strategy {
        name: "careful".to_owned(),
        steps: vec![step(20.0, 360), step(100.0, 360)],
        quorum: share(90.0),
        min_clients: 1,
        max_failures: Tolerance::Clients(0),
        deadline: secs(2 * 3600),
        on_deadline: Halt::Pause,
        on_failure: Halt::RollBack,
        on_stable_lost: OnStableLost::Promote,
        rollback: Rollback::Immediate,
        order: Order::Fixed,
        checks: Vec::new(),
    };
    assert_eq!(read, expected);
}

#[test]
fn every_key_of_a_strategy_is_read() {
    let query = r#"sum(up{version="{{candidate.revision}}"})"#;
    let read = strategy(&format!(
        "{{
    steps: [
      {{ clients: [canary], ids: ['eu-test-*', 'a/**'], soak: 3s }},
      {{ at_least: 3, approve: true }},
      {{ percent: 0.5, soak: 1s, approve: true }},
      {{ clients: [other], soak: 1m }},
      {{ percent: 100, soak: 5m }},
    ],
    quorum: 99.5, min_clients: 0, max_failures: 1.25%, deadline: 1h,
    on_deadline: roll_back, on_failure: pause, on_stable_lost: withdraw,
    rollback: staged, salt: version, poll: 1s,
    checks: [
      {{ name: up_1, query: '{query}', min: -1, max: 2.5, every: 10s, failures: 10, no_data: fail }},
      {{ name: up-2, query: '{query}', min: 0 }},
    ],
  }}"
    ));
    let steps: Vec<_> = read
        .steps
        .iter()
        .map(|step| {
            let Step {
                clients,
                ids,
                share,
                at_least,
                soak,
                approve,
            } = step;
            let names = clients.len() + ids.len();
            (names, share.percent(), *at_least, soak.as_secs(), *approve)
        })
        .collect();
    // An absent `percent` or `at_least` is that of the step before.
    let expected = [
        (3, 0.0, 0, 3, false),
        (0, 0.0, 3, 0, true),
        (0, 0.5, 3, 1, true),
        (1, 0.5, 3, 60, false),
        (0, 100.0, 3, 300, false),
    ];
    assert_eq!(steps, expected);
    assert_eq!((read.quorum, read.min_clients), (share(99.5), 0));
    assert_eq!(read.max_failures, Tolerance::Share(share(1.25)));
    assert_eq!(
        (read.deadline, read.on_deadline, read.on_failure),
        (secs(3600), Halt::RollBack, Halt::Pause)
    );
    assert_eq!(
        (read.on_stable_lost, read.rollback, read.order),
        (OnStableLost::Withdraw, Rollback::Staged, Order::ByVersion)
    );
    let [one, two] = read.checks.as_slice() else {
        panic!("{:?}", read.checks)
    };
    assert_eq!(one.query, QueryTemplate::parse(query).unwrap());
    assert_eq!((one.min, one.max), (Some(-1.0), Some(2.5)));
    assert_eq!((one.every, one.failures), (secs(10), 10));
    assert_eq!(
        (one.no_data, two.no_data),
        (NoData::Fail, NoData::Inconclusive)
    );
    assert_eq!((two.every, two.failures), (secs(60), 1));
}

/// The lines of a key that the example has in comments.
fn commented(key: &str) -> String {
    let first = format!("# {key}:");
    let lines = EXAMPLE.lines().skip_while(|line| **line != first);
    let lines = lines.map_while(|line| line.strip_prefix("# "));
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn the_comments_of_the_example_are_a_configuration() {
    let folder = trust::folder();
    folder.write("prometheus.token", "s3cret\n");
    folder.write(
        "prometheus-ca.pem",
        &std::fs::read_to_string(folder.0.path().join("ca.pem")).unwrap(),
    );
    let bundle = BUNDLE.replace("prometheus: { url: 'http://p' }\n", "");
    let text = [bundle, commented("rollouts"), commented("prometheus")].concat();
    let config = folder.with(&text).unwrap();
    let RolloutChoice::Strategy(followed) = &config.bundles[0].rollout else {
        panic!("no strategy")
    };
    assert_eq!((followed.steps.len(), followed.checks.len()), (4, 1));
    assert_eq!(config.prometheus.unwrap().timeout, secs(10));
    // What it shows of the keys of a strategy are the defaults.
    let least = strategy("{ steps: [{ percent: 1, soak: 6m }] }");
    let shown = Strategy {
        steps: least.steps.clone(),
        checks: Vec::new(),
        ..Strategy::clone(followed)
    };
    assert_eq!(shown, least);
}

#[test]
fn a_bundle_follows_a_strategy_none_or_nothing() {
    let folder = trust::folder();
    let choice = |rollout: &str, rest: &str| {
        let bundles =
            format!("{{ a: {{ reference: 'r.io/a:1', trust: dev, suspend: true{rollout} }} }}");
        let trust = "trust: { policies: { dev: unsigned } }";
        let config = folder.with(&format!("{trust}\nbundles: {bundles}\n{rest}"));
        config.map(|config| config.bundles[0].rollout.clone())
    };
    assert_eq!(choice("", "").unwrap(), RolloutChoice::Absent);
    // Neither needs a shared state.
    assert_eq!(choice(", rollout: none", "").unwrap(), RolloutChoice::None);
    let rollouts = "rollouts: { quick: { steps: [{ percent: 1, approve: true }] } }\n";
    let shared = "shared: { url: 'local:' }\ncache: { directory: cache }\n";
    let followed = choice(", rollout: quick", &format!("{rollouts}{shared}")).unwrap();
    assert!(matches!(followed, RolloutChoice::Strategy(_)));
    for (rest, sentence) in [
        (
            rollouts.to_owned(),
            "bundles.a.rollout: a roll-out needs `shared`, where its plan is kept; write that key, or \
             for one replica `shared: { url: \"local:\" }`",
        ),
        (
            format!("{rollouts}{shared}fleet: {{ enabled: false }}"),
            "bundles.a.rollout: a roll-out needs the fleet view, which says what clients run; remove \
             `fleet.enabled: false`",
        ),
        (
            shared.to_owned(),
            "bundles.a.rollout: rollouts has no \"quick\"; write its steps there",
        ),
        (
            format!("{}{shared}", rollouts.replace("quick", "quack")),
            "bundles.a.rollout: rollouts has no \"quick\"; did you mean `quack`?",
        ),
    ] {
        let error = choice(", rollout: quick", &rest).unwrap_err().to_string();
        assert!(error.ends_with(sentence), "{error}");
    }
}

/// The error of a value is not followed by those that it causes elsewhere.
#[test]
fn an_erroneous_strategy_has_one_error() {
    for (key, value) in [("poll", "1ms"), ("deadline", "400h 1s"), ("steps", "[]")] {
        let steps = "steps: [{ percent: 1, soak: 10m }]";
        let rest = match key {
            "steps" => "{ steps: [] }".to_owned(),
            _ => format!("{{ {steps}, {key}: {value} }}"),
        };
        let text = format!("{LEAST}{BUNDLE}rollouts: {{ careful: {rest} }}\n");
        let errors = ConfigText::new("f", text, "/").parse().unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        let error = errors[0].to_string();
        assert!(
            error.contains(&format!("rollouts.careful.{key}: ")),
            "{error}"
        );
    }
}

#[test]
fn a_single_replica_needs_no_engine() {
    let folder = trust::folder();
    let local = folder
        .with("shared: { url: 'local:', grace: 1m }\ncache: { directory: cache }\n")
        .unwrap();
    let shared = local.shared.unwrap();
    assert_eq!((shared.engine(), shared.grace()), (None, secs(60)));
}

#[test]
fn prometheus_is_read_with_its_defaults_and_needs_a_restart() {
    let folder = trust::folder();
    let with = |text: &str| folder.with(text).unwrap();
    let running = with("prometheus: { url: 'HTTP://prometheus.lan:9090/a' }");
    let expected = promql::Options {
        url: "http://prometheus.lan:9090/a".parse().unwrap(),
        credential: None,
        extra_roots: Vec::new(),
        timeout: secs(10),
    };
    assert_eq!(running.prometheus, Some(expected.clone()));
    let other = with(
        "prometheus: { url: 'https://p', bearer_token_file: token, ca_file: ca.pem, timeout: 60s }",
    );
    let options = other.prometheus.clone().unwrap();
    let file = folder.0.path().join("token");
    assert!(other.files().contains(&file));
    assert_eq!(
        options.credential,
        Some(promql::Credential::BearerFile(file))
    );
    assert_eq!((options.extra_roots.len(), options.timeout), (2, secs(60)));
    let basic = with("prometheus: { url: 'http://p', basic_file: robot.basic }").prometheus;
    let file = folder.0.path().join("robot.basic");
    let basic = basic.unwrap().credential;
    assert_eq!(basic, Some(promql::Credential::BasicFile(file)));
    assert_eq!(
        running.differences(&other).first().unwrap(),
        "prometheus.url"
    );
    let mut adopted = running;
    adopted.adopt_live(other);
    assert_eq!(adopted.prometheus, Some(expected));
}

#[test]
fn numbers_at_the_limits_of_a_strategy_are_read() {
    for (percent, hundredths) in [
        ("0.01", 0.01),
        ("1", 1.0),
        ("33.33", 33.33),
        ("99.99", 99.99),
    ] {
        let read = strategy(&format!(
            "{{ steps: [{{ percent: {percent}, soak: 6m }}] }}"
        ));
        assert_eq!(read.steps[0].share, share(hundredths));
    }
    let quorum = |text: &str| {
        strategy(&format!(
            "{{ steps: [{{ percent: 1, soak: 6m }}], quorum: {text} }}"
        ))
    };
    for (text, percent) in [
        ("0%", 0.0),
        ("'7.5'", 7.5),
        ("100%", 100.0),
        ("0.1", 0.1),
        ("90", 90.0),
    ] {
        assert_eq!(quorum(text).quorum, share(percent), "{text}");
    }
    let sixteen: String = (1..=16)
        .map(|n| format!("{{ percent: {n}, soak: 6m }},"))
        .collect();
    assert_eq!(
        strategy(&format!("{{ steps: [{sixteen}] }}")).steps.len(),
        17
    );
}
