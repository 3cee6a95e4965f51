CREATE TABLE vodup_cluster (
    id integer PRIMARY KEY CHECK (id = 1),
    schema_version integer NOT NULL,
    procrastinate text NOT NULL      -- the newest of its migrations that is applied
);
-- One row for each row of a manifest, whatever became of it. json, not jsonb: a record is
-- returned as it was written, and a path may hold bytes that are not UTF-8.
CREATE TABLE vodup_job (
    id text PRIMARY KEY,             -- as in a ledger
    manifest text NOT NULL,
    number bigint NOT NULL,
    run text NOT NULL,               -- of the enqueue that named it last
    queue text,                      -- NULL for a row that was refused
    spec json NOT NULL,
    job_id bigint,                   -- procrastinate's, while there is one
    status text NOT NULL CHECK (status IN ('queued', 'done', 'failed')),
    failure_count integer NOT NULL DEFAULT 0,
    problem text,                    -- why the last attempt did not end it
    record json,                     -- the final one
    ended_xid xid8,                  -- the transaction that ended it: readers follow these
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);
CREATE INDEX vodup_job_ended ON vodup_job (ended_xid) WHERE ended_xid IS NOT NULL;
CREATE INDEX vodup_job_manifest ON vodup_job (manifest);
CREATE TABLE vodup_budget (
    name text PRIMARY KEY,
    next_at double precision NOT NULL  -- seconds since 1970 on this database's clock
);
