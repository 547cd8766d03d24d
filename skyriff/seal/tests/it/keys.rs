//! Keys change, and what was signed stays good.

use skyriff_domain::ShardId;
use skyriff_proof::{KnownKeys, SignerKey, TopCheckpoint};
use skyriff_seal::{PublicKeys, SealKeys, SealStore, Sealer};

use crate::world::{World, eventually, private};

fn known(keys: &[&SignerKey]) -> KnownKeys {
    KnownKeys::new(keys.iter().map(|key| key.verifier().clone())).unwrap()
}

/// Sealed with these keys, once more than before.
async fn sealed_with(world: &mut World, keys: &[&SignerKey], before: &[&SignerKey]) -> u64 {
    let texts = |keys: &[&SignerKey]| keys.iter().map(|key| key.to_private_text().to_string()).collect::<Vec<_>>();
    let public: Vec<_> = before.iter().map(|key| key.verifier().to_string()).collect();
    let settings = skyriff_seal::Settings {
        keys: SealKeys::new(&texts(keys).join("\n"), &public.join("\n")).unwrap(),
        ..world.settings()
    };
    let all = [keys, before].concat();
    let lines: Vec<_> = all.iter().map(|key| key.verifier().to_string()).collect();
    let store = SealStore::new(world.storage(), PublicKeys::new(&lines.join("\n")).unwrap());
    let last = store.newest().await.unwrap().map_or(0, |seal| seal.number());
    let sealer = Sealer::start(settings);
    world.append(1, 5).await;
    let number = eventually("another seal", async || {
        let newest = store.newest().await.unwrap()?;
        let size = newest.head(ShardId(1)).unwrap().size;
        (newest.number() > last && size.is_multiple_of(5) && size > 0).then_some(newest.number())
    });
    let number = number.await;
    sealer.stop().await;
    number
}

#[tokio::test]
async fn keys_are_changed_and_every_seal_stays_good_with_those_it_was_signed_with() {
    let mut world = World::new().await;
    let (old, new, strange) = (private(1), private(2), private(3));
    let first = sealed_with(&mut world, &[&old], &[]).await;
    let between = sealed_with(&mut world, &[&new, &old], &[]).await;
    let after = sealed_with(&mut world, &[&new], &[&old]).await;
    let all =
        SealStore::new(world.storage(), PublicKeys::new(&format!("{}\n{}", old.verifier(), new.verifier())).unwrap());
    for (number, good, bad) in [
        (first, vec![&old], vec![&new]),
        (between, vec![&old], vec![]),
        (between, vec![&new], vec![]),
        (after, vec![&new], vec![&old]),
    ] {
        let seal = all.get(number).await.unwrap().unwrap();
        for note in [seal.note(), seal.of_shard(ShardId(0)).unwrap(), seal.of_shard(ShardId(1)).unwrap()] {
            assert!(note.open(&known(&good)).is_ok(), "{number}");
            assert!(note.open(&known(&[&strange])).is_err());
            assert!(bad.is_empty() || note.open(&known(&bad)).is_err() || number == after, "{number}");
        }
        assert!(bad.is_empty() || TopCheckpoint::open(seal.note(), &known(&bad)).is_err(), "{number}");
    }
}

#[tokio::test]
async fn a_new_key_signs_at_once_although_nothing_is_new() {
    let mut world = World::new().await;
    let (old, new) = (private(1), private(2));
    let first = sealed_with(&mut world, &[&old], &[]).await;
    let text = format!("{},{}", *new.to_private_text(), *old.to_private_text());
    let settings = skyriff_seal::Settings { keys: SealKeys::new(&text, "").unwrap(), ..world.settings() };
    let sealer = Sealer::start(settings);
    let store = world.store();
    let seal = eventually("signed by both", async || store.get(first + 1).await.unwrap()).await;
    for note in [seal.note(), seal.of_shard(ShardId(0)).unwrap(), seal.of_shard(ShardId(1)).unwrap()] {
        assert!(note.open(&known(&[&new])).is_ok() && note.open(&known(&[&old])).is_ok());
    }
    sealer.stop().await;
}

#[tokio::test]
async fn a_strange_key_or_another_ledger_does_not_go_on() {
    let mut world = World::new().await;
    sealed_with(&mut world, &[&private(1)], &[]).await;
    for (key, why) in [
        (private(2), "no known key has signed the note"),
        (
            SignerKey::from_seed("example.org/other".parse().unwrap(), &[1; 32]).unwrap(),
            "no known key has signed the note",
        ),
    ] {
        let keys = SealKeys::new(&key.to_private_text(), "").unwrap();
        let mut sealer = Sealer::start(skyriff_seal::Settings { keys, ..world.settings() });
        let said = sealer.failed().await;
        assert!(said.contains(why), "{said}");
    }
    let shard_count = skyriff_domain::ShardCount::new(17).unwrap();
    let mut sealer = Sealer::start(skyriff_seal::Settings { shard_count, ..world.settings() });
    let said = sealer.failed().await;
    assert!(said.contains("16 shards") && said.contains("17"), "{said}");
    assert!(world.store().newest().await.unwrap().is_some());
}
