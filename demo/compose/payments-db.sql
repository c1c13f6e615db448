-- So that a statement which waited for a lock can be told for which one, and `lockstep tx show` whom a branch blocks.
GRANT PROCESS ON *.* TO 'shop'@'%';
