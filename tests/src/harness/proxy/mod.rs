//! A proxy between a participant and its database server that breaks the connection at a chosen statement.
//!
//! It sits on a port of its own and passes everything on, until the statement comes that a [`Strike`] waits for. There are two
//! moments that differ for whoever has to know what became of it: the server has not got the statement
//! ([`At::Request`]), or has executed it to the end and its answer is on the way ([`At::Answer`]). The connection is then cut,
//! both ends with a reset; or it is frozen, so that somebody else may be killed at this very moment.
//!
//! What was struck is kept with its text and the answers of the server: a strike that never came is not in [`Proxy::struck`], and
//! a test that counts on it fails.
//!
//! Only statements that are sent as text count (a simple query of PostgreSQL, COM_QUERY of MySQL): everything that the SDK itself
//! sends is of this kind. [`wire`] reads both protocols, as far as needed.

pub mod wire;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use self::wire::{Conversation, FromServer, Wire};
use super::ports::{Port, listen_apart};
use super::{Result, clock};

/// When a statement is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The server has not got it.
    Request,
    /// The server has executed it to the end, and so many of its answers have been passed on: one for each statement of those
    /// that were sent together.
    Answer(usize),
}

/// What happens to the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Both ends are reset.
    Cut,
    /// Nothing passes any more, until one end goes or [`Proxy::release`] is called; then both are reset.
    Freeze,
}

/// Waits for a statement.
#[derive(Debug, Clone, Copy)]
pub struct Strike {
    /// What is in its text.
    pub statement: &'static str,
    /// A word of its text begins so, and has to be the same as in the text of the strike before: a branch's name, where the
    /// second statement is to be about the same branch as the first.
    pub same: Option<&'static str>,
    /// At which pass: from 1, counted over all connections from when it is armed.
    pub nth: u32,
    /// What the server has to answer to each statement, in order: the beginnings of its words. If it answers otherwise, it was not
    /// this pass. Nothing is known of that at [`At::Request`].
    pub answers: &'static [&'static str],
    /// When.
    pub at: At,
    /// What then.
    pub then: Then,
}

/// A strike that came.
#[derive(Debug, Clone)]
pub struct Struck {
    /// When, in microseconds since 1970.
    pub when: u64,
    /// The text of the statements that were sent together.
    pub text: String,
    /// What the server answered, in words: one for each statement it executed. Empty for [`At::Request`].
    pub answers: Vec<String>,
}

#[derive(Debug, Default)]
struct Plan {
    /// One after the other: the second is armed when the first has come.
    to_come: VecDeque<Strike>,
    /// Answers are held back, and may bring the next strike: until that is known nothing else is looked for.
    is_held: bool,
    struck: Vec<Struck>,
    /// Passes that would have been a strike but for the server's answers.
    missed: Vec<Struck>,
}

/// Passes connections on until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    plan: Arc<Mutex<Plan>>,
    /// Set when nothing is to stay frozen.
    released: watch::Sender<bool>,
    /// Ends everything that runs in it when it is dropped.
    _runtime: Runtime,
}

impl Proxy {
    /// In front of the server at this port of loopback.
    ///
    /// # Errors
    /// If it can't listen.
    pub fn start(wire: Wire, server: u16) -> Result<Self> {
        let (port, listener, runtime) = listen_apart()?;
        let plan = Arc::new(Mutex::new(Plan::default()));
        let shared = Arc::clone(&plan);
        let (released, release) = watch::channel(false);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A server that is down refuses, and so does its proxy.
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await {
                    let passage = Passage::new(wire, Arc::clone(&shared), release.clone());
                    tokio::spawn(passage.run(client, server));
                }
            }
        });
        Ok(Self { port, plan, released, _runtime: runtime })
    }

    /// Where it is reached.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Waits for these strikes, one after the other.
    pub fn arm(&self, strikes: &[Strike]) {
        lock(&self.plan).to_come.extend(strikes);
    }

    /// Cuts what is frozen, now and from now on.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// Passes that would have been a strike but for the server's answers: what to look at when none comes.
    #[must_use]
    pub fn missed(&self) -> Vec<Struck> {
        lock(&self.plan).missed.clone()
    }

    /// Those that came, in order.
    #[must_use]
    pub fn struck(&self) -> Vec<Struck> {
        lock(&self.plan).struck.clone()
    }
}

fn lock(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plan {
    /// The strike that this statement's pass brings.
    fn passes(&mut self, text: &str) -> Option<Strike> {
        let next = self.to_come.front_mut().filter(|_| !self.is_held)?;
        let before = self.struck.last().map(|struck| struck.text.as_str()).unwrap_or_default();
        let is_same = next.same.is_none_or(|begin| word(text, begin) == word(before, begin));
        if !text.contains(next.statement) || !is_same {
            return None;
        }
        next.nth -= 1;
        if next.nth > 0 {
            return None;
        }
        self.is_held = next.at != At::Request;
        self.to_come.pop_front()
    }

    /// What was held back is complete, or will never be.
    fn decide(&mut self, strike: Strike, struck: Struck) -> bool {
        self.is_held = false;
        let is_it = struck.answers.len() == strike.answers.len()
            && struck.answers.iter().zip(strike.answers).all(|(answer, begin)| answer.starts_with(begin));
        if is_it {
            self.struck.push(struck);
        } else {
            self.to_come.push_front(Strike { nth: 1, ..strike });
            self.missed.push(struck);
        }
        is_it
    }
}

impl Held {
    fn struck(self) -> (Strike, Struck) {
        (self.strike, Struck { when: clock::unix_micros(), text: self.text, answers: self.answers })
    }
}

/// The first word of `text` that begins so.
fn word<'a>(text: &'a str, begin: &str) -> Option<&'a str> {
    let behind = &text[text.find(begin)? + begin.len()..];
    Some(behind.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default())
}

/// A statement whose answers are held back until they are complete.
#[derive(Debug)]
struct Held {
    strike: Strike,
    text: String,
    answers: Vec<String>,
    /// Bytes of the answers that are passed on before the strike.
    pass: usize,
    bytes: Vec<u8>,
}

/// One connection.
#[derive(Debug)]
struct Passage {
    plan: Arc<Mutex<Plan>>,
    release: watch::Receiver<bool>,
    conversation: Conversation,
    from_client: Vec<u8>,
    from_server: Vec<u8>,
    held: Option<Held>,
}

impl Passage {
    fn new(wire: Wire, plan: Arc<Mutex<Plan>>, release: watch::Receiver<bool>) -> Self {
        let conversation = Conversation::new(wire);
        Self { plan, release, conversation, from_client: Vec::new(), from_server: Vec::new(), held: None }
    }

    /// Passes everything on until one end goes or a strike comes.
    async fn run(mut self, mut client: TcpStream, mut server: TcpStream) {
        let struck = loop {
            let open = tokio::select! {
                read = client.read_buf(&mut self.from_client) => read,
                read = server.read_buf(&mut self.from_server) => read,
            };
            if !matches!(open, Ok(1..)) {
                break None;
            }
            let (to_server, mut struck) = self.requests();
            if server.write_all(&to_server).await.is_err() {
                break None;
            }
            let to_client = self.answers(&mut struck);
            if client.write_all(&to_client).await.is_err() || struck.is_some() {
                break struck;
            }
        };
        if let Some(held) = self.held.take() {
            let (strike, it) = held.struck();
            lock(&self.plan).decide(strike, it);
        }
        if struck == Some(Then::Freeze) {
            let released = self.release.wait_for(|released| *released);
            tokio::select! {
                () = wait_until_one_goes(&mut client, &mut server) => {}
                _released_or_gone = released => {}
            }
        }
        // Reset instead of an orderly end: whoever waits for an answer gets an error at once, and nothing is taken for the last
        // word of the other side. Where it can't be had, the end is an orderly one.
        drop(client.set_zero_linger());
        drop(server.set_zero_linger());
    }

    /// What goes to the server of what the client has sent, unless a strike comes before it.
    fn requests(&mut self) -> (Vec<u8>, Option<Then>) {
        let mut passed = 0;
        while let Some(message) = self.conversation.hear_client(&self.from_client[passed..]) {
            let strike = message.text.as_deref().and_then(|text| lock(&self.plan).passes(text));
            let text = message.text.unwrap_or_default();
            match strike {
                Some(strike) if strike.at == At::Request => {
                    let struck = Struck { when: clock::unix_micros(), text, answers: Vec::new() };
                    lock(&self.plan).struck.push(struck);
                    return (self.from_client.drain(..passed).collect(), Some(strike.then));
                }
                Some(strike) => {
                    self.conversation.hold();
                    let (answers, bytes) = (Vec::new(), Vec::new());
                    self.held = Some(Held { strike, text, answers, pass: 0, bytes });
                }
                None => {}
            }
            passed += message.length;
        }
        (self.from_client.drain(..passed).collect(), None)
    }

    /// What goes to the client of what the server has sent.
    fn answers(&mut self, struck: &mut Option<Then>) -> Vec<u8> {
        let mut to_client = Vec::new();
        while let Some((length, what)) = self.conversation.hear_server(&self.from_server) {
            let message: Vec<u8> = self.from_server.drain(..length).collect();
            let Some(held) = self.held.as_mut().filter(|_| self.conversation.is_of_the_held()) else {
                to_client.extend(message);
                continue;
            };
            held.bytes.extend(message);
            let At::Answer(wanted) = held.strike.at else { unreachable!("it is held for its answer") };
            if let FromServer::Answer { words, .. } = &what {
                held.answers.push(words.clone());
                if held.answers.len() == wanted {
                    held.pass = held.bytes.len();
                }
            }
            if matches!(what, FromServer::End | FromServer::Answer { last: true, .. }) {
                let held = self.held.take().expect("it was just there");
                self.conversation.let_go();
                let (bytes, pass, then) = (held.bytes.clone(), held.pass, held.strike.then);
                let (strike, it) = held.struck();
                if lock(&self.plan).decide(strike, it) {
                    to_client.extend(&bytes[..pass]);
                    *struck = Some(then);
                    return to_client;
                }
                to_client.extend(bytes);
            }
        }
        to_client
    }
}

async fn wait_until_one_goes(client: &mut TcpStream, server: &mut TcpStream) {
    let mut unheard = Vec::new();
    let mut unheard_too = Vec::new();
    loop {
        let open = tokio::select! {
            read = client.read_buf(&mut unheard) => read,
            read = server.read_buf(&mut unheard_too) => read,
        };
        if !matches!(open, Ok(1..)) {
            return;
        }
    }
}
