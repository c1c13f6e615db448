//! As much of the protocols of PostgreSQL and MySQL as it takes to see statements pass, and answers come back.

/// Which protocol is spoken, without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// PostgreSQL's, version 3.
    Postgres,
    /// MySQL's and MariaDB's, with the capability `DEPRECATE_EOF`, which sqlx and every server of ours have.
    Mysql,
}

/// A whole message of the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FromClient {
    /// Its bytes.
    pub(super) length: usize,
    /// The statements in it, if it is such.
    pub(super) text: Option<String>,
}

/// What a message of the server is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FromServer {
    /// The end of what one statement leads to.
    Answer {
        /// In words, such as `INSERT 0 1`.
        words: String,
        /// Whether nothing follows.
        last: bool,
    },
    /// Nothing follows.
    End,
    /// Anything else.
    Other,
}

/// One connection, as far as it has got.
#[derive(Debug)]
pub(super) struct Conversation {
    wire: Wire,
    /// PostgreSQL's first message has no type.
    greeted: bool,
    /// PostgreSQL: requests that the server has not ended yet. A client may send the next one before.
    under_way: usize,
    /// Requests before the one that is held, and that one.
    until_held: Option<usize>,
    /// MySQL: between the head of a result and its end, where the first byte of a message is data.
    in_result: bool,
}

impl Conversation {
    pub(super) const fn new(wire: Wire) -> Self {
        Self { wire, greeted: false, under_way: 0, until_held: None, in_result: false }
    }

    /// The first message in what the client has sent, if it is there as a whole.
    pub(super) fn hear_client(&mut self, bytes: &[u8]) -> Option<FromClient> {
        match self.wire {
            Wire::Postgres => {
                let head = usize::from(self.greeted);
                let length = head + big_endian(bytes.get(head..head + 4)?);
                let message = bytes.get(..length)?;
                let kind = if self.greeted { message[0] } else { b'Q' };
                // Each of these is ended by a ReadyForQuery: the greeting, a query, a sync.
                self.under_way += usize::from(matches!(kind, b'Q' | b'S'));
                let text = (self.greeted && kind == b'Q').then(|| zero_terminated(&message[5..]));
                self.greeted = true;
                Some(FromClient { length, text })
            }
            Wire::Mysql => {
                let length = mysql_length(bytes)?;
                let message = bytes.get(..length)?;
                // Commands are numbered 0; what is not numbered so continues something.
                let is_query = message[3] == 0 && message.get(4) == Some(&3);
                let text = is_query.then(|| String::from_utf8_lossy(&message[5..]).into_owned());
                Some(FromClient { length, text })
            }
        }
    }

    /// The answers of the last request that was sent are held.
    pub(super) const fn hold(&mut self) {
        self.until_held = Some(self.under_way);
        self.in_result = false;
    }

    /// Nothing is held any more.
    pub(super) const fn let_go(&mut self) {
        self.until_held = None;
    }

    /// Whether the server's message is of the request that is held: everything that came before it has been ended.
    pub(super) fn is_of_the_held(&self) -> bool {
        match self.wire {
            Wire::Postgres => self.until_held.is_some_and(|left| left <= 1),
            Wire::Mysql => self.until_held.is_some(),
        }
    }

    /// The first message in what the server has sent, if it is there as a whole: its bytes, and what it is.
    pub(super) fn hear_server(&mut self, bytes: &[u8]) -> Option<(usize, FromServer)> {
        match self.wire {
            Wire::Postgres => {
                let length = 1 + big_endian(bytes.get(1..5)?);
                let message = bytes.get(..length)?;
                Some((length, self.postgres(message)))
            }
            // A client of this protocol waits for each answer, so only those that are held have to be understood.
            Wire::Mysql if self.until_held.is_none() => {
                (!bytes.is_empty()).then_some((bytes.len(), FromServer::Other))
            }
            Wire::Mysql => {
                let length = mysql_length(bytes)?;
                let message = bytes.get(..length)?;
                Some((length, self.mysql(&message[4..])))
            }
        }
    }

    fn postgres(&mut self, message: &[u8]) -> FromServer {
        match message[0] {
            b'C' => FromServer::Answer { words: zero_terminated(&message[5..]), last: false },
            b'E' => {
                let fields = message[5..].split(|byte| *byte == 0);
                let code =
                    fields.filter(|field| field.first() == Some(&b'C')).map(|field| &field[1..]).next();
                let words = format!("ERROR {}", String::from_utf8_lossy(code.unwrap_or_default()));
                FromServer::Answer { words, last: false }
            }
            b'Z' => {
                self.under_way = self.under_way.saturating_sub(1);
                if self.is_of_the_held() {
                    return FromServer::End;
                }
                self.until_held = self.until_held.map(|left| left - 1);
                FromServer::Other
            }
            _ => FromServer::Other,
        }
    }

    /// OK, an error, or the end of a result; else the head of a result, its columns and its rows.
    fn mysql(&mut self, payload: &[u8]) -> FromServer {
        let ends_result = payload[0] == 0xfe;
        match payload[0] {
            0xff => {
                let code = payload.get(1..3).map_or(0, |code| u16::from_le_bytes([code[0], code[1]]));
                FromServer::Answer { words: format!("ERROR {code}"), last: true }
            }
            0x00 | 0xfe if ends_result == self.in_result => {
                self.in_result = false;
                let words = if ends_result { "ROWS" } else { "OK" };
                FromServer::Answer { words: words.to_owned(), last: !has_more_results(payload) }
            }
            _ => {
                self.in_result = true;
                FromServer::Other
            }
        }
    }
}

/// `SERVER_MORE_RESULTS_EXISTS` in the status, behind two numbers of variable length.
fn has_more_results(payload: &[u8]) -> bool {
    let width = |at: usize| match payload.get(at) {
        Some(0xfc) => 3,
        Some(0xfd) => 4,
        Some(0xfe) => 9,
        Some(_) | None => 1,
    };
    let second = 1 + width(1);
    let status = second + width(second);
    payload.get(status).is_some_and(|low| low & 0x08 != 0)
}

fn mysql_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..4)?;
    Some(4 + usize::from(head[0]) + (usize::from(head[1]) << 8) + (usize::from(head[2]) << 16))
}

fn big_endian(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| (number << 8) + usize::from(*byte))
}

fn zero_terminated(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn postgres(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind][..], &length, body].concat()
    }

    fn greeted() -> Conversation {
        let mut conversation = Conversation::new(Wire::Postgres);
        let greeting = &postgres(0, b"\0\x03\0\0user\0me\0\0")[1..];
        assert_eq!(
            conversation.hear_client(greeting),
            Some(FromClient { length: greeting.len(), text: None })
        );
        assert!(matches!(conversation.hear_server(&postgres(b'Z', b"I")), Some((6, FromServer::Other))));
        conversation
    }

    #[test]
    fn a_query_of_postgresql_is_seen_when_it_is_there_as_a_whole() {
        let mut conversation = greeted();
        let query = postgres(b'Q', b"COMMIT PREPARED 'x'\0");
        assert_eq!(conversation.hear_client(&query[..query.len() - 1]), None);
        let text = Some("COMMIT PREPARED 'x'".to_owned());
        assert_eq!(conversation.hear_client(&query), Some(FromClient { length: query.len(), text }));
        let parse = postgres(b'P', b"\0COMMIT PREPARED 'x'\0\0\0");
        assert_eq!(conversation.hear_client(&parse), Some(FromClient { length: parse.len(), text: None }));
    }

    #[test]
    fn only_what_the_held_request_leads_to_is_held() {
        let mut conversation = greeted();
        // The second request leaves before the first is answered.
        conversation.hear_client(&postgres(b'Q', b"ROLLBACK\0"));
        conversation.hear_client(&postgres(b'Q', b"BEGIN; SELECT 1\0"));
        conversation.hold();
        let answer = |words: &str| FromServer::Answer { words: words.to_owned(), last: false };
        let mut hear = |kind, body: &[u8]| {
            let (_, what) = conversation.hear_server(&postgres(kind, body)).unwrap();
            (what, conversation.is_of_the_held())
        };
        assert_eq!(hear(b'C', b"ROLLBACK\0"), (answer("ROLLBACK"), false));
        assert_eq!(hear(b'Z', b"I").0, FromServer::Other);
        assert_eq!(hear(b'C', b"BEGIN\0"), (answer("BEGIN"), true));
        assert_eq!(hear(b'E', b"SERROR\0C42704\0\0"), (answer("ERROR 42704"), true));
        assert_eq!(hear(b'Z', b"I"), (FromServer::End, true));
    }

    #[test]
    fn answers_of_mysql_end_where_no_more_results_follow() {
        let mut conversation = Conversation::new(Wire::Mysql);
        let message = |payload: &[u8]| {
            let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
            [&length[..3], &[0][..], payload].concat()
        };
        let query = message(b"\x03XA END 'a'; SELECT 1");
        let text = Some("XA END 'a'; SELECT 1".to_owned());
        assert_eq!(conversation.hear_client(&query), Some(FromClient { length: query.len(), text }));
        conversation.hold();
        let mut hear = |payload: &[u8]| conversation.hear_server(&message(payload)).unwrap().1;
        let answer = |words: &str, last| FromServer::Answer { words: words.to_owned(), last };
        assert_eq!(hear(&[0, 0, 0, 0x0a, 0, 0, 0]), answer("OK", false));
        assert_eq!(hear(&[1]), FromServer::Other);
        assert_eq!(hear(b"\x03def\0\0\0"), FromServer::Other);
        // A row whose first column is an empty string.
        assert_eq!(hear(&[0]), FromServer::Other);
        assert_eq!(hear(&[0xfe, 0, 0, 2, 0, 0, 0]), answer("ROWS", true));
        assert_eq!(hear(&[0xff, 0x75, 0x05]), answer("ERROR 1397", true));
    }
}
