-- The counts of likes, by the shard of those who like.
--
-- A database may have rows of a shard that nobody reads here: while the shard's read models are built here before it
-- moves in, and after it has moved out. A query asks for the shards that its configuration says live here, so what is
-- counted has to know its shard as well. A work has at most a row a shard.
--
-- Both tables are sums over `likes`, so they are made again from there.

ALTER TABLE work_likes DROP CONSTRAINT work_likes_pkey;
ALTER TABLE work_likes_by_hour DROP CONSTRAINT work_likes_by_hour_pkey;
ALTER TABLE work_likes ADD COLUMN shard smallint;
ALTER TABLE work_likes_by_hour ADD COLUMN shard smallint;

DELETE FROM work_likes;
DELETE FROM work_likes_by_hour;
INSERT INTO work_likes (work_id, shard, likes) SELECT work_id, shard, count(*) FROM likes GROUP BY 1, 2;
INSERT INTO work_likes_by_hour (hour, work_id, shard, likes)
SELECT date_trunc('hour', liked_at, 'UTC'), work_id, shard, count(*) FROM likes GROUP BY 1, 2, 3;

ALTER TABLE work_likes ADD PRIMARY KEY (work_id, shard);
ALTER TABLE work_likes_by_hour ADD PRIMARY KEY (hour, work_id, shard);
