//! `prove torture`: everything at once, for minutes: processes and servers are killed and stopped, and connections cut and slowed, at random and
//! under load. Then all is mended, and looked at from outside.
//!
//! - [`link`]: a way between two of them that can be cut and slowed.
//! - [`world`]: two coordinators on one log in PostgreSQL, a bank over PostgreSQL and one over MariaDB, clients, and a link wherever one of them
//!   dials another.
//! - [`watch`]: how long branches are in doubt meanwhile.
//! - [`run`]: what is done to whom, and when it is mended; [`report`]: what came of it.
//!
//! Who sees whether all is well is the checker of all real processes ([`crate::trial::checker`]): it knows only the databases and what clients were
//! told.

pub mod link;
pub mod report;
pub mod run;
pub mod watch;
pub mod world;
