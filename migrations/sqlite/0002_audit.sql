-- What operators did, and which heuristic outcomes they have dealt with.

-- One row for each action, in the order in which they were taken. Never removed: they are few, and somebody may ask years later.
CREATE TABLE audit (
    id INTEGER NOT NULL PRIMARY KEY,
    -- The gtrid's 20 bytes, if it was about a transaction.
    gtrid BLOB CHECK (length(gtrid) = 20),
    record BLOB NOT NULL
) STRICT;

CREATE INDEX audit_of ON audit (gtrid) WHERE gtrid IS NOT NULL;

-- Heuristic outcomes that a person has acknowledged. The others are kept for ever, whatever the retention.
CREATE TABLE acknowledged (
    gtrid BLOB NOT NULL PRIMARY KEY CHECK (length(gtrid) = 20),
    audit INTEGER NOT NULL REFERENCES audit (id)
) STRICT, WITHOUT ROWID;
