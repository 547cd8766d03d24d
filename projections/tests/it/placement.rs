//! Shards spread over several read databases.

use skyriff_domain::{ShardCount, ShardId, shard_of};
use skyriff_postgres::testing::TestDatabases;
use skyriff_projections::Projection;

use crate::{
    books::{all_shards, balance, checkpoints, connect, projector_into, until},
    log::{Log, some_user},
};

#[tokio::test]
async fn each_read_database_gets_its_shards_and_no_others() {
    let mut log = Log::create().await;
    let second = TestDatabases::create().await;
    let (low, high): (Vec<_>, Vec<_>) = all_shards().into_iter().partition(|shard| shard.0 < 8);
    let projector = projector_into(&log, &[(&log.databases, low.clone()), (&second, high.clone())]);
    let users: Vec<_> = (0..40).map(|_| some_user()).collect();
    for user in &users {
        log.earn(*user, 3).await;
    }
    for (databases, shards) in [(&log.databases, low), (&second, high)] {
        let mut reads = connect(databases).await;
        for projection in Projection::ALL {
            until("every shard is at its head", async || {
                let checkpoints = checkpoints(&mut reads, projection).await;
                let head = |shard: &ShardId| (log.heads().get(shard).copied().unwrap_or_default(), None);
                checkpoints.keys().copied().eq(shards.iter().copied())
                    && checkpoints.iter().all(|(shard, at)| *at == head(shard))
            })
            .await;
        }
        for user in &users {
            let here = shards.contains(&shard_of(*user, ShardCount::default()));
            let expected = here.then(|| [0, 0, 3, 0, 0, 0].into());
            assert_eq!(balance(&mut reads, *user).await, expected);
        }
    }
    projector.stop().await;
}
