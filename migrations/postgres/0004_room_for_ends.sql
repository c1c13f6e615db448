-- Each row is changed once, when its transaction ends. Where the new version fits beside the old one, only what is new of it is written ahead,
-- and no lock of the row; for that, a page is filled to less than half with new rows. Rows that are there already stay where they are.
ALTER TABLE lockstep_log.transactions SET (fillfactor = 45);
