//! A sealer that ends anywhere, two at once, a storage that fails: the history is one, and goes on.

use std::{
    fs,
    time::{Duration, Instant},
};

use skyriff_domain::{LogPosition, Position, ShardId};
use skyriff_proof::answer::Inclusion;
use skyriff_seal::{Sealer, rows};

use crate::world::{World, eventually};

#[tokio::test]
async fn what_is_recorded_is_sealed_within_a_second_or_so_and_can_be_shown() {
    let mut world = World::new().await;
    let sealer = world.sealer();
    let first = world.sealed(&[(0, 0), (15, 0)]).await;
    assert_eq!(first.number(), 1);
    world.append(3, 300).await;
    let appended = Instant::now();
    world.append(9, 1).await;
    let seal = world.sealed(&[(3, 300), (9, 1)]).await;
    assert!(appended.elapsed() < Duration::from_secs(10), "{:?}", appended.elapsed());
    let (ledger, pool) = (world.ledger(), world.pool());
    for (shard, position) in [(3, 1), (3, 256), (3, 257), (3, 300), (9, 1)] {
        let at = LogPosition { shard: ShardId(shard), position: Position(position) };
        let event = rows::read_at(&pool, at).await.unwrap().unwrap();
        let hashes = ledger.inclusion(&seal, at.shard, event.index().unwrap()).await.unwrap();
        let answer = Inclusion { checkpoint: seal.note().clone(), event, hashes };
        assert_eq!(answer.check(ledger.keys().known()), Ok(()), "{at}");
    }
    // Nothing new, nothing signed.
    let number = world.store().newest().await.unwrap().unwrap().number();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(world.store().newest().await.unwrap().unwrap().number(), number);
    sealer.stop().await;
    world.check_history().await;
}

/// A sealer in a runtime of its own, which can end at any moment without anything in it being told.
struct Mortal(Option<tokio::runtime::Runtime>);

impl Mortal {
    fn start(world: &World) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // Pools belong to the runtime that uses them.
        let guard = runtime.enter();
        let sealer = Sealer::start(world.settings());
        drop(guard);
        std::mem::forget(sealer);
        Self(Some(runtime))
    }

    fn kill(mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sealers_that_end_at_any_moment_leave_one_history() {
    let mut world = World::new().await;
    // Different moments each time: from before it has the lock to after some seals.
    for turn in 0..24_u64 {
        let sealer = Mortal::start(&world);
        for part in 0..3 {
            world.append(i16::try_from(turn % 4).unwrap(), 70 + part).await;
            tokio::time::sleep(Duration::from_millis((turn * 37 + 11) % 400)).await;
        }
        sealer.kill();
    }
    let sealer = world.sealer();
    let sizes: Vec<(u16, u64)> = (0..4).map(|shard| (shard, 6 * (70 + 71 + 72))).collect();
    world.sealed(&sizes).await;
    sealer.stop().await;
    assert!(world.check_history().await > 5);
}

#[tokio::test]
async fn of_two_sealers_one_is_at_work_and_the_other_takes_over() {
    let mut world = World::new().await;
    let (one, two) = (world.sealer(), world.sealer());
    for round in 1..=3 {
        world.append(1, 10).await;
        world.sealed(&[(1, round * 10)]).await;
    }
    one.stop().await;
    world.append(1, 10).await;
    world.sealed(&[(1, 40)]).await;
    let third = world.sealer();
    two.stop().await;
    world.append(1, 10).await;
    world.sealed(&[(1, 50)]).await;
    third.stop().await;
    world.check_history().await;
}

/// As when a lock is lost without a word: two that both believe to have it. The one that comes second for a number gives up,
/// begins again, and goes on where the other is.
#[tokio::test(flavor = "multi_thread")]
async fn two_sealers_without_a_lock_between_them_make_one_history() {
    let mut world = World::new().await;
    let mut elsewhere = world.settings();
    // Another database of the same server has another lock.
    elsewhere.lock = world.databases.read_models(skyriff_postgres::databases::PROJECT);
    let (one, two) = (world.sealer(), Sealer::start(elsewhere));
    for round in 1..=12 {
        for shard in 0..5 {
            world.append(shard, 40 + i64::from(shard)).await;
        }
        world.sealed(&[(4, round * 44)]).await;
    }
    world.sealed(&[(0, 480), (1, 492), (2, 504), (3, 516), (4, 528)]).await;
    one.stop().await;
    two.stop().await;
    world.check_history().await;
}

/// As after a failover that left the old primary running, with a sealer of its own: each has another end of the log, and its own
/// lock. Whoever comes second for a number takes over what the other has signed, and signs nothing that contradicts it.
#[tokio::test]
async fn two_sealers_of_logs_that_went_apart_do_not_take_back_what_the_other_signed() {
    let (mut here, mut there) = (World::new().await, World::new().await);
    let one = here.sealer();
    let two = Sealer::start(skyriff_seal::Settings { storage: here.storage(), ..there.settings() });
    for round in 1..=3 {
        there.append(2, 3).await;
        here.sealed(&[(1, (round - 1) * 5), (2, round * 3)]).await;
        here.append(1, 5).await;
        here.sealed(&[(1, round * 5), (2, round * 3)]).await;
    }
    one.stop().await;
    two.stop().await;
    let store = here.store();
    let newest = store.newest().await.unwrap().unwrap().number();
    let mut before = store.get(1).await.unwrap().unwrap();
    for number in 2..=newest {
        let seal = store.get(number).await.unwrap().unwrap();
        for ((shard, old), (_, new)) in before.top().heads().zip(seal.top().heads()) {
            assert!(new == old || new.size > old.size, "shard {shard} in {number}: {old:?} {new:?}");
        }
        before = seal;
    }
}

/// Of copies that are behind and away what they have is taken, and the rest from the primary; none of them is believed when it has
/// less than what was sealed.
#[tokio::test]
async fn copies_that_are_behind_or_away_hold_nothing_up() {
    let mut world = World::new().await;
    let behind = World::new().await;
    let mut settings = world.settings();
    let nowhere = world.databases.event_store("skyriff_nobody");
    settings.logs[0].replicas =
        vec![behind.pool(), skyriff_postgres::testing::TestDatabases::pool(nowhere), behind.pool()];
    let sealer = Sealer::start(settings);
    for round in 1..=3 {
        world.append(4, 10).await;
        world.append(5, 10).await;
        world.sealed(&[(4, round * 10), (5, round * 10)]).await;
    }
    sealer.stop().await;
    world.check_history().await;
}

#[tokio::test]
async fn a_storage_that_fails_is_waited_for() {
    let mut world = World::new().await;
    let sealer = world.sealer();
    world.append(2, 400).await;
    world.sealed(&[(2, 400)]).await;
    // A file where the folder of the next tiles should be, and one in the place of the last seals.
    let tiles = world.file("2/tile");
    let away = world.file("away");
    fs::rename(&tiles, &away).unwrap();
    fs::write(&tiles, "in the way").unwrap();
    world.append(2, 400).await;
    world.append(3, 1).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let store = world.store();
    assert_eq!(store.newest().await.unwrap().unwrap().head(ShardId(2)).unwrap().size, 400);
    fs::remove_file(&tiles).unwrap();
    fs::rename(&away, &tiles).unwrap();
    world.sealed(&[(2, 800), (3, 1)]).await;
    sealer.stop().await;
    world.check_history().await;
}

#[tokio::test]
async fn partial_tiles_go_when_they_are_full() {
    let mut world = World::new().await;
    let sealer = world.sealer();
    let mut size = 0;
    for events in [5, 100, 100, 50] {
        world.append(7, events).await;
        size += u64::try_from(events).unwrap();
        world.sealed(&[(7, size)]).await;
    }
    assert_eq!(world.tiles(7), (0, 4));
    world.append(7, 10).await;
    world.sealed(&[(7, 265)]).await;
    // A full one, what is after it, and what is above it.
    eventually("the others are gone", async || (world.tiles(7) == (1, 2)).then_some(())).await;
    sealer.stop().await;
    // Nothing is left of what was being written.
    assert_eq!(fs::read_dir(world.file("unfinished")).unwrap().count(), 0);
    world.check_history().await;
}
