-- What operators did, and which heuristic outcomes they have dealt with.

-- One row for each action, in the order in which they were taken. Never removed: they are few, and somebody may ask years later.
CREATE TABLE lockstep_log.audit (
    id bigint NOT NULL PRIMARY KEY,
    -- The gtrid's 20 bytes, if it was about a transaction.
    gtrid bytea CHECK (octet_length(gtrid) = 20),
    record bytea NOT NULL
);

CREATE INDEX audit_of ON lockstep_log.audit (gtrid) WHERE gtrid IS NOT NULL;

-- Heuristic outcomes that a person has acknowledged. The others are kept for ever, whatever the retention.
CREATE TABLE lockstep_log.acknowledged (
    gtrid bytea NOT NULL PRIMARY KEY CHECK (octet_length(gtrid) = 20),
    audit bigint NOT NULL REFERENCES lockstep_log.audit (id)
);
