//! A participant without the SDK: says whatever a test wants, and hears everything.

#![allow(clippy::wildcard_enum_match_arm, reason = "whatever else is heard fails the test, in its own words")]

use std::collections::VecDeque;

use lockstep_proto::v1::coordinator_message::Kind as Heard;
use lockstep_proto::v1::participant_message::Kind as Said;
use lockstep_proto::v1::participant_service_client::ParticipantServiceClient;
use lockstep_proto::v1::{self, CoordinatorFrame, ParticipantFrame, ParticipantMessage};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::lockstep::{PATIENCE, channel};

pub(crate) struct Raw {
    name: String,
    outgoing: mpsc::Sender<ParticipantFrame>,
    incoming: Streaming<CoordinatorFrame>,
    heard: VecDeque<Heard>,
    pub(crate) welcome: v1::Welcome,
}

/// A hello that fits, for a database that nobody knows yet.
pub(crate) fn hello(name: &str) -> v1::Hello {
    let clock_ms = lockstep_tests::harness::clock::unix_micros() / 1000;
    v1::Hello {
        protocol_version: 1,
        resource_manager: name.to_owned(),
        identity: rand::random::<[u8; 16]>().to_vec(),
        instance: rand::random::<[u8; 16]>().to_vec(),
        clock_ms,
        ..Default::default()
    }
}

pub(crate) fn frame(messages: impl IntoIterator<Item = Said>) -> ParticipantFrame {
    let message = |kind| ParticipantMessage { kind: Some(kind) };
    ParticipantFrame { messages: messages.into_iter().map(message).collect() }
}

impl Raw {
    /// Attaches under this name.
    pub(crate) async fn attach(url: &str, name: &str) -> Self {
        Self::greet(url, frame([Said::Hello(hello(name))])).await.unwrap().named(name)
    }

    /// Opens a stream with this as its first frame, and takes the welcome.
    pub(crate) async fn greet(url: &str, first: ParticipantFrame) -> Result<Self, Status> {
        let (outgoing, mut frames) = mpsc::channel(16);
        outgoing.send(first).await.unwrap();
        let stream = futures::stream::poll_fn(move |context| frames.poll_recv(context));
        let mut client = ParticipantServiceClient::new(channel(url).await);
        let incoming = client.attach(stream).await?.into_inner();
        let (heard, welcome) = (VecDeque::new(), v1::Welcome::default());
        let mut raw = Self { name: String::new(), outgoing, incoming, heard, welcome };
        match raw.next().await? {
            Heard::Welcome(welcome) => Ok(Self { welcome, ..raw }),
            other => panic!("the first message is a welcome, not {other:?}"),
        }
    }

    fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// A branch of this participant's; the number tells branches apart.
    pub(crate) fn xid(&self, gtrid: &str, number: u64) -> v1::Xid {
        xid(gtrid, &self.name, number)
    }

    pub(crate) async fn say(&mut self, kind: Said) {
        self.send(frame([kind])).await;
    }

    pub(crate) async fn send(&mut self, frame: ParticipantFrame) {
        self.outgoing.send(frame).await.unwrap();
    }

    /// The next message, or why there is none.
    pub(crate) async fn next(&mut self) -> Result<Heard, Status> {
        while self.heard.is_empty() {
            let frame = tokio::time::timeout(PATIENCE, self.incoming.message());
            match frame.await.expect("the coordinator answers")? {
                Some(frame) => {
                    self.heard.extend(frame.messages.into_iter().filter_map(|message| message.kind))
                }
                None => return Err(Status::cancelled("the stream ended")),
            }
        }
        Ok(self.heard.pop_front().expect("it was just put in"))
    }

    /// How the stream ends: the first thing that is no message.
    pub(crate) async fn end(mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    pub(crate) async fn enlist(&mut self, xid: &v1::Xid) -> Result<(), (v1::EnlistRefusal, String)> {
        self.say(Said::Enlist(v1::Enlist { xid: Some(xid.clone()) })).await;
        match self.next().await.unwrap() {
            Heard::Enlisted(enlisted) => {
                assert_eq!(enlisted.xid.as_ref(), Some(xid));
                Ok(())
            }
            Heard::EnlistRefused(refused) => {
                assert_eq!(refused.xid.as_ref(), Some(xid));
                Err((refused.reason(), refused.detail))
            }
            other => panic!("an enlist is answered, not {other:?}"),
        }
    }

    pub(crate) async fn vote(&mut self, xid: &v1::Xid, vote: v1::VoteKind) {
        self.say(Said::Vote(v1::Vote { xid: Some(xid.clone()), vote: vote.into(), detail: String::new() }))
            .await;
    }

    pub(crate) async fn acknowledge(&mut self, xid: &v1::Xid, applied: v1::Applied) {
        let detail = String::new();
        self.say(Said::Acknowledge(v1::Acknowledge {
            xid: Some(xid.clone()),
            applied: applied.into(),
            detail,
        }))
        .await;
    }

    /// The prepare of this branch.
    pub(crate) async fn expect_prepare(&mut self, xid: &v1::Xid) {
        match self.next().await.unwrap() {
            Heard::Prepare(prepare) => assert_eq!(prepare.xid.as_ref(), Some(xid)),
            other => panic!("a prepare is due, not {other:?}"),
        }
    }

    /// The commit in one phase of this branch.
    pub(crate) async fn expect_commit_one_phase(&mut self, xid: &v1::Xid) {
        match self.next().await.unwrap() {
            Heard::CommitOnePhase(commit) => assert_eq!(commit.xid.as_ref(), Some(xid)),
            other => panic!("a commit in one phase is due, not {other:?}"),
        }
    }

    /// The decision about this branch.
    pub(crate) async fn expect_decision(&mut self, xid: &v1::Xid) -> v1::Decision {
        match self.next().await.unwrap() {
            Heard::Decide(decide) => {
                assert_eq!(decide.xid.as_ref(), Some(xid));
                decide.decision()
            }
            other => panic!("a decision is due, not {other:?}"),
        }
    }

    /// That what was said about this branch was not acted on, and why.
    pub(crate) async fn expect_refused(&mut self, xid: &v1::Xid) -> String {
        match self.next().await.unwrap() {
            Heard::Refused(refused) => {
                assert_eq!(refused.xid.as_ref(), Some(xid));
                refused.detail
            }
            other => panic!("a refusal is due, not {other:?}"),
        }
    }
}

pub(crate) fn xid(gtrid: &str, resource_manager: &str, number: u64) -> v1::Xid {
    v1::Xid { gtrid: gtrid.to_owned(), bqual: format!("{resource_manager}.{number:016x}") }
}
