//! The composition: as docker compose loads it, and its services with the same arguments, files and names,
//! each in network and mount namespaces of its own.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command as AsyncCommand;

use super::{deploy, ran};
use crate::support::{program, search_path};

/// Services that run here. Grafana is under a licence with which it is in no package that
/// `tests/peers/install` may use; its files are read by the other test.
const SERVICES: [(&str, &str); 6] = [
    ("registry", "registry-3"),
    ("bundlegate-1", "bundlegate"),
    ("bundlegate-2", "bundlegate"),
    ("haproxy", "haproxy"),
    ("opa", "opa"),
    ("prometheus", "prometheus"),
];

/// The project as docker compose loads it from `folder`.
fn project(folder: &Path) -> Value {
    let file = folder.join("compose.yaml");
    let loaded = ran("deploy-check", &["compose", file.to_str().unwrap()]).ok();
    serde_json::from_str(&loaded).unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    let texts = value.as_array().into_iter().flatten();
    texts
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn compose_loads_the_file_whose_images_are_pinned_and_whose_mounts_exist() {
    let folder = deploy().join("compose");
    let project = project(&folder);
    let services = project["services"].as_object().unwrap();
    assert_eq!(services.len(), SERVICES.len() + 1, "{services:?}");
    for (name, service) in services {
        let image = service["image"].as_str().unwrap();
        let (_, tag) = image.rsplit_once(':').unwrap();
        assert!(tag.contains('.') && tag != "latest", "{name}: {image}");
        for mount in service["volumes"].as_array().unwrap() {
            let source = mount["source"].as_str().unwrap();
            match mount["type"].as_str() {
                Some("bind") => assert!(Path::new(source).exists(), "{name}: {source}"),
                Some("volume") => assert!(project["volumes"].get(source).is_some(), "{source}"),
                kind => panic!("{name}: {kind:?}"),
            }
        }
        // Nothing is published beyond this machine.
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}");
        }
    }
    for name in ["bundlegate-1", "bundlegate-2"] {
        let service = &services[name];
        assert_eq!(service["read_only"], true);
        assert_eq!(service["user"], "65532:65532");
        assert_eq!(texts(&service["cap_drop"]), ["ALL"]);
        assert_eq!(service["stop_grace_period"], "45s");
    }
    grafana(&folder, &services["grafana"]);
}

/// The provider reads the folder that is mounted, and the dashboard's data source is the one that is provisioned.
fn grafana(folder: &Path, service: &Value) {
    let read = |name: &str| -> Value {
        let file = folder.join("grafana/provisioning").join(name);
        serde_saphyr::from_str(&fs::read_to_string(file).unwrap()).unwrap()
    };
    let dashboards = read("dashboards/bundlegate.yaml");
    let path = &dashboards["providers"][0]["options"]["path"];
    let mounts = service["volumes"].as_array().unwrap();
    let mount = mounts
        .iter()
        .find(|mount| mount["target"] == *path)
        .unwrap();
    let dashboard = Path::new(mount["source"].as_str().unwrap()).join("bundlegate.json");
    let dashboard: Value = serde_json::from_slice(&fs::read(dashboard).unwrap()).unwrap();
    let source = &read("datasources/prometheus.yaml")["datasources"][0];
    let mut variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let of_type = |variable: &&Value| variable["type"] == "datasource";
    let variable = variables
        .find(of_type)
        .expect("the dashboard has no variable of a data source");
    assert_eq!(variable["query"], source["type"]);
    assert_eq!(source["url"], "http://prometheus:9090");
    assert_eq!(source["isDefault"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn opa_decides_through_the_balancer_and_prometheus_sees_both_replicas() {
    // The configurations and the commands at the head of the file, as they are.
    let copy = TempDir::new().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    ran(
        "cp",
        &[
            "-R",
            source.to_str().unwrap(),
            copy.path().to_str().unwrap(),
        ],
    )
    .ok();
    let folder = copy.path().join("config/deploy/compose");
    let commands = commands(&fs::read_to_string(folder.join("compose.yaml")).unwrap());
    let [keys, up, build, push, sign, decide] = commands.try_into().unwrap();
    assert!(up.starts_with("docker compose up"), "{up}");
    shell(&folder, &keys);
    let plan = copy.path().join("plan");
    let project = project(&folder);
    write_plan(&plan, &project, &folder);
    let health_check = texts(&project["services"]["bundlegate-1"]["healthcheck"]["test"]);
    assert_eq!(health_check[0], "CMD");
    let at_home = |command: &str| format!("cd {} && {command}", folder.display());
    let mut steps = vec![
        ("registry", ".", at_home(&build)),
        ("registry", "sha256:", at_home(&push)),
        ("registry", ".", at_home(&sign)),
        (
            "opa",
            r#"\{"result":(true|false)\}"#,
            format!("{decide} -sS"),
        ),
        (
            "bundlegate-1",
            "^authz .*serving",
            health_check[1..].join(" "),
        ),
    ];
    steps.extend(observations());
    let steps = steps
        .iter()
        .map(|(service, pattern, command)| format!("{service}\t{pattern}\t{command}\n"));
    fs::write(plan.join("steps"), steps.collect::<String>()).unwrap();
    let stack = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/deploy/stack");
    let mut unshare = AsyncCommand::new(program("unshare"));
    unshare
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "--mount",
            "--pid",
            "--fork",
        ])
        .args(["--kill-child", "--mount-proc"])
        .arg(stack)
        .arg(&plan)
        .env("PATH", search_path())
        .env("HOME", copy.path())
        .env("COSIGN_PASSWORD", "")
        .kill_on_drop(true);
    let ended = unshare.output().await.unwrap();
    let output = String::from_utf8_lossy(&ended.stdout);
    assert!(
        ended.status.success() && output.ends_with("== done\n"),
        "{output}{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    for line in output.lines().filter(|line| line.starts_with("== ")) {
        println!("compose | {line}");
    }
}

/// What haproxy and Prometheus tell of both replicas: the service to ask, the answer and the command.
fn observations() -> Vec<(&'static str, &'static str, String)> {
    let query = |text: &str| {
        format!("curl -sS -G --data-urlencode 'query={text}' http://127.0.0.1:9090/api/v1/query")
    };
    let (two, four) = (r#""value":\[[0-9.]+,"2"\]"#, r#""value":\[[0-9.]+,"4"\]"#);
    let served = r#"sum(bundlegate_bundle_state{bundle="authz",state="serving"})"#;
    let rules = "curl -sS http://127.0.0.1:9090/api/v1/rules".to_owned();
    vec![
        ("haproxy", "bundlegate-1.* 1$", up_servers()),
        ("haproxy", "bundlegate-2.* 1$", up_servers()),
        ("prometheus", two, query(r#"sum(up{job="bundlegate"})"#)),
        ("prometheus", four, query("sum(up)")),
        ("prometheus", two, query(served)),
        ("prometheus", "BundlegateDown", rules),
    ]
}

/// The state of each server in haproxy's own metrics.
fn up_servers() -> String {
    "curl -sS http://127.0.0.1:8404/metrics | grep 'haproxy_server_status.*state=\"UP\"'".to_owned()
}

/// The commands in the comment at the head of `compose.yaml`.
fn commands(text: &str) -> Vec<String> {
    let head = text.lines().take_while(|line| line.starts_with('#'));
    let commands = head.filter_map(|line| line.strip_prefix("#   "));
    commands.map(str::to_owned).collect()
}

fn shell(folder: &Path, line: &str) {
    let mut shell = Command::new("sh");
    shell
        .args(["-ec", line])
        .current_dir(folder)
        .env("PATH", search_path())
        .env("COSIGN_PASSWORD", "");
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

/// Each service with the arguments and mounts of the project. Its volumes are folders in the plan.
fn write_plan(plan: &Path, project: &Value, folder: &Path) {
    for (name, peer) in SERVICES {
        let service = &project["services"][name];
        let mut arguments = texts(&service["command"]);
        // This image has no entry point; the command begins with the program.
        if name == "haproxy" {
            assert_eq!(arguments.remove(0), "haproxy");
        }
        let own = plan.join("services").join(name);
        fs::create_dir_all(&own).unwrap();
        let executable = match peer {
            "bundlegate" => PathBuf::from(env!("CARGO_BIN_EXE_bundlegate")),
            peer => program(peer),
        };
        arguments.insert(0, executable.to_str().unwrap().to_owned());
        fs::write(own.join("command"), arguments.join("\n") + "\n").unwrap();
        let variables = service["environment"].as_object().into_iter().flatten();
        let variables =
            variables.map(|(name, value)| format!("{name}={}\n", value.as_str().unwrap()));
        fs::write(own.join("environment"), variables.collect::<String>()).unwrap();
        let mut binds = String::new();
        for mount in service["volumes"].as_array().unwrap() {
            let target = mount["target"].as_str().unwrap();
            let source = mount["source"].as_str().unwrap();
            let (source, mode) = match mount["type"].as_str().unwrap() {
                "volume" => {
                    let volume = plan.join("volumes").join(source);
                    fs::create_dir_all(&volume).unwrap();
                    (volume, "rw")
                }
                _ => (folder.join(source), "ro"),
            };
            let source = fs::canonicalize(source).unwrap();
            writeln!(binds, "{}\t{target}\t{mode}", source.display()).unwrap();
        }
        fs::write(own.join("binds"), binds).unwrap();
    }
}
