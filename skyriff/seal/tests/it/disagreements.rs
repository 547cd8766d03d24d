//! A log that contradicts what was signed: its shard stands still, loudly, and nothing that was signed is contradicted.

use std::{fs, time::Duration};

use skyriff_domain::ShardId;
use skyriff_seal::{Sealer, Settings};

use crate::world::{World, eventually};

/// What is signed of shard 1 stays as it is, while another shard goes on.
async fn stands_still(world: &mut World, at: u64, other: u64) {
    world.append(2, 1).await;
    world.sealed(&[(1, at), (2, other)]).await;
    world.append(1, 3).await;
    world.append(2, 1).await;
    let seal = world.sealed(&[(1, at), (2, other + 1)]).await;
    assert_eq!(seal.head(ShardId(1)), world.store().get(1).await.unwrap().unwrap().head(ShardId(1)));
}

#[tokio::test]
async fn a_shard_whose_sealed_events_were_edited_is_not_sealed_any_further() {
    for (edit, repair) in [
        // The last event, before and after the sealer looked at it; and one that was sealed with the same tile.
        (
            "UPDATE events SET payload = '{}' WHERE shard = 1 AND position = 300",
            "UPDATE events SET payload = '{ \"number\":300, \"text\":\"积分\"}' WHERE shard = 1 AND position = 300",
        ),
        (
            "UPDATE events SET event_version = '2' WHERE shard = 1 AND position = 257",
            "UPDATE events SET event_version = '1' WHERE shard = 1 AND position = 257",
        ),
    ] {
        let mut world = World::new().await;
        world.append(1, 300).await;
        let sealer = world.sealer();
        world.sealed(&[(1, 300)]).await;
        sealer.stop().await;
        world.execute(edit).await;
        let sealer = world.sealer();
        stands_still(&mut world, 300, 1).await;
        // What was is again: then it goes on.
        world.execute(repair).await;
        world.sealed(&[(1, 303)]).await;
        sealer.stop().await;
        world.check_history().await;
    }
}

/// While a sealer is at work, and the log never becomes shorter.
#[tokio::test]
async fn a_last_event_that_is_edited_after_it_was_sealed_is_noticed_with_the_next() {
    let mut world = World::new().await;
    let sealer = world.sealer();
    world.append(1, 300).await;
    world.sealed(&[(1, 300)]).await;
    world.execute("UPDATE events SET metadata = '{ }' WHERE shard = 1 AND position = 300").await;
    world.append(1, 1).await;
    world.append(2, 1).await;
    world.sealed(&[(1, 300), (2, 1)]).await;
    world.append(2, 1).await;
    world.sealed(&[(1, 300), (2, 2)]).await;
    world.execute("UPDATE events SET metadata = '{}' WHERE shard = 1 AND position = 300").await;
    world.sealed(&[(1, 301)]).await;
    sealer.stop().await;
    world.check_history().await;
}

#[tokio::test]
async fn a_shard_whose_last_event_is_gone_is_not_sealed_any_further() {
    for restart in [false, true] {
        let mut world = World::new().await;
        world.append(1, 300).await;
        let first = world.sealer();
        world.sealed(&[(1, 300)]).await;
        let delete = "DELETE FROM events WHERE shard = 1 AND position = 300";
        let sealer = if restart {
            first.stop().await;
            world.execute(delete).await;
            world.sealer()
        } else {
            world.execute(delete).await;
            first
        };
        // Others took the place of the one that is gone: the log is as long again, and longer.
        stands_still(&mut world, 300, 1).await;
        sealer.stop().await;
        let newest = world.store().newest().await.unwrap().unwrap();
        assert_eq!(newest.head(ShardId(1)), world.store().get(1).await.unwrap().unwrap().head(ShardId(1)));
    }
}

#[tokio::test]
async fn a_gap_is_not_sealed() {
    let mut world = World::new().await;
    let sealer = world.sealer();
    world.append(1, 10).await;
    world.sealed(&[(1, 10)]).await;
    sealer.stop().await;
    world.append(1, 10).await;
    world.execute("DELETE FROM events WHERE shard = 1 AND position = 15").await;
    let sealer = world.sealer();
    world.append(2, 1).await;
    world.sealed(&[(1, 10), (2, 1)]).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    world.sealed(&[(1, 10), (2, 1)]).await;
    sealer.stop().await;
}

#[tokio::test]
async fn tiles_that_are_not_what_was_signed_stop_their_shard() {
    let mut world = World::new().await;
    world.append(1, 300).await;
    let sealer = world.sealer();
    world.sealed(&[(1, 300)]).await;
    sealer.stop().await;
    let tile = world.file("1/tile/0/001.p/44");
    let kept = fs::read(&tile).unwrap();
    for damaged in [[&kept[1..], b"x"].concat(), kept[32..].to_vec(), Vec::new()] {
        fs::write(&tile, damaged).unwrap();
        let sealer = world.sealer();
        world.append(1, 1).await;
        world.append(2, 1).await;
        let head = world.store().newest().await.unwrap().unwrap().head(ShardId(2)).unwrap().size;
        eventually("the other shard goes on", async || {
            let newest = world.store().newest().await.unwrap().unwrap();
            (newest.head(ShardId(2)).unwrap().size > head).then_some(())
        })
        .await;
        assert_eq!(world.store().newest().await.unwrap().unwrap().head(ShardId(1)).unwrap().size, 300);
        sealer.stop().await;
    }
    fs::write(&tile, kept).unwrap();
    let sealer = world.sealer();
    world.sealed(&[(1, 303)]).await;
    sealer.stop().await;
    world.check_history().await;
}

/// Of a sealer that died after it kept tiles, and of a log that lost these events afterwards: never overwritten in silence.
#[tokio::test]
async fn a_tile_of_other_events_is_not_overwritten() {
    let mut world = World::new().await;
    fs::create_dir_all(world.file("1/tile/0")).unwrap();
    let other = world.file("1/tile/0/000");
    fs::write(&other, [7; 8_192]).unwrap();
    world.append(1, 256).await;
    world.append(2, 1).await;
    let sealer = world.sealer();
    world.sealed(&[(1, 0), (2, 1)]).await;
    assert_eq!(fs::read(&other).unwrap(), [7; 8_192]);
    fs::remove_file(&other).unwrap();
    world.sealed(&[(1, 256)]).await;
    sealer.stop().await;
    world.check_history().await;
}

#[tokio::test]
async fn nothing_is_sealed_that_no_standby_has_when_one_is_required() {
    let mut world = World::new().await;
    world.append(3, 2).await;
    let strict = Sealer::start(Settings { require_standby: true, ..world.settings() });
    // It says what is sealed, which is nothing, and goes no further.
    world.sealed(&[(3, 0)]).await;
    world.append(3, 2).await;
    strict.stop().await;
    world.sealed(&[(3, 0)]).await;
    // Whoever requires none goes on from there.
    let other = world.sealer();
    world.sealed(&[(3, 4)]).await;
    other.stop().await;
}
