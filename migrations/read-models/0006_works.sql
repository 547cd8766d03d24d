-- What users show.

-- Every work that was ever shown, beside its maker.
CREATE TABLE works (
    work_id      uuid        PRIMARY KEY,
    creator      uuid        NOT NULL,
    shard        smallint    NOT NULL,
    -- Null for one that was made elsewhere.
    job          uuid,
    title        text        NOT NULL,
    visibility   text        NOT NULL CHECK (visibility IN ('public', 'unlisted')),
    shown        boolean     NOT NULL,
    -- The business time at which it was first shown.
    published_at timestamptz NOT NULL,
    position     bigint      NOT NULL
);

-- A maker's page, newest first.
CREATE INDEX works_of_creator ON works (creator, published_at DESC, work_id DESC) WHERE shown;

-- The public ones that are shown now, by month: whoever looks for the newest reads the last partitions only.
CREATE TABLE newest_works (
    published_at timestamptz NOT NULL,
    work_id      uuid        NOT NULL,
    PRIMARY KEY (published_at, work_id)
) PARTITION BY RANGE (published_at);

-- As ensure_ledger_month, for any of the tables that are partitioned by month and that the projector may write.
CREATE FUNCTION ensure_month(of_table text, month date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    first_day date := date_trunc('month', month)::date;
    next_month date := (date_trunc('month', month) + interval '1 month')::date;
    name text := of_table || '_' || to_char(month, 'YYYY_MM');
BEGIN
    IF of_table NOT IN ('newest_works') THEN
        RAISE EXCEPTION '% has no months', of_table;
    END IF;
    IF to_regclass(name) IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('ensure_month'));
    IF to_regclass(name) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', name, of_table);
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   of_table, name, first_day::timestamptz, next_month::timestamptz);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON %I TO skyriff_project', name);
    EXECUTE format('GRANT SELECT ON %I TO skyriff_query', name);
END
$$;

REVOKE ALL ON FUNCTION ensure_month FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ensure_month TO skyriff_project;
GRANT SELECT, INSERT, UPDATE ON works TO skyriff_project;
GRANT SELECT, INSERT, DELETE ON newest_works TO skyriff_project;
GRANT SELECT ON works, newest_works TO skyriff_query;
