-- Which video job is whose turn. The log decides what becomes of a job; this is a hint that makes deciding cheap: it is kept
-- up with the log by a follower (checkpoint 'video_queue'), may be emptied and built again, and whatever it says wrongly
-- is refused by the job's own stream. A job is here for as long as it is open.
--
-- Two kinds of columns: what the log says, written by the follower alone, and what only concerns the moment (claims,
-- heartbeats), written by the nodes that serve workers. So the two never wait for each other for long.

CREATE TABLE video_queue (
    job           uuid             PRIMARY KEY,
    user_id       uuid             NOT NULL,
    shard         smallint         NOT NULL,
    kind          text COLLATE "C" NOT NULL,
    seconds       integer          NOT NULL,
    resolution    text,
    voice         text,
    -- The provider that the order named; empty when any will do.
    wanted        text COLLATE "C" NOT NULL,
    -- Sealed under the key of the person.
    prompt        text             NOT NULL,
    submitted_at  timestamptz      NOT NULL,
    -- Whose turn is oldest comes first: when it was submitted, minus a while for each step of its priority. So a higher
    -- priority comes first, and everybody's turn comes.
    turn_at       timestamptz      NOT NULL,
    status        text             NOT NULL CHECK (status IN ('queued', 'leased')),
    -- The one that runs, or the last one; 0 before the first.
    attempt       integer          NOT NULL CHECK (attempt >= 0),
    -- While it is queued: not before.
    ready_at      timestamptz      NOT NULL,
    leased_at     timestamptz,

    -- A node is about to lease it; others look elsewhere until then.
    claimed_until timestamptz,
    -- What it is being made with, from the claim on.
    provider      text COLLATE "C",
    -- After this its worker counts as dead.
    lease_until   timestamptz,
    -- In per cent, as the worker says.
    progress      smallint         NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE INDEX video_queue_by_turn ON video_queue (kind, wanted, turn_at) WHERE status = 'queued';
CREATE INDEX video_queue_by_age ON video_queue (submitted_at) WHERE status = 'queued';
-- Neither this nor any other index has a column that heartbeats write.
CREATE INDEX video_queue_in_flight ON video_queue (provider) WHERE provider IS NOT NULL;

-- How long jobs took, lately: what estimates are made of.
CREATE TABLE video_runs (
    job         uuid             PRIMARY KEY,
    kind        text COLLATE "C" NOT NULL,
    finished_at timestamptz      NOT NULL,
    run_ms      bigint           NOT NULL CHECK (run_ms >= 0)
);
CREATE INDEX video_runs_by_time ON video_runs (kind, finished_at);

-- Providers that have failed. Without a row all is well; with paused_until in the future the provider gets no jobs; after
-- that it gets a few, and the first outcome decides.
CREATE TABLE video_providers (
    provider     text COLLATE "C" PRIMARY KEY,
    paused_until timestamptz      NOT NULL,
    -- In a row: each pause is twice as long as the one before.
    pauses       integer          NOT NULL CHECK (pauses > 0)
);

-- How attempts went lately, in pieces of a second; what is older than the window is deleted.
CREATE TABLE video_outcomes (
    provider  text COLLATE "C" NOT NULL,
    at        timestamptz      NOT NULL,
    succeeded bigint           NOT NULL,
    failed    bigint           NOT NULL,
    PRIMARY KEY (provider, at)
);

-- Claim jobs that are ready, for workers that all can do the same: the oldest turns, each with the provider that it is to
-- be made with. A claim is over after claim_s seconds; the job is then anybody's again.
--
-- caps: how many jobs each of the providers may have in flight at once, in this database; null for any number.
-- trial_max: the same while it is tried again after a pause.
CREATE FUNCTION claim_video_jobs(
    kinds text[], providers text[], caps integer[], trial_max integer, jobs_max integer, claim_s double precision
) RETURNS SETOF video_queue LANGUAGE plpgsql AS $$
DECLARE
    rooms     integer[] := '{}';
    room      integer;
    any_room  integer;
    paused    timestamptz;
    candidate record;
    place     integer;
    jobs      uuid[] := '{}';
    chosen    text[] := '{}';
BEGIN
    -- Most of the time nothing is ready: then nobody waits for anybody.
    IF NOT EXISTS (SELECT FROM unnest(kinds) k, unnest(providers || ''::text) w
                   CROSS JOIN LATERAL (SELECT FROM video_queue q
                       WHERE q.status = 'queued' AND q.kind = k AND q.wanted = w AND q.ready_at <= now()
                         AND (q.claimed_until IS NULL OR q.claimed_until <= now())
                       LIMIT 1) ready) THEN
        RETURN;
    END IF;
    -- What is counted must not change until it is claimed. Only where something is counted.
    IF EXISTS (SELECT FROM unnest(caps) c WHERE c IS NOT NULL)
       OR EXISTS (SELECT FROM video_providers v WHERE v.provider = ANY (providers)) THEN
        -- 'SkyV'
        PERFORM pg_advisory_xact_lock(x'536b7956'::integer, 0);
    END IF;
    FOR place IN 1 .. cardinality(providers) LOOP
        SELECT v.paused_until INTO paused FROM video_providers v WHERE v.provider = providers[place];
        room := coalesce(caps[place], jobs_max);
        IF paused > now() THEN
            room := 0;
        ELSIF paused IS NOT NULL THEN
            room := least(room, trial_max);
        END IF;
        IF room > 0 AND (caps[place] IS NOT NULL OR paused IS NOT NULL) THEN
            room := room - (SELECT count(*) FROM (
                SELECT FROM video_queue q
                WHERE q.provider = providers[place] AND (q.status = 'leased' OR q.claimed_until > clock_timestamp())
                LIMIT room) in_flight);
        END IF;
        rooms := rooms || greatest(room, 0);
    END LOOP;

    any_room := least(jobs_max, (SELECT sum(r)::integer FROM unnest(rooms) r));

    FOR candidate IN
        SELECT c.job, c.wanted FROM unnest(kinds) k, unnest(providers || ''::text, rooms || any_room) w (provider, room)
        CROSS JOIN LATERAL (
            SELECT q.job, q.wanted, q.turn_at FROM video_queue q
            WHERE q.status = 'queued' AND q.kind = k AND q.wanted = w.provider AND q.ready_at <= now()
              AND (q.claimed_until IS NULL OR q.claimed_until <= now())
            ORDER BY q.turn_at LIMIT least(w.room, jobs_max) FOR UPDATE SKIP LOCKED
        ) c
        ORDER BY c.turn_at
    LOOP
        EXIT WHEN cardinality(jobs) >= jobs_max;
        FOR place IN 1 .. cardinality(providers) LOOP
            IF rooms[place] > 0 AND candidate.wanted IN ('', providers[place]) THEN
                rooms[place] := rooms[place] - 1;
                jobs := jobs || candidate.job;
                chosen := chosen || providers[place];
                EXIT;
            END IF;
        END LOOP;
    END LOOP;
    RETURN QUERY
        UPDATE video_queue q SET claimed_until = clock_timestamp() + make_interval(secs => claim_s), provider = c.provider
        FROM unnest(jobs, chosen) c (job, provider) WHERE q.job = c.job RETURNING q.*;
END
$$;

-- Count how attempts went at one provider, and pause it when too many failed. Closed, open and half-open, as circuit
-- breakers call it: no row, paused_until in the future, paused_until in the past.
CREATE FUNCTION note_video_outcomes(
    of_provider text, more_succeeded bigint, more_failed bigint, failures_min bigint, window_s double precision,
    pause_s double precision, pause_max_s double precision
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    before video_providers;
    total  record;
BEGIN
    PERFORM pg_advisory_xact_lock(x'536b7956'::integer, 0);
    SELECT * INTO before FROM video_providers v WHERE v.provider = of_provider;
    IF before.paused_until > now() THEN
        -- Of attempts from before the pause: they say nothing that is not known.
        RETURN 'open';
    END IF;
    IF before.provider IS NOT NULL THEN
        IF more_failed > 0 THEN
            UPDATE video_providers v
            SET pauses = least(v.pauses + 1, 30),
                paused_until = now() + make_interval(secs => least(pause_s * 2 ^ least(v.pauses, 30), pause_max_s))
            WHERE v.provider = of_provider;
            RETURN 'open';
        ELSIF more_succeeded > 0 THEN
            DELETE FROM video_providers v WHERE v.provider = of_provider;
            RETURN 'closed';
        END IF;
        RETURN 'half_open';
    END IF;
    DELETE FROM video_outcomes o WHERE o.provider = of_provider AND o.at <= now() - make_interval(secs => window_s);
    INSERT INTO video_outcomes AS o (provider, at, succeeded, failed)
    VALUES (of_provider, date_trunc('second', now()), more_succeeded, more_failed)
    ON CONFLICT (provider, at) DO UPDATE
    SET succeeded = o.succeeded + excluded.succeeded, failed = o.failed + excluded.failed;
    SELECT sum(o.succeeded) AS succeeded, sum(o.failed) AS failed INTO total
    FROM video_outcomes o WHERE o.provider = of_provider;
    IF total.failed >= failures_min AND total.failed >= total.succeeded THEN
        INSERT INTO video_providers VALUES (of_provider, now() + make_interval(secs => pause_s), 1);
        DELETE FROM video_outcomes o WHERE o.provider = of_provider;
        RETURN 'open';
    END IF;
    RETURN 'closed';
END
$$;

REVOKE ALL ON FUNCTION claim_video_jobs, note_video_outcomes FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_video_jobs TO skyriff_command;
GRANT EXECUTE ON FUNCTION note_video_outcomes TO skyriff_process;
GRANT SELECT ON video_queue, video_runs, video_providers, video_outcomes TO skyriff_command, skyriff_process, skyriff_query;
GRANT UPDATE (claimed_until, provider, lease_until, progress) ON video_queue TO skyriff_command;
GRANT INSERT, UPDATE, DELETE ON video_queue, video_runs, video_providers, video_outcomes TO skyriff_process;
