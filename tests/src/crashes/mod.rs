//! `prove crashes`: SIGKILL at every crash point, on the way to a commit and to a rollback, over SQLite, PostgreSQL and MariaDB.
//!
//! A *cell* is one crash point, one kind of transaction, one way in which it ends, one kind of database. In each cell a
//! coordinator, two banks and a client run as processes; one of them carries a fuse. Money is moved until it blows. The
//! process is started again, and within a bound nothing may be in doubt any more. Then the databases are looked at from
//! outside, and compared with what the client was told.
//!
//! - [`points`]: the table of crash points: who dies there, on which ways, and what must become of the transaction that was
//!   struck. Written by hand and not taken from the sources; a test compares the two.
//! - [`matrix`]: the cells, and those that cannot be, each with its reason.
//! - [`cell`]: one cell, from an empty directory to its verdict; [`stage`]: the servers that cells share.
//! - [`run`]: all cells; [`report`]: what is printed.
//! - [`crate::trial`]: what this has in common with other matrices.
//!
//! A cell passes only if its fault fired: the process was reaped with signal 9, and had written its marker at that point.

pub mod cell;
pub mod matrix;
pub mod points;
pub mod report;
pub mod run;
pub mod stage;
