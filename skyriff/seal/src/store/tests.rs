use std::fs;

use skyriff_proof::{Head, SignerKey, TopCheckpoint};
use tempfile::TempDir;

use super::*;
use crate::SealKeys;

const MINUTE_US: i64 = 60_000_000;
/// 2026-11-21T22:00:00Z.
const START_US: i64 = 1_795_298_400_000_000;

struct Kept {
    folder: TempDir,
    store: SealStore,
    keys: SealKeys,
}

impl Kept {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = SignerKey::from_seed("example.org/ledger".parse().unwrap(), &[1; 32]).unwrap();
        let keys = SealKeys::new(&key.to_private_text(), "").unwrap();
        let storage = ObjectStorage::open(&format!("file://{}", folder.path().display()), []).unwrap();
        Self { store: SealStore::new(storage, keys.public().clone()), folder, keys }
    }

    /// The next seal, of nothing, so many minutes after the start.
    fn seal(&self, before: Option<&Seal>, minutes: i64) -> Seal {
        let head = Head { size: 0, root: Hash::of_nothing() };
        let top = TopCheckpoint::new(self.keys.ledger().clone(), START_US + minutes * MINUTE_US, vec![head]).unwrap();
        Seal::sign(&self.keys, before, top).unwrap()
    }

    /// Seals of these minutes, one after the other.
    async fn seals(&self, minutes: impl IntoIterator<Item = i64>) -> Vec<Seal> {
        let mut seals: Vec<Seal> = Vec::new();
        for minutes in minutes {
            let seal = self.seal(seals.last(), minutes);
            assert_eq!(self.store.put(seals.last(), &seal).await.unwrap(), skyriff_storage::keep::Kept::Same);
            seals.push(seal);
        }
        seals
    }

    /// In which minute what is found of a minute was sealed.
    async fn at(&self, minutes: i64) -> Option<i64> {
        let newest = self.store.newest().await.unwrap().unwrap();
        let found = self.store.at(&newest, START_US + minutes * MINUTE_US).await.unwrap();
        found.map(|seal| (seal.top().sealed_at_us() - START_US) / MINUTE_US)
    }
}

#[tokio::test]
async fn a_number_is_made_once() {
    let kept = Kept::new();
    let seals = kept.seals([0, 1, 2]).await;
    assert_eq!(kept.store.newest().await.unwrap().unwrap(), seals[2]);
    // Whoever made it may say it again, and nobody may say anything else.
    assert_eq!(kept.store.put(Some(&seals[1]), &seals[2]).await.unwrap(), skyriff_storage::keep::Kept::Same);
    let other = kept.seal(Some(&seals[1]), 3);
    assert_eq!(kept.store.put(Some(&seals[1]), &other).await.unwrap(), skyriff_storage::keep::Kept::Other);
    assert_eq!(kept.store.newest().await.unwrap().unwrap(), seals[2]);
    kept.store.check_that_it_keeps().await.unwrap();
}

#[tokio::test]
async fn the_newest_is_found_past_folders_that_are_empty() {
    let kept = Kept::new();
    assert!(kept.store.newest().await.unwrap().is_none());
    let seals = kept.seals([0]).await;
    for empty in ["000000/001", "000000/999", "000001", "000002/000"] {
        fs::create_dir_all(kept.folder.path().join("ledger/seals").join(empty)).unwrap();
    }
    assert_eq!(kept.store.newest().await.unwrap().unwrap(), seals[0]);
    assert_eq!(kept.store.first_kept().await.unwrap(), Some(1));
}

#[tokio::test]
async fn the_seal_of_a_time_is_found_and_of_long_ago_that_of_its_hour() {
    let kept = Kept::new();
    // A seal every ten minutes, from 22:00 on to 04:10 of the next day, but for 01:00 to 02:59.
    let minutes: Vec<i64> = (0..38).map(|turn| turn * 10).filter(|minutes| !(180..300).contains(minutes)).collect();
    let seals = kept.seals(minutes.clone()).await;
    for (asked, found) in [
        (-1, None),
        (0, Some(0)),
        (9, Some(0)),
        (10, Some(10)),
        (59, Some(50)),
        (60, Some(60)),
        (179, Some(170)),
        (250, Some(170)),
        (300, Some(300)),
        (370, Some(370)),
        (100_000, Some(370)),
    ] {
        assert_eq!(kept.at(asked).await, found, "{asked}");
    }
    // The first ones go, up to 23:20.
    for seal in &seals[..9] {
        kept.store.storage.forget(&LedgerName::Seal(seal.number())).await.unwrap();
    }
    for (asked, found) in [
        (-1, None),
        (0, None),
        (49, None),
        (50, Some(50)),
        (59, Some(50)),
        (85, Some(50)),
        // The last of its hour is from after it.
        (89, Some(50)),
        (90, Some(90)),
        (130, Some(130)),
    ] {
        assert_eq!(kept.at(asked).await, found, "{asked}");
    }
    for seal in &seals[9..seals.len() - 1] {
        kept.store.storage.forget(&LedgerName::Seal(seal.number())).await.unwrap();
    }
    for (asked, found) in
        [(49, None), (109, Some(50)), (119, Some(110)), (170, Some(170)), (299, Some(170)), (369, Some(350))]
    {
        assert_eq!(kept.at(asked).await, found, "{asked}");
    }
}

#[tokio::test]
async fn seals_of_more_than_a_day_ago_go_and_those_of_hours_stay() {
    let kept = Kept::new();
    let seals = kept.seals([0, 61]).await;
    // Sparse, as no sealer leaves them: what counts is the folders.
    for number in [998, 1_003, 4_999, 5_000, 5_001, 95_000] {
        let bytes = seals[0].to_bytes();
        kept.store.storage.keep(&LedgerName::Seal(number), bytes).await.unwrap();
    }
    kept.store.forget_old(95_000).await.unwrap();
    let mut left = Vec::new();
    for number in [1, 2, 998, 1_003, 4_999, 5_000, 5_001, 95_000] {
        if kept.store.get(number).await.unwrap().is_some() {
            left.push(number);
        }
    }
    assert_eq!(left, [5_000, 5_001, 95_000]);
    assert_eq!(
        kept.store.of_hours(START_US + MINUTE_US).await.unwrap().map(|seal| seal.top().clone()),
        Some(seals[0].top().clone())
    );
}
