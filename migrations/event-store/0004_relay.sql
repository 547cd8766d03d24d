-- How far the relay has sent each shard's log to a topic: what a broker has acknowledged, and never more. A relay that
-- starts goes on from here, so what was acknowledged and not written down yet is sent a second time, which is harmless:
-- who follows the topic goes by positions.
--
-- The relay reads the log and writes here, and may do nothing else; it never holds a lock that an append wants.

GRANT USAGE ON SCHEMA public TO skyriff_relay;

CREATE TABLE relay_checkpoints (
    topic      text        NOT NULL,
    shard      smallint    NOT NULL REFERENCES shards,
    position   bigint      NOT NULL DEFAULT 0 CHECK (position >= 0),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Why the shard stands still, for whoever is called at night; null while it runs.
    stopped    text,
    PRIMARY KEY (topic, shard)
) WITH (fillfactor = 20);

GRANT SELECT ON store, shards, heads, events TO skyriff_relay;
GRANT SELECT, INSERT, UPDATE ON relay_checkpoints TO skyriff_relay;
GRANT SELECT ON relay_checkpoints TO skyriff_query;
