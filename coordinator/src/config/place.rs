//! Where a decision log is, what its server may do without, and what a node on it is called.

use std::net::SocketAddr;

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
    fn a_node_is_called_after_its_host_and_port_unless_it_has_a_name() {
        let bound = "127.0.0.1:7420".parse().unwrap();
        assert!(NodeName::Auto.resolve(bound).ends_with(":7420"));
        assert_eq!(NodeName::parse("node-a").unwrap().resolve(bound), "node-a");
        for wrong in ["", "with space", "ö", &"x".repeat(65)] {
            assert!(NodeName::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
