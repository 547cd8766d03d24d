-- What has become of each video job, for its owner's list, and what making them cost and brought in.

CREATE TABLE video_jobs (
    job                uuid             PRIMARY KEY,
    user_id            uuid             NOT NULL,
    shard              smallint         NOT NULL,
    status             text COLLATE "C" NOT NULL,
    kind               text COLLATE "C" NOT NULL,
    seconds            bigint           NOT NULL CHECK (seconds > 0),
    resolution         text COLLATE "C",
    voice              text COLLATE "C",
    -- What the order named, and what the last attempt was made with.
    wanted             text COLLATE "C",
    provider           text COLLATE "C",
    -- Sealed, as in the event.
    prompt             text             NOT NULL,
    priority           smallint         NOT NULL,
    attempt            bigint           NOT NULL DEFAULT 0,
    held               bigint           NOT NULL CHECK (held > 0),
    used               bigint           CHECK (used BETWEEN 0 AND held),
    reason             text,
    retry_at           timestamptz,
    object             text,
    output_seconds     bigint,
    bytes              bigint,
    sha256             text,
    content_type       text,
    submitted_at       timestamptz      NOT NULL,
    updated_at         timestamptz      NOT NULL,
    -- Where in the shard's log it was submitted: the order of its owner's list.
    submitted_position bigint           NOT NULL,
    position           bigint           NOT NULL CHECK (position >= submitted_position),
    CHECK ((used IS NULL) = (status <> 'succeeded'))
) WITH (fillfactor = 80);

CREATE INDEX video_jobs_of_user ON video_jobs (user_id, submitted_position DESC);
CREATE INDEX video_jobs_of_user_by_status ON video_jobs (user_id, status, submitted_position DESC);

-- By the UTC day on which an attempt ended. Per shard, so that each is added to by one projector only.
CREATE TABLE video_costs (
    day             date             NOT NULL,
    provider        text COLLATE "C" NOT NULL,
    kind            text COLLATE "C" NOT NULL,
    -- What the provider was paid in.
    currency        text COLLATE "C" NOT NULL,
    shard           smallint         NOT NULL,
    succeeded       bigint           NOT NULL CHECK (succeeded >= 0),
    failed_attempts bigint           NOT NULL CHECK (failed_attempts >= 0),
    -- What the owners paid.
    points          bigint           NOT NULL CHECK (points >= 0),
    -- What the provider wanted, in millionths of the currency's unit.
    cost_micros     bigint           NOT NULL CHECK (cost_micros >= 0),
    PRIMARY KEY (day, provider, kind, currency, shard)
) WITH (fillfactor = 80);

GRANT SELECT, INSERT, UPDATE, DELETE ON video_jobs, video_costs TO skyriff_project;
GRANT SELECT ON video_jobs, video_costs TO skyriff_query;
