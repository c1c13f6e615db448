//! docker-compose.yml and what belongs to it, looked at without a Docker engine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// Ends by itself when it has done its work.
const ONE_SHOT: &str = "secrets";
/// Starts as root, and runs its server as a user of its own.
const DROPS_BY_ITSELF: &str = "payments-db";
/// What an image may be, and for which of our own we have a stage in the Dockerfile.
const IMAGES: [&str; 7] = [
    "postgres:17",
    "mariadb:11",
    "lockstep-coordinator",
    "lockstep-shop",
    "prom/prometheus:",
    "grafana/grafana:",
    "jaegertracing/jaeger:",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every service, by name, with what it takes over merged into it.
fn services() -> Vec<(String, Value)> {
    let compose = yaml("docker-compose.yml");
    let services = compose["services"].as_object().unwrap().clone();
    assert!(services.len() >= 12, "the file was read: {services:?}");
    services.into_iter().collect()
}

fn strings(value: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    value.as_array().map_or_else(Vec::new, |values| values.iter().map(text).collect())
}

#[test]
fn every_service_is_watched_bounded_and_not_root() {
    for (name, service) in services() {
        assert!(service["mem_limit"].is_string(), "{name} has no limit of memory");
        if name == ONE_SHOT {
            assert_eq!(service["restart"], "no", "{name}");
        } else {
            assert!(service["healthcheck"]["test"].is_array(), "{name} has no health check");
        }
        let user = service["user"].as_str();
        assert!(
            name == DROPS_BY_ITSELF || user.is_some_and(|user| !user.starts_with("root") && user != "0"),
            "{name}"
        );
        assert!(service["privileged"].is_null(), "{name}");
        let image = service["image"].as_str().unwrap_or_else(|| panic!("{name} has no image"));
        assert!(IMAGES.iter().any(|known| image.starts_with(known)), "{name}: {image}");
        if image.starts_with("lockstep-") {
            assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]), "{name}");
            let stage = format!(" AS {}", service["build"]["target"].as_str().unwrap());
            let dockerfile = read(service["build"]["dockerfile"].as_str().unwrap());
            assert!(
                dockerfile.lines().any(|line| line.starts_with("FROM ") && line.ends_with(&stage)),
                "{stage}"
            );
        }
    }
}

#[test]
fn what_is_needed_is_waited_for_until_it_is_well() {
    let services = services();
    for (name, service) in &services {
        let Some(needed) = service["depends_on"].as_object() else { continue };
        for (needed, how) in needed {
            let expected =
                if needed == ONE_SHOT { "service_completed_successfully" } else { "service_healthy" };
            assert_eq!(how["condition"], expected, "{name} needs {needed}");
            assert!(services.iter().any(|(name, _)| name == needed), "{name} needs {needed}");
        }
    }
}

#[test]
fn ports_are_on_loopback_only() {
    let mut published = 0;
    for (name, service) in services() {
        assert!(service["network_mode"].is_null(), "{name}");
        for port in strings(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
            published += 1;
        }
    }
    assert_eq!(published, 4, "coordinator, Prometheus, Grafana and Jaeger");
}

#[test]
fn there_is_no_secret_in_the_file() {
    for (name, service) in services() {
        for (key, value) in service["environment"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_else(|| panic!("{name}: {key} is no text"));
            let names_a_secret = ["PASSWORD", "SECRET", "TOKEN", "KEY"].iter().any(|word| key.contains(word));
            assert!(!names_a_secret || key.ends_with("_FILE"), "{name}: {key}");
            let user = value.split_once("://").map_or("", |(_, rest)| rest.split('@').next().unwrap());
            assert!(!value.contains('@') || !user.contains(':'), "{name}: {key} has a password in it");
        }
    }
}

#[test]
fn what_is_mounted_is_there() {
    let compose = yaml("docker-compose.yml");
    let volumes = compose["volumes"].as_object().unwrap();
    let mut used = BTreeSet::new();
    for (name, service) in services() {
        for volume in strings(&service["volumes"]) {
            let source = volume.split(':').next().unwrap();
            if let Some(path) = source.strip_prefix("./") {
                assert!(root().join(path).is_file() && volume.ends_with(":ro"), "{name}: {volume}");
            } else {
                assert!(volumes.contains_key(source), "{name}: {source} is no named volume");
                used.insert(source.to_owned());
            }
        }
    }
    assert_eq!(used, volumes.keys().cloned().collect(), "a volume that nobody uses");
}

#[test]
fn a_password_is_seen_by_its_database_and_its_services_only() {
    let seen = |secret: &str| -> BTreeSet<String> {
        let sees =
            |service: &Value| strings(&service["volumes"]).iter().any(|volume| volume.starts_with(secret));
        services().into_iter().filter(|(_, service)| sees(service)).map(|(name, _)| name).collect()
    };
    let expect = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let coordinators = ["coordinator", "coordinator-b", "coordinator-c"];
    assert_eq!(seen("log-secret:"), expect(&[&coordinators[..], &["log-db", ONE_SHOT]].concat()));
    assert_eq!(seen("orders-secret:"), expect(&["orders", "orders-db", "checker", ONE_SHOT]));
    assert_eq!(seen("payments-secret:"), expect(&["payments", "payments-db", "checker", ONE_SHOT]));
}

#[test]
fn with_three_coordinators_everyone_knows_all_of_them() {
    let env = read("demo/compose/ha.env");
    let all = env.lines().find_map(|line| line.strip_prefix("SHOP_COORDINATORS=")).unwrap();
    let named: BTreeSet<_> = all
        .split(',')
        .map(|url| url.strip_prefix("http://").unwrap().strip_suffix(":7420").unwrap().to_owned())
        .collect();
    let are: BTreeSet<_> =
        services().into_iter().map(|(name, _)| name).filter(|name| name.starts_with("coordinator")).collect();
    assert_eq!(named, are);
    for name in &are {
        let (_, service) = services().into_iter().find(|(service, _)| service == name).unwrap();
        // Listening on every address, it does not know how it is reached.
        assert_eq!(service["environment"]["LOCKSTEP_ADVERTISE"], format!("http://{name}:7420"));
    }
    for (name, service) in services().iter().filter(|(_, service)| service["image"] == "lockstep-shop") {
        let knows = &service["environment"]["SHOP_COORDINATORS"];
        assert!(
            name == ONE_SHOT || knows.as_str().unwrap().starts_with("${SHOP_COORDINATORS:-"),
            "{name}: {knows}"
        );
    }
    let scraped = yaml("demo/compose/prometheus.yml");
    let scraped = strings(&scraped["scrape_configs"][0]["dns_sd_configs"][0]["names"]);
    assert_eq!(are, scraped.into_iter().collect());
}

/// A file that seems to have moved is refused: it might be a copy.
#[test]
fn a_sqlite_file_stays_on_its_machine_when_its_container_is_made_again() {
    for (name, service) in services() {
        let writes_a_file =
            service["environment"]["SHOP_DATABASE"].as_str().is_some_and(|url| url.starts_with("sqlite:"));
        assert!(!writes_a_file || service["hostname"] == name, "{name}");
    }
}

#[test]
fn the_dockerfile_builds_this_workspace() {
    let dockerfile = read("deploy/Dockerfile");
    let workspace = read("Cargo.toml");
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let members: Vec<String> = serde_json::from_str(members).unwrap();
    assert!(members.contains(&"demo".to_owned()), "{members:?}");
    for member in members {
        let copies = format!("COPY {member}/Cargo.toml {member}/");
        assert!(dockerfile.lines().any(|line| line == copies), "deploy/Dockerfile lacks: {copies}");
    }
    let ignored = read(".dockerignore");
    let copied = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY "));
    // What stands between the options and the destination.
    let sources = copied.filter(|copied| !copied.starts_with("--from")).flat_map(|copied| {
        let mut words: Vec<&str> = copied.split(' ').collect();
        words.pop();
        words
    });
    for source in sources {
        assert!(is_sent(&ignored, source), ".dockerignore keeps from the build: {source}");
    }
    for package in ["lockstep-coordinator", "demo"] {
        assert!(dockerfile.contains(&format!("-p {package}")), "{package}");
    }
    for image in ["rust:1.95-bookworm", "debian:bookworm-slim"] {
        assert!(dockerfile.contains(&format!("FROM {image} AS ")), "{image}");
    }
    assert!(!dockerfile.contains("--mount="), "it builds without BuildKit too");
    let toolchain = read("rust-toolchain.toml");
    assert!(
        toolchain.contains("channel = \"1.95.0\""),
        "the builder's version is that of rust-toolchain.toml"
    );
}

/// Whether a file or a directory is among what is sent to be built from. The last line that is about it counts.
fn is_sent(ignored: &str, path: &str) -> bool {
    let about = |name: &str| name == "*" || path == name || path.starts_with(&format!("{name}/"));
    let mut sent = true;
    for line in ignored.lines() {
        match line.strip_prefix('!') {
            Some(name) if about(name) => sent = true,
            None if about(line) => sent = false,
            _other => {}
        }
    }
    sent
}

#[test]
fn the_acts_are_listed_without_docker() {
    let list =
        Command::new(root().join("demo/acts")).arg("list").env("PATH", "/usr/bin:/bin").output().unwrap();
    assert!(list.status.success(), "{list:?}");
    let list = String::from_utf8(list.stdout).unwrap();
    let listed: Vec<_> = list.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    let files = std::fs::read_dir(root().join("demo/acts.d")).unwrap();
    let files: BTreeSet<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let acts: BTreeSet<_> = listed.iter().map(ToString::to_string).collect();
    assert_eq!(acts, files.into_iter().filter(|file| file != "stage.sh").collect(), "{list}");
    assert!(list.lines().all(|line| line.split_whitespace().count() > 5), "each says what it shows: {list}");
    let walk = read("docs/demo.md");
    for act in listed {
        assert!(walk.contains(&format!("`{act}`")), "docs/demo.md does not tell of {act}");
    }
    let unknown = Command::new(root().join("demo/acts")).args(["run", "nothing"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
}

/// A newcomer finds what Lockstep needs in a service at a glance, and it is little.
#[test]
fn a_service_needs_at_most_twenty_lines_of_lockstep_and_they_are_marked() {
    for service in ["orders", "payments", "inventory", "storefront"] {
        let source = read(&format!("demo/src/shop/{service}.rs"));
        let (marked, others): (Vec<_>, Vec<_>) = source
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .partition(|line| line.ends_with("// lockstep"));
        assert!((5..=20).contains(&marked.len()), "{service}: {} lines", marked.len());
        if service == "storefront" {
            continue;
        }
        // No line is left out of the count.
        let words =
            ["lockstep", "articipant", "branch.", ".join(", "Context", "attach", "detach", "Database::"];
        for line in others {
            let forgotten = words.iter().find(|word| line.contains(**word));
            // The type that the marked lines hand out, and what an unmarked helper is called with.
            let harmless = line.contains("use super::") || line.contains("&mut branch");
            assert!(forgotten.is_none() || harmless, "{service}: not marked: {line}");
        }
    }
}
