//! The three processes: this program started again, in another role each.
//!
//! They have the same address and the same files in all their lives. Their addresses are free ports, which this
//! process keeps reserved for them between two lives. None of them outlives this process, however that ends: see
//! [`crate::role`].

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpSocket;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use crate::books;
use crate::role::Role;
use crate::scenario::Failure;

/// How long a process may take to be there, or to stop.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// All three, wherever they are in their lives.
pub(crate) struct Processes {
    dir: PathBuf,
    naive: bool,
    http: reqwest::Client,
    coordinator: AdminServiceClient<Channel>,
    seats: [Seat; 3],
}

/// What stays of a process when it is killed.
struct Seat {
    role: Role,
    address: SocketAddr,
    /// Bound and never listening: the role can listen there, and nobody else is given the port while it does not.
    _reserved: TcpSocket,
    /// `None` between two lives.
    running: RefCell<Option<Running>>,
}

struct Running {
    child: Child,
    /// Open for as long as the child may live: the role ends with its stdin, see [`crate::role`].
    _lifeline: ChildStdin,
}

impl Processes {
    /// All three, not started yet. Their files will be in `dir`.
    pub(crate) fn new(dir: &Path, naive: bool) -> Result<Self, Failure> {
        let [coordinator, bank_a, bank_b] = Role::ALL.map(Seat::reserve);
        let seats = [coordinator?, bank_a?, bank_b?];
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let address = format!("http://{}", seats[Role::Coordinator.index()].address);
        let channel = Endpoint::from_shared(address).expect("this is a URL").connect_lazy();
        Ok(Self { dir: dir.to_owned(), naive, http, coordinator: AdminServiceClient::new(channel), seats })
    }

    fn seat(&self, role: Role) -> &Seat {
        &self.seats[role.index()]
    }

    /// Where the role listens.
    pub(crate) fn url(&self, role: Role) -> String {
        format!("http://{}", self.seat(role).address)
    }

    /// Starts a role that is not running.
    pub(crate) fn start(&self, role: Role) -> Result<(), Failure> {
        let seat = self.seat(role);
        let failed = |error| Failure::Start { role, error };
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log_file(&self.dir, role))
            .map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        match role {
            Role::Coordinator => command.args(["coordinator", &seat.address.to_string(), "decision-log"]),
            Role::BankA | Role::BankB => {
                let coordinator = self.url(Role::Coordinator);
                command.args(["bank", role.name(), &seat.address.to_string(), &coordinator]);
                command.args(self.naive.then_some("--naive"))
            }
        };
        // What is set for a coordinator of the user's own is not meant for this one.
        let variables = std::env::vars_os().map(|(name, _)| name);
        for name in variables.filter(|name| name.as_encoded_bytes().starts_with(b"LOCKSTEP_")) {
            command.env_remove(name);
        }
        let mut child = command
            .current_dir(&self.dir)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            // Ctrl-C is for this process, which takes the others down in order.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let lifeline = child.stdin.take().expect("it is piped");
        *seat.running.borrow_mut() = Some(Running { child, _lifeline: lifeline });
        Ok(())
    }

    /// Kills a role with SIGKILL, reaps it, and makes sure that this is what it died of.
    pub(crate) async fn kill(&self, role: Role) -> Result<(), Failure> {
        let running = self.seat(role).running.borrow_mut().take();
        let mut running = running.expect("only what was started is killed, and by one at a time");
        let failed = |error| Failure::Kill { role, error };
        running.child.start_kill().map_err(failed)?;
        let status = running.child.wait().await.map_err(failed)?;
        match status.signal() {
            Some(signal) if signal == Signal::KILL.as_raw() => Ok(()),
            Some(_) | None => Err(Failure::Ended { role, status }),
        }
    }

    /// Waits until everyone answers and the banks are attached.
    pub(crate) async fn until_all_up(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check_nobody_ended()?;
            let Some(role) = self.missing().await else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(Failure::NotReady { role, within: PATIENCE });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// A process that ends by itself fails the run: nothing here may do that, whatever is killed beside it.
    fn check_nobody_ended(&self) -> Result<(), Failure> {
        for seat in &self.seats {
            let role = seat.role;
            let mut running = seat.running.borrow_mut();
            let Some(running) = running.as_mut() else { continue };
            if let Some(status) = running.child.try_wait().map_err(|error| Failure::Kill { role, error })? {
                return Err(Failure::Ended { role, status });
            }
        }
        Ok(())
    }

    /// The first role that is not ready.
    async fn missing(&self) -> Option<Role> {
        for bank in Role::BANKS {
            let answer = self.http.get(format!("{}/health", self.url(bank))).send().await;
            if !answer.is_ok_and(|answer| answer.status().is_success()) {
                return Some(bank);
            }
        }
        let Some(status) = self.coordinator_status().await else { return Some(Role::Coordinator) };
        let attached = |bank: Role| {
            status.participants.iter().any(|info| info.resource_manager == bank.name() && info.sessions > 0)
        };
        Role::BANKS.into_iter().find(|bank| !self.naive && !attached(*bank))
    }

    /// Whether any bank's journal, looked at from outside, holds a prepared branch now.
    pub(crate) fn hold_prepared_branch(&self) -> std::io::Result<bool> {
        let [bank_a, bank_b] = Role::BANKS;
        Ok(books::holds_prepared_branch(&self.dir, bank_a)?
            || books::holds_prepared_branch(&self.dir, bank_b)?)
    }

    /// What the coordinator says of itself, if it answers.
    pub(crate) async fn coordinator_status(&self) -> Option<v1::StatusResponse> {
        let mut coordinator = self.coordinator.clone();
        let asked = timeout(PATIENCE, coordinator.status(v1::StatusRequest {}));
        Some(asked.await.ok()?.ok()?.into_inner())
    }

    /// Stops all three as an operator would: SIGTERM, and each has to end in good order.
    pub(crate) async fn stop_all(&self) -> Result<(), Failure> {
        for role in [Role::BankA, Role::BankB, Role::Coordinator] {
            let Some(mut running) = self.seat(role).running.borrow_mut().take() else { continue };
            let status = running.terminate().await.map_err(|error| Failure::Kill { role, error })?;
            if !status.success() {
                return Err(Failure::Ended { role, status });
            }
        }
        Ok(())
    }

    /// Ends whatever still runs, at once, so that nobody writes to the directory any more.
    pub(crate) async fn end_all(&self) {
        for seat in &self.seats {
            let running = seat.running.borrow_mut().take();
            if let Some(mut running) = running {
                // It has ended by itself otherwise.
                let _gone = running.child.kill().await;
            }
        }
    }
}

impl Seat {
    fn reserve(role: Role) -> Result<Self, Failure> {
        let failed = |error| Failure::Start { role, error };
        let socket = TcpSocket::new_v4().map_err(failed)?;
        socket.set_reuseaddr(true).map_err(failed)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { role, address, _reserved: socket, running: RefCell::new(None) })
    }
}

impl Running {
    async fn terminate(&mut self) -> std::io::Result<ExitStatus> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
        }
        timeout(PATIENCE, self.child.wait()).await?
    }
}

/// Where a role's output goes, in all its lives.
pub(crate) fn log_file(dir: &Path, role: Role) -> PathBuf {
    dir.join(format!("{role}.log"))
}
