//! Where a decision log is, what its server may do without, and what a node on it is called.

use std::net::SocketAddr;

use axum::http::Uri;
use lockstep_proto::limits::MAX_ADDRESS_BYTES;

use super::value::{Form, Value, is_no};
use crate::decision_log::postgres::{Accepted, Setting};

/// The decision log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd)]
pub enum LogPlace {
    /// In the data directory.
    Embedded,
    /// In the PostgreSQL database of this URL, which has no password in it.
    Postgres(String),
}

impl Value for LogPlace {
    const FORM: Form = Form::LogPlace;

    fn parse(text: &str) -> Result<Self, String> {
        if text == "embedded" {
            return Ok(Self::Embedded);
        }
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let rest = rest.ok_or_else(is_no::<Self>)?;
        let user = rest.split(['/', '?']).next().and_then(|authority| authority.rsplit_once('@'));
        // It would be shown by `config show`, and by the list of processes.
        if user.is_some_and(|(user, _host)| user.contains(':')) || rest.contains("password=") {
            return Err(
                "has a password in it: leave it out, and put it into PGPASSWORD or into a file that PGPASSFILE names"
                    .to_owned(),
            );
        }
        Ok(Self::Postgres(text.to_owned()))
    }
}

impl Value for Accepted {
    const FORM: Form = Form::Settings;

    fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        let named = |name: &str| Setting::ALL.into_iter().find(|setting| setting.name() == name.trim());
        let settings: Option<Vec<Setting>> = text.split(',').map(named).collect();
        settings.map(|settings| Self::new(&settings)).ok_or_else(is_no::<Self>)
    }
}

/// Where others reach a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd)]
pub enum Advertised {
    /// Where it listens.
    Auto,
    /// Others are not told.
    None,
    /// There: `http://`, a host or an address, and a port.
    At(String),
}

impl Advertised {
    /// The address of the node that listens there. `None`: others are not told, or it listens on every address of its host, and which
    /// of them others reach is not for it to say.
    #[must_use]
    pub fn resolve(&self, bound: SocketAddr) -> Option<String> {
        match self {
            Self::None => None,
            Self::Auto if bound.ip().is_unspecified() => None,
            Self::Auto => Some(format!("http://{bound}")),
            Self::At(url) => Some(url.clone()),
        }
    }
}

impl Value for Advertised {
    const FORM: Form = Form::Advertised;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "none" => return Ok(Self::None),
            _address => {}
        }
        let uri = text.parse::<Uri>().map_err(|_why| is_no::<Self>())?;
        let is_whole = uri.scheme_str() == Some("http") && uri.port().is_some();
        let is_bare =
            uri.path() == "/" && uri.query().is_none() && !text.ends_with('/') && !text.contains('@');
        if !is_whole || !is_bare || text.len() > MAX_ADDRESS_BYTES {
            return Err(is_no::<Self>());
        }
        Ok(Self::At(text.to_owned()))
    }
}

/// What a node is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd)]
pub enum NodeName {
    /// By the host's name and the port.
    Auto,
    /// So.
    Named(String),
}

impl NodeName {
    /// The name of the node that listens there.
    #[must_use]
    pub fn resolve(&self, bound: SocketAddr) -> String {
        match self {
            Self::Auto => {
                let host = rustix::system::uname();
                format!("{}:{}", host.nodename().to_string_lossy(), bound.port())
            }
            Self::Named(name) => name.clone(),
        }
    }
}

impl Value for NodeName {
    const FORM: Form = Form::NodeName;

    fn parse(text: &str) -> Result<Self, String> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b".:_-".contains(&b);
        if text.is_empty() || text.len() > 64 || !text.bytes().all(fits) {
            return Err(is_no::<Self>());
        }
        Ok(if text == "auto" { Self::Auto } else { Self::Named(text.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_does_not_belong_into_the_address() {
        for url in ["postgres://me:secret@db/x", "postgres://db/x?password=secret", "postgresql://me:@db"] {
            let refused = LogPlace::parse(url).unwrap_err();
            assert!(refused.contains("PGPASSWORD") && !refused.contains("secret"), "{refused}");
        }
        for url in ["postgres://me@db:5432/x", "postgresql://db", "postgres://db/x?sslmode=require"] {
            assert_eq!(LogPlace::parse(url), Ok(LogPlace::Postgres(url.to_owned())));
        }
        assert_eq!(LogPlace::parse("embedded"), Ok(LogPlace::Embedded));
        assert!(LogPlace::parse("mysql://db").is_err());
    }

    #[test]
    fn settings_are_accepted_by_name_only() {
        assert_eq!(Accepted::parse("none"), Ok(Accepted::default()));
        let both = Accepted::parse("fsync, full_page_writes").unwrap();
        assert!(both.has(Setting::Fsync) && both.has(Setting::FullPageWrites));
        assert!(!both.has(Setting::SynchronousCommit));
        for wrong in ["", "all", "fsync,", "true"] {
            assert!(Accepted::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_node_is_reached_where_it_listens_unless_it_was_told_otherwise() {
        let bound = |text: &str| text.parse().unwrap();
        assert_eq!(Advertised::Auto.resolve(bound("10.0.0.1:7420")).as_deref(), Some("http://10.0.0.1:7420"));
        for every in ["0.0.0.0:7420", "[::]:7420"] {
            assert_eq!(Advertised::Auto.resolve(bound(every)), None);
        }
        assert_eq!(Advertised::parse("none").unwrap().resolve(bound("10.0.0.1:7420")), None);
        for right in ["http://node-a:7420", "http://[fd00::1]:7420", "http://10.0.0.1:80"] {
            let told = Advertised::parse(right).unwrap();
            assert_eq!(told.resolve(bound("0.0.0.0:1")).as_deref(), Some(right));
        }
        let long = format!("http://{}:7420", "x".repeat(256));
        for wrong in [
            "",
            "node-a:7420",
            "http://node-a",
            "https://a:1",
            "http://a:1/",
            "http://a:1/x",
            "http://u@a:1",
            &long,
        ] {
            assert!(Advertised::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_node_is_called_after_its_host_and_port_unless_it_has_a_name() {
        let bound = "127.0.0.1:7420".parse().unwrap();
        assert!(NodeName::Auto.resolve(bound).ends_with(":7420"));
        assert_eq!(NodeName::parse("node-a").unwrap().resolve(bound), "node-a");
        for wrong in ["", "with space", "ö", &"x".repeat(65)] {
            assert!(NodeName::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
