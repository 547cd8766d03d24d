-- Versions of a read model: the next one is built beside the live one, takes its place in one transaction, and the one
-- that was live stays for a way back.
--
-- The live tables are always in `public`, so everybody's SQL finds them by their bare names, before and after a switch.
-- The next version is the same tables in the schema NAME_next, the one before in NAME_old, each with a table
-- `checkpoints` of its own: whoever works with that schema first in its search_path feeds it as if it were live.
--
-- A switch moves tables between schemas, which takes exclusive locks. `checkpoints` is locked first, and it is the door:
-- every query names it before anything else, so whoever is inside (has it locked) has what belongs together and is
-- waited for, and whoever comes meanwhile waits holding nothing, and finds the new tables by their names. The locks and
-- the move replicate in this order, so the same holds on a replica.

-- What the roles may do with one table, they may with another.
CREATE FUNCTION copy_grants(of_table regclass, to_table regclass) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT a.privilege_type, pg_get_userbyid(a.grantee) AS grantee FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = of_table AND a.grantee NOT IN (c.relowner, 0)
    LOOP
        EXECUTE format('GRANT %s ON %s TO %I', item.privilege_type, to_table, item.grantee);
    END LOOP;
END
$$;

-- As the older functions of the kind, in any schema that has a version of the table.
CREATE FUNCTION ensure_month(of_schema text, of_table text, month date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    first_day date := date_trunc('month', month)::date;
    next_month date := (date_trunc('month', month) + interval '1 month')::date;
    name text := of_table || '_' || to_char(month, 'YYYY_MM');
BEGIN
    IF of_table NOT IN ('ledger_entries', 'newest_works') OR NOT EXISTS (
        SELECT FROM pg_namespace
        WHERE nspname = of_schema AND (nspname = 'public' OR pg_get_userbyid(nspowner) = current_user)
    ) THEN
        RAISE EXCEPTION '%.% has no months', of_schema, of_table;
    END IF;
    IF to_regclass(format('%I.%I', of_schema, name)) IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('ensure_month'), hashtext(of_schema));
    IF to_regclass(format('%I.%I', of_schema, name)) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING ALL)', of_schema, name, of_table);
    EXECUTE format('ALTER TABLE %1$I.%3$I ATTACH PARTITION %1$I.%2$I FOR VALUES FROM (%4$L) TO (%5$L)',
                   of_schema, name, of_table, first_day::timestamptz, next_month::timestamptz);
    PERFORM public.copy_grants(format('%I.%I', of_schema, of_table)::regclass, format('%I.%I', of_schema, name)::regclass);
END
$$;

-- An empty table like one of `public`, with its constraints, indexes, settings and grants, all by the same names.
CREATE FUNCTION copy_table(name text, to_schema text) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    source pg_class%ROWTYPE;
    item record;
    target text := format('%I.%I', to_schema, name);
BEGIN
    SELECT c.* INTO STRICT source FROM pg_class c WHERE c.oid = format('public.%I', name)::regclass;
    EXECUTE format('CREATE TABLE %s (LIKE public.%I INCLUDING ALL EXCLUDING INDEXES)', target, name)
        || CASE WHEN source.relkind = 'p' THEN ' PARTITION BY ' || pg_get_partkeydef(source.oid) ELSE '' END
        || coalesce(' WITH (' || array_to_string(source.reloptions, ', ') || ')', '');
    FOR item IN
        SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint
        WHERE conrelid = source.oid AND contype IN ('p', 'u', 'x')
    LOOP
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s', target, item.conname, item.definition);
    END LOOP;
    FOR item IN
        SELECT pg_get_indexdef(i.indexrelid) AS definition FROM pg_index i
        WHERE i.indrelid = source.oid AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)
    LOOP
        EXECUTE replace(replace(item.definition, ' ON ONLY ', ' ON '), format(' ON public.%I ', name), format(' ON %s ', target));
    END LOOP;
    PERFORM public.copy_grants(source.oid::regclass, target::regclass);
END
$$;

CREATE FUNCTION make_version_schema(name text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE SCHEMA %I', name);
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO skyriff_project, skyriff_query', name);
    PERFORM public.copy_table('checkpoints', name);
END
$$;

-- An empty version of a read model, to be filled.
CREATE FUNCTION make_version(of_schema text, tables text[]) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;
BEGIN
    PERFORM public.make_version_schema(of_schema);
    FOREACH name IN ARRAY tables LOOP
        PERFORM public.copy_table(name, of_schema);
    END LOOP;
END
$$;

-- With its partitions; indexes go along by themselves.
CREATE FUNCTION move_table(name text, from_schema text, to_schema text) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent regclass := format('%I.%I', from_schema, name)::regclass;
    item record;
BEGIN
    EXECUTE format('ALTER TABLE %s SET SCHEMA %I', parent, to_schema);
    FOR item IN SELECT inhrelid::regclass AS part FROM pg_inherits WHERE inhparent = parent ORDER BY inhrelid LOOP
        EXECUTE format('ALTER TABLE %s SET SCHEMA %I', item.part, to_schema);
    END LOOP;
END
$$;

-- The columns of a table, for comparing.
CREATE FUNCTION columns_of(of_table regclass) RETURNS text[] LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(attname || ' ' || format_type(atttypid, atttypmod) ORDER BY attnum) FROM pg_attribute
    WHERE attrelid = of_table AND attnum > 0 AND NOT attisdropped
$$;

-- Make the version in `incoming` the live one, and what was live the version in `outgoing`, which may be the same name.
-- To be called by a transaction that has made sure that the incoming one has read as far as the live one, and that it
-- cannot move on meanwhile.
CREATE FUNCTION switch_version(of_projection text, tables text[], incoming text, outgoing text) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    leaving text := of_projection || '_leaving';
    name text;
BEGIN
    FOREACH name IN ARRAY tables LOOP
        IF public.columns_of(format('%I.%I', incoming, name)::regclass)
            IS DISTINCT FROM public.columns_of(format('public.%I', name)::regclass)
        THEN
            RAISE EXCEPTION 'the table % has other columns in % than in public: a migration came between; drop that version and build it anew', name, incoming;
        END IF;
    END LOOP;
    PERFORM public.make_version_schema(leaving);
    LOCK TABLE public.checkpoints IN ACCESS EXCLUSIVE MODE;
    FOREACH name IN ARRAY tables LOOP
        PERFORM public.move_table(name, 'public', leaving);
    END LOOP;
    FOREACH name IN ARRAY tables LOOP
        PERFORM public.move_table(name, incoming, 'public');
    END LOOP;
    EXECUTE format('INSERT INTO %I.checkpoints SELECT * FROM public.checkpoints WHERE projection = $1', leaving)
        USING of_projection;
    DELETE FROM public.checkpoints WHERE projection = of_projection;
    EXECUTE format('INSERT INTO public.checkpoints SELECT * FROM %I.checkpoints', incoming);
    EXECUTE format('DROP TABLE %I.checkpoints', incoming);
    EXECUTE format('DROP SCHEMA %I', incoming);
    EXECUTE format('ALTER SCHEMA %I RENAME TO %I', leaving, outgoing);
END
$$;

-- A table of the live version beside the same one of another: how many rows each has, how many are not the same in both,
-- and the first few of those.
CREATE FUNCTION compare_version(of_table text, of_schema text, examples_max integer)
RETURNS TABLE (live_rows bigint, other_rows bigint, differences bigint, examples jsonb) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key text;
    both_sides text;
BEGIN
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.place) INTO STRICT key
    FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = format('public.%I', of_table)::regclass AND i.indisprimary;
    both_sides := format('FROM public.%1$I l FULL JOIN %2$I.%1$I o USING (%3$s)', of_table, of_schema, key);
    EXECUTE 'SELECT count(l.tableoid), count(o.tableoid), count(*) FILTER (WHERE ROW(l.*) IS DISTINCT FROM ROW(o.*)) ' || both_sides
        INTO live_rows, other_rows, differences;
    examples := '[]';
    IF differences > 0 THEN
        EXECUTE 'SELECT jsonb_agg(e) FROM (SELECT to_jsonb(l) AS live, to_jsonb(o) AS other ' || both_sides
            || ' WHERE ROW(l.*) IS DISTINCT FROM ROW(o.*) LIMIT $1) e' INTO examples USING examples_max;
    END IF;
    RETURN NEXT;
END
$$;

REVOKE ALL ON FUNCTION copy_grants, copy_table, make_version_schema, make_version, move_table, columns_of, switch_version,
    compare_version, ensure_month(text, text, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ensure_month(text, text, date) TO skyriff_project;
