//! The configurations of `config/deploy`, with the files that their comments say to create.

use std::fs;

use super::{check_config, deploy, ran};

#[test]
fn every_configuration_passes_the_check() {
    for name in [
        "systemd/bundlegate.yaml",
        "compose/gateway/bundlegate.yaml",
        "kubernetes/bundlegate.yaml",
    ] {
        check_config(&fs::read_to_string(deploy().join(name)).unwrap(), &[]);
    }
}

/// `sysctl` reads `KEY = VALUE`; the keys exist here, whatever their values.
#[test]
fn the_sysctls_are_those_of_linux_and_at_least_what_the_program_recommends() {
    let text = fs::read_to_string(deploy().join("sysctl.d/90-bundlegate.conf")).unwrap();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    assert!(lines.len() >= 5, "{lines:?}");
    for line in &lines {
        let (key, value) = line.split_once(" = ").unwrap();
        assert!(value.parse::<u64>().is_ok(), "{line}");
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        assert!(fs::metadata(&path).is_ok(), "{path}");
    }
    let backlog = lines
        .iter()
        .find_map(|line| line.strip_prefix("net.core.somaxconn = "));
    assert!(backlog.unwrap().parse::<u32>().unwrap() >= 4096);
}

/// The image and the chart have the version of the program.
#[test]
fn versions_are_those_of_the_program() {
    let version = ran("bundlegate", &["version"]).ok();
    let own = env!("CARGO_PKG_VERSION");
    assert!(version.contains(own), "{version}");
    for (file, wanted) in [
        (
            "helm/bundlegate/Chart.yaml",
            format!("\nappVersion: {own}\n"),
        ),
        (
            "compose/compose.yaml",
            format!("\n  image: bundlegate:{own}\n"),
        ),
        ("kubernetes/deployment.yaml", format!("bundlegate:{own}")),
        (
            "../../Dockerfile",
            format!("org.opencontainers.image.version=\"{own}\""),
        ),
    ] {
        let text = fs::read_to_string(deploy().join(file)).unwrap();
        assert!(text.contains(&wanted), "{file} lacks {wanted:?}");
    }
}
