-- The embedded decision log.
--
-- Records are framed: one byte of format version, a CRC-32C over the key and the content, the content (protobuf with tags
-- that are never reused; coordinator/src/decision_log/sqlite/rows.rs). Only what SQL has to select by is a column.

-- One row for each transaction that is known at all. The key is the gtrid's 20 bytes, so that rows lie in the order of
-- time: new ones go to the end, pruning takes them from the beginning, and the horizon is a place in between.
CREATE TABLE transactions (
    gtrid BLOB NOT NULL PRIMARY KEY CHECK (length(gtrid) = 20),
    -- The commit decision or one-phase intent. NULL if the transaction was rolled back: that needs no record, but its end
    -- is kept for people.
    decision BLOB,
    -- Milliseconds since 1970. NULL: not ended, recovery has to deliver the decision.
    ended_ms INTEGER,
    ending BLOB,
    -- 1 if a branch ended differently from the decision, else NULL: what an operator looks for.
    heuristic INTEGER CHECK (heuristic = 1),
    CHECK ((ended_ms IS NULL) = (ending IS NULL)),
    CHECK (decision IS NOT NULL OR ending IS NOT NULL)
) STRICT, WITHOUT ROWID;

-- What recovery reads. Rows leave it when they end, so it is as small as what is unfinished.
CREATE INDEX unfinished ON transactions (gtrid) WHERE ended_ms IS NULL;

-- Few, one hopes.
CREATE INDEX heuristic ON transactions (gtrid) WHERE heuristic = 1;

-- Every life of a coordinator on this log: incarnation, newest forced batch, whether it is sealed.
CREATE TABLE epochs (
    number INTEGER NOT NULL PRIMARY KEY,
    record BLOB NOT NULL
) STRICT;

-- Every resource manager that ever attached: identity, location, timeline, floor.
CREATE TABLE resource_managers (
    name TEXT NOT NULL PRIMARY KEY,
    record BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Single facts: 'cluster', made once with the log; 'horizon', the time of the newest transaction ever pruned.
CREATE TABLE marks (
    name TEXT NOT NULL PRIMARY KEY,
    record BLOB NOT NULL
) STRICT, WITHOUT ROWID;
