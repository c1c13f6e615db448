-- The decision log of several coordinators, in a schema of its own: `lockstep_log`.
--
-- Records are framed as in the embedded log: one byte of format version, a CRC-32C over the key and the content, the content
-- (coordinator/src/decision_log/rows.rs). What SQL has to compare, to lock or to count is a column.

-- One row for each transaction that is known at all. The key is the gtrid's 20 bytes: its time comes first, its epoch last.
CREATE TABLE lockstep_log.transactions (
    gtrid bytea NOT NULL PRIMARY KEY CHECK (octet_length(gtrid) = 20),
    epoch bigint NOT NULL GENERATED ALWAYS AS (
        (get_byte(gtrid, 16)::bigint << 24) | (get_byte(gtrid, 17)::bigint << 16)
            | (get_byte(gtrid, 18)::bigint << 8) | get_byte(gtrid, 19)::bigint
    ) STORED,
    -- 1 commit, 2 one-phase intent. NULL if the transaction was rolled back: that needs no record, but its end is kept for
    -- people.
    kind smallint CHECK (kind IN (1, 2)),
    decision bytea,
    -- Milliseconds since 1970. NULL: not ended, whoever owns its epoch has to deliver the decision.
    ended_ms bigint,
    ending bytea,
    -- A branch ended differently from the decision: what an operator looks for.
    heuristic boolean NOT NULL DEFAULT false,
    CHECK ((kind IS NULL) = (decision IS NULL)),
    CHECK ((ended_ms IS NULL) = (ending IS NULL)),
    CHECK (decision IS NOT NULL OR ending IS NOT NULL)
) WITH (fillfactor = 80);

-- What recovery and adoption read. Rows leave it when they end, so it is as small as what is unfinished.
CREATE INDEX unfinished ON lockstep_log.transactions (epoch, gtrid) WHERE ended_ms IS NULL;

-- Few, one hopes.
CREATE INDEX heuristic ON lockstep_log.transactions (gtrid) WHERE heuristic;

-- Every life of a coordinator. This row is the fence (P1, P2): each decision is written with it locked FOR SHARE, unsealed and
-- of the generation that the writer knows; sealing and a new generation update it, and so wait for a decision that is
-- being written. Nothing else may ever update it, or decisions would wait for each other.
CREATE TABLE lockstep_log.epochs (
    number bigint NOT NULL PRIMARY KEY CHECK (number BETWEEN 1 AND 4294967295),
    incarnation bytea NOT NULL CHECK (octet_length(incarnation) = 16),
    generation bigint NOT NULL DEFAULT 1,
    sealed boolean NOT NULL DEFAULT false,
    -- The epoch whose node delivers what this one left. NULL as long as it is not sealed.
    owner bigint,
    CHECK (sealed = (owner IS NOT NULL))
);

-- The newest forced batch of each epoch (P8).
CREATE TABLE lockstep_log.positions (
    epoch bigint NOT NULL PRIMARY KEY,
    sequence bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

-- A row for each epoch, changed after what was read and before it is used (P3).
CREATE TABLE lockstep_log.barriers (
    epoch bigint NOT NULL PRIMARY KEY,
    passed bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

-- When to try to seal an epoch, by this server's clock; and what its node says of itself. Nothing safe depends on the time.
CREATE TABLE lockstep_log.leases (
    epoch bigint NOT NULL PRIMARY KEY,
    node text NOT NULL,
    expires_at timestamptz NOT NULL,
    -- No transaction that is live there, or will be, began earlier; milliseconds since 1970 (P7).
    floor_ms bigint NOT NULL,
    -- Transactions that are live there. For people.
    live bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

-- Every resource manager that ever attached: identity, location, timeline, floor.
CREATE TABLE lockstep_log.resource_managers (
    name text COLLATE "C" NOT NULL PRIMARY KEY,
    record bytea NOT NULL
);

-- Single facts: 'cluster', made once with the log; 'horizon', the time of the newest transaction ever pruned.
CREATE TABLE lockstep_log.marks (
    name text COLLATE "C" NOT NULL PRIMARY KEY,
    record bytea NOT NULL
);
