//! The module dependency rules.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Every module, and the modules that its code may name. Every module may use `metrics`,
/// `telemetry` and `traces`.
const MODULES: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("lib", &[]),
    (
        "cli",
        &[
            "bundle",
            "catalog",
            "config",
            "gateway",
            "images",
            "oci",
            "opa_check",
            "registry",
            "rollout",
            "server",
            "service_manager",
            "shared",
            "sign",
            "store",
            "transfer",
            "verify",
            "watch",
        ],
    ),
    (
        "gateway",
        &[
            "access",
            "bundle",
            "catalog",
            "config",
            "fleet",
            "images",
            "oci",
            "opa_check",
            "promql",
            "publish",
            "registry",
            "rollout",
            "server",
            "service_manager",
            "shared",
            "sign",
            "store",
            "transfer",
            "verify",
            "watch",
            "webhooks",
        ],
    ),
    // It builds the options that the modules below define; none of them knows it.
    (
        "config",
        &[
            "access",
            "bundle",
            "catalog",
            "fleet",
            "oci",
            "opa_check",
            "promql",
            "publish",
            "registry",
            "rollout",
            "server",
            "shared",
            "store",
            "verify",
            "watch",
            "webhooks",
        ],
    ),
    ("oci", &[]),
    ("bundle", &["oci"]),
    // Another program's verdict about bytes: it knows nothing of where they come from.
    ("opa_check", &["bundle", "oci"]),
    ("images", &["bundle", "oci"]),
    ("registry", &["oci"]),
    ("verify", &["oci", "registry"]),
    ("sign", &["oci", "registry"]),
    // It fetches missing blobs from the `Source` that it is handed: that is where a
    // thousand wishes become one transfer. It resolves nothing and knows no host.
    ("store", &["oci", "registry"]),
    // What is seen: `verify` for `Verified`, which no other module can make.
    ("publish", &["bundle", "oci", "verify"]),
    (
        "watch",
        &[
            "bundle",
            "oci",
            "opa_check",
            "publish",
            "registry",
            "store",
            "verify",
        ],
    ),
    // `oci` for the reference by which a push finds its bundles.
    ("catalog", &["oci", "publish", "rollout"]),
    // `publish` for `Handle`, `State` and `Snapshot`, which the catalog hands out; `oci` for
    // `Blob`. Never a module that fetches, verifies, stores or watches.
    (
        "server",
        &[
            "access", "catalog", "fleet", "oci", "publish", "rollout", "webhooks",
        ],
    ),
    // What a credential proves; the server decides when it is checked.
    // `verify` for `Pattern`: names are matched as those of signers are.
    ("access", &["verify"]),
    // A table and pure functions; the server and the gateway do the I/O.
    // `publish` for `TagHash`.
    ("fleet", &["publish"]),
    // Pure functions over what the fleet view knows; `publish` for `Handle`, which an entry of the
    // catalog has of the candidate.
    ("rollout", &["fleet", "oci", "publish"]),
    // `oci` to read the file of a credential; `rollout` for `Sample`, so that `rollout` does no I/O.
    ("promql", &["oci", "rollout"]),
    // Parsers of what registries send; the server asks for the checks.
    ("webhooks", &["oci"]),
    ("transfer", &["oci", "registry"]),
    // `oci` to read the file of the password.
    ("shared", &["oci"]),
    ("service_manager", &[]),
    ("metrics", &[]),
    ("telemetry", &[]),
    ("traces", &[]),
];
const OPEN: &[&str] = &["metrics", "telemetry", "traces"];

#[test]
fn no_module_names_one_that_it_may_not() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    let mut violations = Vec::new();
    for file in rust_files(&root) {
        let inside = file.strip_prefix(&root).unwrap();
        let module = inside
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        let row = MODULES.iter().find(|(name, _)| *name == module);
        let (_, allowed) =
            row.unwrap_or_else(|| panic!("src/{module} is not in the table; give it a row"));
        for used in named_modules(&fs::read_to_string(&file).unwrap()) {
            checked += 1;
            if used != module && !allowed.contains(&used.as_str()) && !OPEN.contains(&used.as_str())
            {
                violations.push(format!(
                    "src/{}: `{module}` may not use `{used}`",
                    inside.display()
                ));
            }
        }
    }
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
    assert!(
        checked > 30,
        "only {checked} uses were found: the search is broken"
    );
}

/// `jiff::Timestamp::now` panics where the clock stands beyond the year 9999; `telemetry::now`
/// does not.
#[test]
fn the_clock_is_asked_where_no_time_panics() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let asks = |file: &PathBuf| {
        let code = fs::read_to_string(file).unwrap();
        let code = code
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default());
        code.into_iter().any(|line| {
            ["Timestamp::now(", "Zoned::now("]
                .iter()
                .any(|now| line.contains(now))
        })
    };
    let asking: Vec<_> = rust_files(&root).into_iter().filter(asks).collect();
    // A test beside the code has the clock of the machine that it runs on.
    let asking: Vec<_> = asking
        .iter()
        .filter(|file| !file.ends_with("tests.rs"))
        .collect();
    assert!(asking.is_empty(), "{asking:?}: use telemetry::now");
}

#[test]
fn paths_are_found_wherever_they_hide() {
    let code = "
        //! [`crate::comment`]
        use crate::{
            oci::{Blob, Digest}, // crate::behind
            store, watch::{State, next as step},
        };
        pub(in crate::config) fn f(x: crate::registry::Source) { bundlegate::cli::main() }
        use crate::verify as judge;
    ";
    let modules: Vec<_> = named_modules(code).into_iter().collect();
    assert_eq!(
        modules,
        [
            "cli", "config", "oci", "registry", "store", "verify", "watch"
        ]
    );
}

/// The first names after `crate::` (`bundlegate::` in the binary), in `use` groups too.
fn named_modules(code: &str) -> BTreeSet<String> {
    let lines = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    let code = lines.collect::<Vec<_>>().join("\n");
    let mut modules = BTreeSet::new();
    for start in ["crate::", "bundlegate::"] {
        for (at, _) in code.match_indices(start) {
            if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
                continue;
            }
            let rest = &code[at + start.len()..];
            match rest.strip_prefix('{') {
                Some(group) => modules.extend(group_heads(group)),
                None => modules.extend([head(rest)]),
            }
        }
    }
    modules
}

/// The names that the entries of a `use` group begin with.
fn group_heads(group: &str) -> Vec<String> {
    let mut depth = 1;
    let mut heads = Vec::new();
    let mut expected = true;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => expected = true,
            _ if expected && !character.is_whitespace() => {
                heads.push(head(&group[at..]));
                expected = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn head(path: &str) -> String {
    path.chars()
        .take_while(|character| character.is_alphanumeric() || *character == '_')
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
