-- Who likes what, and how many likes each work has from the users who live in this database.
--
-- The events of one work come from every shard, since a like lives with the user who gives it. So a work has a row in
-- every read database, kept by what arrives there, and whoever asks adds the rows up. Nothing here is ever waited for
-- across databases.

-- The likes that stand. A user's likes are all of one shard, so positions alone tell them apart and in order.
CREATE TABLE likes (
    user_id  uuid        NOT NULL,
    work_id  uuid        NOT NULL,
    -- The business time; a like that was taken back and given again counts from the second time on.
    liked_at timestamptz NOT NULL,
    shard    smallint    NOT NULL,
    position bigint      NOT NULL,
    PRIMARY KEY (user_id, work_id)
);

-- A user's liked works, newest first.
CREATE INDEX likes_of_user ON likes (user_id, liked_at DESC, position DESC) INCLUDE (work_id);

-- The likes of this database's users, counted. Both tables are sums over `likes`, so a shard that moves to another
-- database takes its part along: the counts of its rows. A work without likes has no row.
--
-- A popular work's row is updated with every batch: room in its page keeps the new versions beside the old ones.
CREATE TABLE work_likes (
    work_id uuid   PRIMARY KEY,
    likes   bigint NOT NULL CHECK (likes > 0)
) WITH (fillfactor = 70);

-- The same by the hour in which they were given (UTC): what the hot list weighs. The hour comes first, since the hot
-- list reads the last hours of all works, and no others.
CREATE TABLE work_likes_by_hour (
    hour    timestamptz NOT NULL,
    work_id uuid        NOT NULL,
    likes   bigint      NOT NULL CHECK (likes > 0),
    PRIMARY KEY (hour, work_id)
) WITH (fillfactor = 70);

GRANT SELECT, INSERT, UPDATE, DELETE ON likes, work_likes, work_likes_by_hour TO skyriff_project;
GRANT SELECT ON likes, work_likes, work_likes_by_hour TO skyriff_query;
