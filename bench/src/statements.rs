//! What PostgreSQL does for a branch's statements, in instructions: what Lockstep has really sent is taken from a server's log, and sent
//! again to a session that valgrind watches. A count, which a busy machine does not change, of what the server itself does; the kernel's part, waiting,
//! and forced writes are not in it ([`crate::branch`]).

use lockstep::resource::Resource as _;
use lockstep_tests::harness::postgres::PostgresServer;
use lockstep_tests::harness::{Failed, Result};
use serde::Serialize;

use crate::branch::Bank;
use crate::meter;
use crate::stage::DATABASE;

/// The same for everybody: the driver's own statement is prepared once, and can't be sent again as it was.
const WORK: &str = "UPDATE accounts SET balance = balance + 1 WHERE number = 1";
/// A second function of the name of ours: then none of ours is called.
const DECOY: &str = "CREATE FUNCTION lockstep.keep_position() RETURNS void LANGUAGE sql AS 'SELECT 1 / 0'";
/// Evidence has a key.
const CLEAR: &str = "DELETE FROM lockstep.evidence\nDELETE FROM lockstep.positions\n\
    VACUUM lockstep.evidence, lockstep.positions, accounts\n";

/// Leaves the evidence table its key alone.
const STRIP: &str = "DROP INDEX lockstep.evidence_by_deadline, lockstep.evidence_by_gtrid, lockstep.evidence_by_position\n\
    ALTER TABLE lockstep.evidence DROP CONSTRAINT branch_ended_by_its_service, \
    DROP CONSTRAINT branch_read_only_and_not_prepared, DROP CONSTRAINT branch_too_late_to_prepare\n";

/// What one branch costs the server.
#[derive(Debug, Clone, Serialize)]
pub struct Counted {
    /// Whose, and without what.
    pub what: &'static str,
    /// Instructions outside of the kernel.
    pub instructions: f64,
}

/// The round trips of one branch, in their order.
#[derive(Debug, Clone, Default)]
struct Branch {
    begin: String,
    prepare: String,
    keep_position: String,
    commit: String,
}

/// Counts them.
///
/// # Errors
/// If a branch did not commit, or valgrind can't be had.
pub fn run(quick: bool) -> Result<Vec<Counted>> {
    // What a session costs by itself, and what it does only the first times, is in both of two numbers of branches.
    let (few, many) = if quick { (20, 40) } else { (100, 500) };
    let runtime = tokio::runtime::Runtime::new().map_err(Failed::because("no runtime"))?;
    let (mut server, with_functions, without) = runtime.block_on(record(many))?;
    server.stop()?;
    let by_hand = |number: usize| {
        vec![
            "BEGIN".to_owned(),
            WORK.to_owned(),
            format!("PREPARE TRANSACTION '{number}'"),
            format!("COMMIT PREPARED '{number}'"),
        ]
    };
    let ours =
        |branches: &[Branch], send: fn(&Branch) -> Vec<String>| Vec::from_iter(branches.iter().map(send));
    let variants = [
        (
            "by hand: BEGIN, update, PREPARE TRANSACTION, COMMIT PREPARED",
            Vec::from_iter((0..many).map(by_hand)),
        ),
        ("as Lockstep does it", ours(&with_functions, Branch::whole)),
        ("without the evidence", ours(&with_functions, Branch::without_evidence)),
        (
            "without the position, which one writes for all that commit together",
            ours(&with_functions, Branch::without_position),
        ),
        ("where the functions could not be made", ours(&without, Branch::whole)),
    ];
    let count = |what, branches: &[Vec<String>]| {
        let [few_cost, many_cost] = [few, many].map(|many| cost(&server, &branches[..many]));
        let further = (many - few) as u64;
        // Unsigned: more branches cost more.
        let instructions =
            many_cost?.checked_sub(few_cost?).ok_or_else(|| Failed::new("more branches cost less"))?;
        Ok(Counted { what, instructions: meter::count(instructions) / meter::count(further) })
    };
    let mut counted =
        variants.iter().map(|(what, branches)| count(what, branches)).collect::<Result<Vec<_>>>()?;
    server.run_single(DATABASE, STRIP)?;
    let whole = ours(&with_functions, Branch::whole);
    counted.push(count("with the key alone, and no checks, on the evidence", &whole)?);
    Ok(counted)
}

fn cost(server: &PostgresServer, branches: &[Vec<String>]) -> Result<u64> {
    server.run_single(DATABASE, CLEAR)?;
    let queries: String = branches.iter().flatten().map(|query| format!("{query}\n")).collect();
    Ok(server.instructions(DATABASE, &queries)?)
}

/// So many branches, with our functions and without.
async fn record(many: usize) -> Result<(PostgresServer, Vec<Branch>, Vec<Branch>)> {
    let bank = Bank::open(&[("log_statement", "all")]).await?;
    let with_functions = sent(&bank, 0, many).await?;
    bank.server.psql(DATABASE, DECOY)?;
    bank.resource.attach(&bank.name).await.map_err(Failed::because("not attached again"))?;
    let without = sent(&bank, many, many).await?;
    Ok((bank.server, with_functions, without))
}

async fn sent(bank: &Bank, from: usize, many: usize) -> Result<Vec<Branch>> {
    let before = bank.server.log().len();
    for number in from..from + many {
        bank.by_lockstep(number as u64 + 1).await?;
    }
    let log = bank.server.log();
    let texts = log[before..].lines().filter_map(|line| Some(line.split_once("LOG:  statement: ")?.1));
    let mut branches: Vec<Branch> = Vec::new();
    for text in texts {
        if text.starts_with("BEGIN READ WRITE") {
            branches.push(Branch { begin: text.to_owned(), ..Branch::default() });
            continue;
        }
        let Some(branch) = branches.last_mut() else { continue };
        let part = match text {
            text if text.starts_with("SET CONSTRAINTS") => &mut branch.prepare,
            text if text.contains("keep_position(") || text.contains("lockstep.positions") => {
                &mut branch.keep_position
            }
            text if text.starts_with("COMMIT PREPARED") => &mut branch.commit,
            _ => continue,
        };
        text.clone_into(part);
    }
    if branches.len() == many && branches.iter().all(Branch::is_whole) {
        return Ok(branches);
    }
    Err(Failed::new(format!("of {many} branches the server's log has {}, not all whole", branches.len())))
}

impl Branch {
    fn is_whole(&self) -> bool {
        [&self.prepare, &self.keep_position, &self.commit].iter().all(|text| !text.is_empty())
    }

    fn whole(&self) -> Vec<String> {
        let Self { begin, prepare, keep_position, commit } = self.clone();
        // The pool's own end of what prepare leaves open.
        vec![begin, WORK.to_owned(), prepare, "ROLLBACK".to_owned(), keep_position, commit]
    }

    fn without_position(&self) -> Vec<String> {
        let mut queries = self.whole();
        queries.remove(4);
        queries
    }

    fn without_evidence(&self) -> Vec<String> {
        let mut queries = self.whole();
        let kept = self.prepare.split("; ").filter(|statement| !statement.contains("write_evidence("));
        queries[2] = Vec::from_iter(kept).join("; ");
        queries
    }
}
