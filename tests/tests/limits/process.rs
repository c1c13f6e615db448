//! What whoever starts a coordinator gets wrong: configuration, addresses, directories, disks.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lockstep_proto::v1::{self, Outcome};
use lockstep_tests::harness::clock::wait_for;
use lockstep_tests::harness::coordinator::Coordinator;
use lockstep_tests::harness::roles::Roles;
use tempfile::TempDir;
use tonic::Code;

use super::lockstep::{Lockstep, PATIENCE, assert_refused, roles};
use super::raw::Raw;

/// `lockstep serve` with these arguments, to its end.
fn serve(arguments: &[&str]) -> Output {
    let mut command = roles().command("coordinator");
    command.arg("--").arg("serve").args(arguments).current_dir("/");
    output(command)
}

fn output(mut command: Command) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Held open until it has ended by itself: it goes with its parent.
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    output
}

/// It ended with this exit code, and said all of this on stderr, and nothing on stdout.
#[track_caller]
fn assert_ended(output: &Output, code: i32, says: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    for text in says {
        assert!(stderr.contains(text), "{text:?} is not in {stderr}");
    }
}

#[test]
fn a_wrong_key_in_the_file_is_named_with_its_line_and_the_nearest_right_one() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("lockstep.toml");
    fs::write(&file, "retention = \"1h\"\ndrain-timeuot = \"3s\"\n").unwrap();
    let config = format!("--config={}", file.display());
    let ended = serve(&["--listen=127.0.0.1:0", &config]);
    assert_ended(&ended, 2, &["drain-timeuot", "drain-timeout", "lockstep.toml", "2"]);
    assert!(!directory.path().join("lockstep-data").exists(), "nothing was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_another_coordinator_has_is_refused_and_the_other_goes_on() {
    let mut lockstep = Lockstep::start().await;
    let directory = lockstep.coordinator.data_directory();
    let flag = format!("--data-dir={}", directory.display());
    let ended = serve(&["--listen=127.0.0.1:0", &flag]);
    assert_ended(&ended, 1, &["in use by process", &directory.display().to_string()]);
    lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_refused_and_whoever_has_it_goes_on() {
    let mut lockstep = Lockstep::start().await;
    let directory = TempDir::new().unwrap();
    let address = lockstep.url().trim_start_matches("http://").to_owned();
    let (listen, data) =
        (format!("--listen={address}"), format!("--data-dir={}", directory.path().display()));
    assert_ended(&serve(&[&listen, &data]), 1, &["cannot listen on", &address, "--listen"]);
    lockstep.is_well().await;
    // It is the address alone that was wrong.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_ne!(free.to_string(), address);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_a_newer_version_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let mut coordinator = Coordinator::start(&roles(), directory.path(), &[], None).unwrap();
    coordinator.expect_it_serves().unwrap();
    coordinator.stop().unwrap();
    let version = coordinator.data_directory().join("lockstep.version");
    let before = fs::read_to_string(&version).unwrap();
    fs::write(&version, "99\n").unwrap();
    let flag = format!("--data-dir={}", coordinator.data_directory().display());
    assert_ended(&serve(&["--listen=127.0.0.1:0", &flag]), 1, &["format 99", "newer version"]);
    fs::write(&version, before).unwrap();
    coordinator.start_again(None).unwrap();
    coordinator.expect_it_serves().unwrap();
    Lockstep::beside(coordinator, directory).await.is_well().await;
}

#[test]
fn a_directory_that_cannot_be_written_to_is_refused() {
    let directory = TempDir::new().unwrap();
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    let mut command = roles().command("coordinator");
    command.args(["--", "serve", "--listen=127.0.0.1:0"]).arg(format!("--data-dir={}", closed.display()));
    command.current_dir("/");
    if rustix::process::geteuid().is_root() {
        // Permissions do not count for root: so it is somebody else, who must be able to read this program.
        let program = directory.path().join("prove");
        fs::copy(env!("CARGO_BIN_EXE_prove"), &program).unwrap();
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = Command::new(program);
        command.args(arguments).uid(65534).gid(65534).current_dir("/");
    }
    let ended = output(command);
    assert_ended(&ended, 1, &["cannot be written to", &closed.display().to_string()]);
    assert_eq!(fs::read_dir(&closed).unwrap().count(), 0);
}

/// What starts a program where `top` is the top of a small file system, which only that process sees and which goes with it. It
/// starts it again, after making room, when it has ended.
const ON_A_SMALL_DISK: &str = r#"
mount -t tmpfs -o "size=$1" tmpfs "$2" || exit
top=$2
shift 2
"$@" && exit
rm -f "$top/ballast" && exec "$@"
"#;

/// Who plays the coordinator on a small file system at `top`.
fn roles_on_a_small_disk(top: &Path, mebibytes: u32) -> Roles {
    fs::create_dir_all(top).unwrap();
    let (size, top) = (format!("{mebibytes}m"), top.display().to_string());
    // Root of a mount namespace of its own may mount, whoever this is.
    let words = ["unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh", &size, &top];
    roles().under(words.into_iter().map(str::to_owned))
}

/// The small file system of a running coordinator.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn of(coordinator: &mut Coordinator) -> Self {
        let top = coordinator.data_directory();
        let seen_by_it = format!("/proc/{}/root{}", coordinator.process().id(), top.display());
        Self(PathBuf::from(seen_by_it))
    }

    /// Takes space until only so much is left.
    fn fill_up_to(&self, left: u64) {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let bytes = usize::try_from(free.saturating_sub(left)).unwrap();
        fs::write(self.0.join("ballast"), vec![0; bytes]).unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

#[test]
fn a_disk_that_is_nearly_full_is_not_begun_with() {
    let directory = TempDir::new().unwrap();
    let data = directory.path().join("data");
    let mut command = roles_on_a_small_disk(&data, 8).command("coordinator");
    command.args(["--", "serve", "--listen=127.0.0.1:0"]).arg(format!("--data-dir={}", data.display()));
    assert_ended(&output(command), 1, &["bytes free", "free some space"]);
}

/// A coordinator on a disk of 160 MiB, and a transaction at it with two branches that are open.
struct Running {
    lockstep: Lockstep,
    disk: SmallDisk,
    gtrid: String,
    raws: [Raw; 2],
}

impl Running {
    async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let roles = roles_on_a_small_disk(&directory.path().join("coordinator"), 160);
        let mut coordinator = Coordinator::start(&roles, directory.path(), &[], None).unwrap();
        coordinator.expect_it_serves().unwrap();
        let disk = SmallDisk::of(&mut coordinator);
        let lockstep = Lockstep::beside(coordinator, directory).await;
        let gtrid = lockstep.begin().await;
        let mut raws =
            [Raw::attach(&lockstep.url(), "raw-db").await, Raw::attach(&lockstep.url(), "other-db").await];
        for raw in &mut raws {
            raw.enlist(&raw.xid(&gtrid, 1)).await.unwrap();
        }
        Self { lockstep, disk, gtrid, raws }
    }

    /// Commits the transaction, whose branches all vote commit, and apply what they are told, which is this.
    async fn commit(&mut self, decision: v1::Decision) -> v1::CommitResponse {
        let Self { lockstep, gtrid, raws, .. } = self;
        let applied = match decision {
            v1::Decision::Commit => v1::Applied::Committed,
            v1::Decision::Rollback | v1::Decision::Unspecified => v1::Applied::RolledBack,
        };
        let participating = async {
            for raw in raws.iter_mut() {
                let xid = raw.xid(gtrid, 1);
                raw.expect_prepare(&xid).await;
                raw.vote(&xid, v1::VoteKind::Commit).await;
            }
            for raw in raws.iter_mut() {
                let xid = raw.xid(gtrid, 1);
                assert_eq!(raw.expect_decision(&xid).await, decision);
                raw.acknowledge(&xid, applied).await;
            }
        };
        let (answer, ()) = tokio::join!(lockstep.commit(gtrid), participating);
        answer.unwrap()
    }

    /// Begins until that is refused, or until it is not.
    async fn begin_until(&self, refused: bool) -> Result<String, tonic::Status> {
        let trying = async {
            loop {
                let begun = self.lockstep.begin_with(v1::BeginRequest::default()).await;
                if begun.is_err() == refused {
                    return begun;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, trying).await.expect("the coordinator looks at its disk")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_disk_that_fills_up_nothing_new_begins_and_what_runs_can_end() {
    let mut running = Running::start().await;
    running.disk.fill_up_to(16 << 20);
    assert_refused(running.begin_until(true).await, Code::ResourceExhausted, "DISK_FULL", "MiB");
    let answer = running.commit(v1::Decision::Commit).await;
    assert_eq!(answer.outcome(), Outcome::Committed);
    running.disk.make_room();
    running.begin_until(false).await.unwrap();
    running.lockstep.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_disk_without_a_byte_left_the_process_ends_rather_than_guess_and_recovers_when_there_is_room() {
    let mut running = Running::start().await;
    running.disk.fill_up_to(0);
    let Running { lockstep, gtrid, raws, .. } = &mut running;
    let voting = async {
        for raw in raws.iter_mut() {
            let xid = raw.xid(gtrid, 1);
            raw.expect_prepare(&xid).await;
            raw.vote(&xid, v1::VoteKind::Commit).await;
        }
    };
    let (answer, ()) = tokio::join!(lockstep.commit(gtrid), voting);
    // Whether the force has written anything is not known to a process that goes on (P6); so nobody is told anything.
    answer.expect_err("nothing definite can be said");
    // The words that it was started with make room and start it again.
    let process = lockstep.coordinator.process();
    tokio::task::block_in_place(|| {
        wait_for("the second banner", PATIENCE, || {
            let banners = process.output().matches("lockstep recovered:").count();
            Ok((banners == 2).then_some(()))
        })
    })
    .unwrap();
    let words = process.output();
    assert!(words.contains("the decision log failed") && words.contains("disk is full"), "{words}");
    assert_eq!(running.lockstep.inquire(&running.gtrid).await.unwrap().outcome(), Outcome::RolledBack);
    running.lockstep.is_well().await;
}
