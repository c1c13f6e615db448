//! What works on the log itself, beside a coordinator or without one: `backup`, `log inspect`, `restore`; and what needs neither:
//! `completions`, `man`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use super::*;

/// Each file of a directory, byte for byte.
fn bytes(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

/// Names of fields, as deep as they lie; labels have the names that an application gives them.
fn fields(value: &Value, found: &mut Vec<String>) {
    if let Some(object) = value.as_object() {
        for (name, value) in object {
            found.push(name.clone());
            fields(value, found);
        }
    }
    for value in value.as_array().into_iter().flatten() {
        fields(value, found);
    }
}

fn is_documented(value: &Value) {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md")).unwrap();
    let mut found = Vec::new();
    fields(value, &mut found);
    assert!(!found.is_empty());
    for field in found {
        assert!(page.contains(&format!("`{field}`")), "{field} is not in docs/cli.md");
    }
}

async fn change(data: &Path, sql: &'static str) {
    let log = SqliteConnectOptions::new().filename(data.join("decisions.db"));
    let mut log = log.connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut log).await.unwrap();
    log.close().await.unwrap();
}

impl Coordinator {
    fn data(&self) -> PathBuf {
        self.dir.path().join("lockstep-data")
    }

    /// SIGTERM, and its end.
    async fn stop(&mut self) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("it runs"), Signal::TERM).unwrap();
        soon(self.child.wait()).await.unwrap();
    }

    /// Inspects the log, and sees that nothing of it was changed.
    async fn inspect(&self, args: &[&str]) -> Ran {
        let before = bytes(&self.data());
        let ran = self.ask(&[&["log", "inspect"], args].concat()).await;
        assert!(bytes(&self.data()) == before, "{args:?} has changed the log");
        ran
    }
}

#[tokio::test]
async fn a_log_is_inspected_without_changing_a_byte_after_a_crash_and_after_a_clean_end() {
    let mut coordinator = Coordinator::start().await;
    let (gtrid, _orders, _ledger) = undelivered(&coordinator).await;
    coordinator.refused(&["log", "inspect"], "LS0102", "in use").await;
    for crashed in [true, false] {
        if crashed {
            coordinator.child.kill().await.unwrap();
            let wal = coordinator.data().join("decisions.db-wal");
            assert!(fs::metadata(wal).unwrap().len() > 0, "a crash leaves it");
        } else {
            coordinator.restart().await;
            coordinator.stop().await;
        }
        let ran = coordinator.inspect(&["--json"]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        let seen: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(seen["transactions"][0]["gtrid"], gtrid, "{seen}");
        assert_eq!(seen["transactions"][0]["situation"], "undelivered", "{seen}");
        assert_eq!((&seen["undelivered"], &seen["newer"]), (&Value::from(1), &Value::from(false)), "{seen}");
        let names: Vec<_> =
            seen["participants"].as_array().unwrap().iter().map(|one| &one["resource_manager"]).collect();
        assert_eq!(names, ["ledger", "orders"]);
        is_documented(&seen);

        let ran = coordinator.inspect(&[&gtrid[..20], "--json"]).await;
        let one: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(one["transaction"]["gtrid"], gtrid, "{ran:?}");
        for args in [&[][..], &[&gtrid[..20]]] {
            let ran = coordinator.inspect(args).await;
            assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
            assert!(ran.stdout.lines().all(|line| line.chars().count() <= 80), "{ran:?}");
        }
        let ran = coordinator.inspect(&["ffff"]).await;
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(ran.stderr.contains("error[LS0305]"), "{ran:?}");
    }
}

#[tokio::test]
async fn a_log_that_is_newer_or_damaged_is_shown_as_far_as_it_can_be() {
    let mut coordinator = Coordinator::start().await;
    let (gtrid, _orders, _ledger) = undelivered(&coordinator).await;
    coordinator.stop().await;
    let data = coordinator.data();
    change(
        &data,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                   VALUES (99991231000000, 'of a newer version', 1, x'00', 0)",
    )
    .await;
    let ran = coordinator.ask(&["serve", "--listen=127.0.0.1:0"]).await;
    assert!(ran.stderr.contains("error[LS0103]"), "{ran:?}");
    let ran = coordinator.inspect(&[]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("error[LS0103]") && ran.stdout.contains(&gtrid[..18]), "{ran:?}");

    change(
        &data,
        "DELETE FROM _sqlx_migrations WHERE version = 99991231000000; \
                   UPDATE transactions SET decision = zeroblob(40)",
    )
    .await;
    let ran = coordinator.inspect(&["--json"]).await;
    let seen: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(seen["problems"][0].as_str().unwrap().contains(&gtrid), "{seen}");
    assert_eq!(seen["recorded"], 1, "{seen}");
}

#[tokio::test]
async fn a_backup_says_itself_that_it_is_old_and_is_restored_on_record() {
    let mut coordinator = Coordinator::start().await;
    let (gtrid, _orders, _ledger) = undelivered(&coordinator).await;
    let made = coordinator.json(&["backup", "aside"]).await;
    assert_eq!((&made["online"], &made["transactions"]), (&Value::from(true), &Value::from(1)), "{made}");
    is_documented(&made);
    let again = coordinator.ask(&["backup", "aside"]).await;
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.stderr.contains("error[LS0604]") && again.stderr.contains("not empty"), "{again:?}");

    // The directory is lost, and the backup is put in its place.
    coordinator.child.kill().await.unwrap();
    fs::remove_dir_all(coordinator.data()).unwrap();
    fs::rename(coordinator.dir.path().join("aside"), coordinator.data()).unwrap();
    let seen = coordinator.json(&["log", "inspect"]).await;
    assert_eq!((&seen["log_behind"], &seen["undelivered"]), (&Value::from(true), &Value::from(1)), "{seen}");
    let cluster = seen["cluster"].as_str().unwrap();
    let dry = coordinator.json(&["restore", "--dry-run"]).await;
    assert_eq!(dry["was_behind"], true, "{dry}");
    assert_eq!(coordinator.json(&["log", "inspect"]).await["actions"], 0, "a dry run leaves no record");
    coordinator.json(&["restore", "--confirm", cluster, "--reason", "disk lost"]).await;
    let seen = coordinator.json(&["log", "inspect"]).await;
    assert_eq!(seen["log_behind"], false, "{seen}");
    let action = &seen["audit"][0];
    let told = ["action", "who", "reason", "subject"].map(|field| action[field].as_str().unwrap());
    assert_eq!(told, ["restore", "kim", "disk lost", cluster]);
    assert_eq!(seen["transactions"][0]["gtrid"], gtrid, "{seen}");

    // It may be made of a stopped one too.
    let made = coordinator.json(&["backup", "another"]).await;
    assert_eq!((&made["online"], &made["transactions"]), (&Value::from(false), &Value::from(1)), "{made}");
}

#[tokio::test]
async fn a_backup_that_was_broken_off_is_no_log() {
    let dir = TempDir::new().unwrap();
    let part = dir.path().join("lockstep-data");
    fs::create_dir(&part).unwrap();
    fs::write(part.join("decisions.db.part"), "half of it").unwrap();
    for args in [&["log", "inspect"][..], &["restore", "--dry-run"], &["backup", "elsewhere"]] {
        let ran = soon(run(lockstep(dir.path(), args))).await;
        assert_eq!(ran.code, 4, "{ran:?}");
        assert!(ran.stderr.contains("error[LS0603]"), "{ran:?}");
    }
}

#[tokio::test]
async fn shells_and_man_know_every_command() {
    let dir = TempDir::new().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let ran = soon(run(lockstep(dir.path(), &["completions", shell]))).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{shell}");
        for word in ["abandon", "inspect", "orphans", "dry-run"] {
            assert!(ran.stdout.contains(word), "{shell} does not know {word}");
        }
        if shell == "bash" {
            let file = dir.path().join("completions");
            fs::write(&file, &ran.stdout).unwrap();
            let mut bash = tokio::process::Command::new("bash");
            bash.args(["--norc", "-c", "source \"$1\" && complete -p lockstep", "bash"]).arg(&file);
            let known = soon(run(bash)).await;
            assert_eq!(known.code, 0, "{known:?}");
        }
    }
    let ran = soon(run(lockstep(dir.path(), &["man"]))).await;
    assert!(ran.stdout.contains(".TH") && ran.stdout.contains("participants"), "{ran:?}");
    let ran = soon(run(lockstep(dir.path(), &["man", "tx", "show"]))).await;
    assert!(ran.stdout.contains("lockstep-tx-show") && ran.stdout.contains("offline"), "{ran:?}");
    let ran = soon(run(lockstep(dir.path(), &["man", "tx", "mend"]))).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("error[LS0201]") && ran.stderr.contains("tx mend"), "{ran:?}");
}

#[tokio::test]
async fn a_watch_whose_reader_has_gone_ends() {
    let coordinator = Coordinator::start().await;
    coordinator.begin().await;
    let mut watch = lockstep(coordinator.dir.path(), &["tx", "ls", "--watch", "50ms"]);
    watch.env("LOCKSTEP_SERVER", &coordinator.url).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut watch = watch.spawn().unwrap();
    drop(watch.stdout.take());
    let ran = Ran::from(soon(watch.wait_with_output()).await.unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
}
