-- An order that names no provider is one for something that can be watched or heard, and 'noop' makes nothing at all, for
-- load runs. So only jobs that name 'noop' go to it; before, it took whatever named nobody, and was paid in full.
--
-- Claim jobs that are ready, for workers that all can do the same: the oldest turns, each with the provider that it is to
-- be made with. A claim is over after claim_s seconds; the job is then anybody's again.
--
-- caps: how many jobs each of the providers may have in flight at once, in this database; null for any number.
-- trial_max: the same while it is tried again after a pause.
CREATE OR REPLACE FUNCTION claim_video_jobs(
    kinds text[], providers text[], caps integer[], trial_max integer, jobs_max integer, claim_s double precision
) RETURNS SETOF video_queue LANGUAGE plpgsql AS $$
DECLARE
    rooms     integer[] := '{}';
    room      integer;
    any_room  integer;
    paused    timestamptz;
    candidate record;
    place     integer;
    -- The providers, and the empty name when one of them takes jobs that name none.
    wanted_by text[] := providers;
    jobs      uuid[] := '{}';
    chosen    text[] := '{}';
BEGIN
    IF EXISTS (SELECT FROM unnest(providers) p WHERE p <> 'noop') THEN
        wanted_by := wanted_by || ''::text;
    END IF;
    -- Most of the time nothing is ready: then nobody waits for anybody.
    IF NOT EXISTS (SELECT FROM unnest(kinds) k, unnest(wanted_by) w
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

    any_room := least(jobs_max, (SELECT sum(w.room)::integer FROM unnest(providers, rooms) w (provider, room)
                                 WHERE w.provider <> 'noop'));

    -- One more room than wanted_by has names is one that nobody wants.
    FOR candidate IN
        SELECT c.job, c.wanted FROM unnest(kinds) k, unnest(wanted_by, rooms || any_room) w (provider, room)
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
            IF rooms[place] > 0 AND (candidate.wanted = providers[place]
                                     OR candidate.wanted = '' AND providers[place] <> 'noop') THEN
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
