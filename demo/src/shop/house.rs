//! The whole shop in one command, without Docker: coordinator and services are processes of their own, on SQLite files in a
//! temporary directory. This process is the customers, kills one of the four with SIGKILL every few seconds, and checks the books.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use futures::future::join_all;
use rand::RngExt as _;
use rustix::process::Signal;
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep};

use super::Failure;
use super::load::{Counts, Load};
use super::look::{self, Checked, Databases};
use super::storefront::{Addresses, Storefront};
use super::told::Notes;

/// How long a process may take to be there.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the checker waits until nothing is in doubt any more.
const CHECK_PATIENCE: u64 = 60;
/// What one customer waits between two orders.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Seconds to buy
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=86400))]
    seconds: u32,
    /// Customers at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    customers: u32,
    /// Kill a process after so many seconds, again and again; 0 kills none
    #[arg(long, value_name = "N", default_value_t = 3)]
    kill_every: u32,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

/// One of the four processes, in all its lives.
struct Seat {
    name: &'static str,
    address: SocketAddr,
    /// Bound and never listening: nobody else is given the port between two lives.
    _reserved: TcpSocket,
    running: Option<Running>,
    killed: u32,
}

struct Running {
    child: Child,
    /// The process ends when this does: with this process, however that ends.
    _lifeline: ChildStdin,
}

struct House {
    dir: PathBuf,
    seats: Vec<Seat>,
}

pub(super) async fn run(options: &Options) -> Result<ExitCode, Failure> {
    let dir = tempfile::Builder::new().prefix("lockstep-shop-").tempdir()?;
    let mut house = House::new(dir.path())?;
    house.start_all().await?;
    let load = Arc::new(Load {
        storefront: Storefront::open(house.addresses())?,
        notes: Notes::open(Some(&house.told()))?,
        counts: Counts::default(),
        naive: false,
        closed: AtomicBool::new(false),
    });
    let customers = tokio::spawn({
        let (load, customers) = (Arc::clone(&load), options.customers);
        async move {
            let customers = join_all((0..customers).map(|_| load.customer(PAUSE))).await;
            customers.into_iter().collect::<Result<(), Failure>>()
        }
    });
    house.kill_for(options).await?;
    load.closed.store(true, Ordering::Relaxed);
    customers.await??;
    let checked = look::until_right(&house.checking()).await;
    house.end_all().await;
    tell(options, &house, &load, &checked?)
}

fn tell(options: &Options, house: &House, load: &Load, checked: &Checked) -> Result<ExitCode, Failure> {
    let kills: serde_json::Map<_, _> =
        house.seats.iter().map(|seat| (seat.name.to_owned(), seat.killed.into())).collect();
    if options.json {
        let json = serde_json::json!({ "told": load.counts.now(), "kills": kills, "books": checked.json() });
        println!("{json}");
    } else {
        let named: Vec<_> = kills.iter().map(|(name, times)| format!("{name} {times}")).collect();
        println!("told       {}", serde_json::to_string(&load.counts.now())?);
        println!("kill -9    {}", named.join(", "));
        print!("{}", checked.table());
    }
    Ok(if checked.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl House {
    fn new(dir: &Path) -> Result<Self, Failure> {
        let names = ["coordinator", "orders", "payments", "inventory"];
        let seats = names.into_iter().map(Seat::reserve).collect::<Result<_, _>>()?;
        Ok(Self { dir: dir.to_owned(), seats })
    }

    fn url(&self, seat: usize) -> String {
        format!("http://{}", self.seats[seat].address)
    }

    fn addresses(&self) -> Addresses {
        let [coordinator, orders, payments, inventory] = [0, 1, 2, 3].map(|seat| self.url(seat));
        Addresses { coordinators: vec![coordinator], orders, payments, inventory }
    }

    fn database(&self, service: &str) -> String {
        format!("sqlite:{}", self.dir.join(service).with_extension("db").display())
    }

    fn told(&self) -> PathBuf {
        self.dir.join("told.jsonl")
    }

    fn checking(&self) -> look::Options {
        let databases = Databases {
            orders_db: self.database("orders"),
            orders_password: None,
            payments_db: self.database("payments"),
            payments_password: None,
            inventory_db: self.database("inventory"),
        };
        look::Options::once(databases, self.told(), CHECK_PATIENCE)
    }

    async fn start_all(&mut self) -> Result<(), Failure> {
        for seat in 0..self.seats.len() {
            self.start(seat)?;
        }
        self.until_all_up().await
    }

    fn start(&mut self, seat: usize) -> Result<(), Failure> {
        let (name, address) = (self.seats[seat].name, self.seats[seat].address.to_string());
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join(name).with_extension("log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        if name == "coordinator" {
            command.args(["coordinator", &address, "decision-log"]);
        } else {
            command.args(["shop", "serve", name, "--listen", &address, "--database", &self.database(name)]);
            command.args(["--coordinators", &self.url(0), "--until-stdin-ends"]);
        }
        // What is set for a coordinator or a shop of the user's own is not meant for these.
        let variables = std::env::vars_os().map(|(name, _)| name);
        let ours = |name: &std::ffi::OsString| {
            [b"LOCKSTEP_".as_slice(), b"SHOP_"]
                .iter()
                .any(|prefix| name.as_encoded_bytes().starts_with(prefix))
        };
        for name in variables.filter(ours) {
            command.env_remove(name);
        }
        command.current_dir(&self.dir).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C is for this process; the others end with it.
        let mut child = command.process_group(0).spawn()?;
        let lifeline = child.stdin.take().expect("it is piped");
        self.seats[seat].running = Some(Running { child, _lifeline: lifeline });
        Ok(())
    }

    /// Waits until the coordinator listens and every service is attached.
    async fn until_all_up(&mut self) -> Result<(), Failure> {
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let deadline = Instant::now() + PATIENCE;
        for seat in 0..self.seats.len() {
            let name = self.seats[seat].name;
            let is_up = async |house: &Self| match name {
                "coordinator" => TcpStream::connect(house.seats[seat].address).await.is_ok(),
                _ => {
                    let answer = http.get(format!("{}/health", house.url(seat))).send().await;
                    answer.is_ok_and(|answer| answer.status().is_success())
                }
            };
            while !is_up(self).await {
                self.check_nobody_ended()?;
                if Instant::now() >= deadline {
                    return Err(format!("{name} is not there after {PATIENCE:?}").into());
                }
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    fn check_nobody_ended(&mut self) -> Result<(), Failure> {
        for seat in &mut self.seats {
            let Some(running) = &mut seat.running else { continue };
            if let Some(status) = running.child.try_wait()? {
                let log = std::fs::read_to_string(self.dir.join(seat.name).with_extension("log"))?;
                return Err(format!("{} has ended by itself ({status}):\n{log}", seat.name).into());
            }
        }
        Ok(())
    }

    /// Kills a process at random every few seconds, and starts it again.
    async fn kill_for(&mut self, options: &Options) -> Result<(), Failure> {
        let end = Instant::now() + Duration::from_secs(options.seconds.into());
        let pause = Duration::from_secs(options.kill_every.into());
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if options.kill_every == 0 || left <= pause {
                sleep(left).await;
                return self.check_nobody_ended();
            }
            sleep(pause).await;
            self.check_nobody_ended()?;
            let seat = rand::rng().random_range(0..self.seats.len());
            self.kill(seat).await?;
            self.start(seat)?;
            self.until_all_up().await?;
        }
    }

    async fn kill(&mut self, seat: usize) -> Result<(), Failure> {
        let seat = &mut self.seats[seat];
        let mut running = seat.running.take().expect("all of them run");
        running.child.start_kill()?;
        let status = running.child.wait().await?;
        if status.signal() != Some(Signal::KILL.as_raw()) {
            return Err(format!("{} has ended by itself ({status})", seat.name).into());
        }
        seat.killed += 1;
        Ok(())
    }

    async fn end_all(&mut self) {
        for seat in &mut self.seats {
            if let Some(mut running) = seat.running.take() {
                // It has ended by itself otherwise.
                let _gone = running.child.kill().await;
            }
        }
    }
}

impl Seat {
    fn reserve(name: &'static str) -> Result<Self, Failure> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        Ok(Self { name, address: socket.local_addr()?, _reserved: socket, running: None, killed: 0 })
    }
}
