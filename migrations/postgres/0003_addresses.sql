-- Where a node is reached, as participants and applications are told. Empty: it was not told so itself, or is older than this column.
ALTER TABLE lockstep_log.leases ADD COLUMN address text NOT NULL DEFAULT '' CHECK (octet_length(address) <= 255);
