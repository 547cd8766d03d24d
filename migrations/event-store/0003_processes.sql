-- What processes have yet to do. A process reacts to events by sending commands: a task is an event that one has not yet
-- reacted to. It follows the log as read models do, so its tasks and its checkpoint commit together and no event is
-- forgotten; a task is deleted when its reaction is durable, so a crash at any point repeats it, and every reaction is safe
-- to repeat.

-- As in the read models: how far each process has looked for tasks.
CREATE TABLE checkpoints (
    projection text        NOT NULL,
    version    integer     NOT NULL,
    shard      smallint    NOT NULL,
    position   bigint      NOT NULL DEFAULT 0 CHECK (position >= 0),
    updated_at timestamptz NOT NULL DEFAULT now(),
    stopped    text,
    PRIMARY KEY (projection, version, shard)
) WITH (fillfactor = 20);

CREATE TABLE tasks (
    process  text        NOT NULL,
    -- The event to react to.
    shard    smallint    NOT NULL,
    position bigint      NOT NULL,
    added_at timestamptz NOT NULL DEFAULT now(),
    -- Not before. While somebody works on it, when somebody else may.
    due_at   timestamptz NOT NULL DEFAULT now(),
    attempts integer     NOT NULL DEFAULT 0,
    -- Why it is not done yet, for whoever is called at night.
    error    text,
    PRIMARY KEY (process, shard, position)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE INDEX tasks_by_due ON tasks (process, due_at);

GRANT USAGE ON SCHEMA public TO skyriff_process;
GRANT SELECT ON store, shards, heads, events TO skyriff_process;
GRANT SELECT, INSERT, UPDATE ON checkpoints TO skyriff_process;
GRANT SELECT, INSERT, UPDATE, DELETE ON tasks TO skyriff_process;
GRANT SELECT ON checkpoints, tasks TO skyriff_query;
