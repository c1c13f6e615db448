//! Standbys of a server: made from it, followed by its commits, promoted in its place.

use super::{PostgresError, PostgresServer, Result, wait_until};

impl PostgresServer {
    /// A new standby that streams from this server, which has to run: `pg_basebackup`, and started.
    ///
    /// # Errors
    /// If it can't be made or does not start.
    pub fn start_standby(&self) -> Result<Self> {
        let mut standby = Self::reserve(self.programs.clone())?;
        let mut backup = standby.programs.command("pg_basebackup");
        backup.args(["--no-sync", "--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf"]);
        backup.arg("--dbname").arg(self.url("postgres")).arg("--pgdata").arg(standby.data());
        let output = backup.output().map_err(PostgresError::io("pg_basebackup does not run"))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(PostgresError(format!("pg_basebackup failed: {words}")));
        }
        standby.configure(&[("unix_socket_directories", &standby.directory.to_string_lossy())])?;
        standby.run_on_a_free_port()?;
        Ok(standby)
    }

    /// Has this server's commits wait for its one standby from now on. Returns when that is so.
    ///
    /// # Errors
    /// If no standby streams from it.
    pub fn wait_for_standby(&self) -> Result<()> {
        self.psql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'")?;
        self.psql("postgres", "SELECT pg_reload_conf()")?;
        wait_until("a synchronous standby", || {
            let state =
                self.psql("postgres", "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'");
            state.is_ok_and(|count| count == "1")
        })
    }

    /// Makes a standby a primary, which waits for no standby of its own, and moves it to the port of the one before, which must not
    /// run any more: as an address that follows the primary does.
    ///
    /// # Errors
    /// If it does not become one, or does not start there.
    pub fn promote_in_place_of(&mut self, primary: &Self) -> Result<()> {
        self.psql("postgres", "SELECT pg_promote(true, 60)")?;
        self.psql("postgres", "ALTER SYSTEM RESET synchronous_standby_names")?;
        self.stop()?;
        self.port = primary.port.clone();
        self.restart()
    }
}
