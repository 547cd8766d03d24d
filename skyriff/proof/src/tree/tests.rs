use proptest::{prelude::*, sample::Index};

use super::*;
use crate::Frontier;

/// Different leaves, as many as wanted.
pub(crate) fn leaves(count: u64) -> Vec<Hash> {
    (0..count).map(|leaf| Hash::leaf(&leaf.to_be_bytes())).collect()
}

/// `MTH`, word for word as RFC 6962 has it.
pub(crate) fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Hash::of_nothing(),
        [leaf] => *leaf,
        leaves => {
            let (left, right) = leaves.split_at(naive_middle(leaves));
            Hash::node(&naive_root(left), &naive_root(right))
        }
    }
}

fn naive_middle(leaves: &[Hash]) -> usize {
    let mut middle = 1;
    while middle * 2 < leaves.len() {
        middle *= 2;
    }
    middle
}

/// `PATH(m, D[n])`.
fn naive_path(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() <= 1 {
        return Vec::new();
    }
    let middle = naive_middle(leaves);
    let (left, right) = leaves.split_at(middle);
    let (mut path, sibling) = if index < middle {
        (naive_path(index, left), naive_root(right))
    } else {
        (naive_path(index - middle, right), naive_root(left))
    };
    path.push(sibling);
    path
}

/// `SUBPROOF(m, D[n], b)`.
fn naive_subproof(old: usize, leaves: &[Hash], known: bool) -> Vec<Hash> {
    if old == leaves.len() {
        return if known { Vec::new() } else { vec![naive_root(leaves)] };
    }
    let middle = naive_middle(leaves);
    let (left, right) = leaves.split_at(middle);
    let (mut proof, other) = if old <= middle {
        (naive_subproof(old, left, known), naive_root(right))
    } else {
        (naive_subproof(old - middle, right, false), naive_root(left))
    };
    proof.push(other);
    proof
}

/// All tiles of a tree over these leaves, as they are kept at this size.
fn tiles(leaves: &[Hash]) -> BTreeMap<Tile, Vec<Hash>> {
    let mut frontier = Frontier::empty();
    let mut tiles: BTreeMap<_, _> = leaves.iter().flat_map(|leaf| frontier.append(*leaf)).collect();
    tiles.extend(BTreeMap::from(&frontier));
    tiles
}

fn len(leaves: &[Hash]) -> u64 {
    u64::try_from(leaves.len()).unwrap()
}

fn head(leaves: &[Hash]) -> Head {
    Head { size: len(leaves), root: naive_root(leaves) }
}

fn made(plan: &Plan, tiles: &BTreeMap<Tile, Vec<Hash>>) -> Vec<Hash> {
    // From the tiles that it asks for and no others.
    let fetched: BTreeMap<_, _> = plan.tiles().into_iter().map(|tile| (tile, tiles[&tile].clone())).collect();
    plan.hashes(&fetched).unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// The leaves and roots that implementations of Certificate Transparency are tested with.
#[test]
fn leaves_and_roots_are_those_of_the_reference() {
    let entries = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    let leaves: Vec<_> = entries.iter().map(|entry| Hash::leaf(&hex(entry))).collect();
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    for (size, root) in roots.iter().enumerate() {
        let leaves = &leaves[..size];
        assert_eq!(made(&Plan::root(len(leaves)), &tiles(leaves)), [Hash(hex(root).try_into().unwrap())], "{size}");
    }
    // Inclusion of leaf 5 in 8 and consistency of 6 with 8, from the same reference.
    let to_hashes = |texts: [&str; 3]| texts.map(|text| Hash(hex(text).try_into().unwrap()));
    assert_eq!(
        made(&Plan::inclusion(5, 8).unwrap(), &tiles(&leaves)),
        to_hashes([
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ])
    );
    assert_eq!(
        made(&Plan::consistency(6, 8).unwrap(), &tiles(&leaves)),
        to_hashes([
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ])
    );
}

/// RFC 6962, section 2.1.3: a tree of seven leaves, and which of its nodes each proof is made of.
#[test]
fn proofs_are_those_of_the_example() {
    let d = leaves(7);
    let [a, b, c, e, f, j] = [d[0], d[1], d[2], d[4], d[5], d[6]];
    let dd = d[3];
    let [g, h, i] = [(a, b), (c, dd), (e, f)].map(|(left, right)| Hash::node(&left, &right));
    let (k, l) = (Hash::node(&g, &h), Hash::node(&i, &j));
    let tiles = tiles(&d);
    for (index, path) in [(0, vec![b, h, l]), (3, vec![c, g, l]), (4, vec![f, j, k]), (6, vec![i, k])] {
        assert_eq!(made(&Plan::inclusion(index, 7).unwrap(), &tiles), path);
    }
    for (old, proof) in [(3, vec![c, dd, g, l]), (4, vec![l]), (6, vec![i, j, k]), (7, vec![]), (0, vec![])] {
        assert_eq!(made(&Plan::consistency(old, 7).unwrap(), &tiles), proof);
    }
}

#[test]
fn every_leaf_of_every_small_tree_is_proved_and_nothing_else() {
    let leaves = leaves(70);
    for size in 1..=leaves.len() {
        let leaves = &leaves[..size];
        let (head, tiles) = (head(leaves), tiles(leaves));
        for (index, leaf) in leaves.iter().enumerate() {
            let at = u64::try_from(index).unwrap();
            let proof = made(&Plan::inclusion(at, head.size).unwrap(), &tiles);
            assert_eq!(proof, naive_path(index, leaves));
            assert_eq!(head.includes(*leaf, at, &proof), Ok(()));
            // At another place it is another leaf's proof.
            for other in [at ^ 1, at + 1, at ^ 2, at + head.size, u64::MAX] {
                assert!(other == at || head.includes(*leaf, other, &proof).is_err(), "{at} as {other} of {size}");
            }
        }
        let size = head.size;
        assert_eq!(Plan::inclusion(size, size), Err(OutOfTree { size, index: size }));
        assert_eq!(head.includes(leaves[0], size, &[]), Err(NotProved::Sizes));
    }
}

#[test]
fn every_small_tree_continues_all_before_it() {
    let leaves = leaves(70);
    for new in 0..=leaves.len() {
        let (new_head, tiles) = (head(&leaves[..new]), tiles(&leaves[..new]));
        for old in 0..=new {
            let old_head = head(&leaves[..old]);
            let proof = made(&Plan::consistency(old_head.size, new_head.size).unwrap(), &tiles);
            if old > 0 {
                assert_eq!(proof, naive_subproof(old, &leaves[..new], true));
            }
            assert_eq!(new_head.continues(&old_head, &proof), Ok(()), "{old} to {new}");
            // A root that is not of this size.
            let other_root = Head { root: Hash::leaf(b"another"), ..old_head };
            assert_eq!(new_head.continues(&other_root, &proof), Err(NotProved::Root));
            let other_root = Head { root: Hash::leaf(b"another"), ..new_head };
            assert!(old == 0 || other_root.continues(&old_head, &proof) == Err(NotProved::Root));
            let other_size = Head { size: old_head.size + 1, ..old_head };
            assert!(new_head.continues(&other_size, &proof).is_err());
            let more = [proof.as_slice(), &[Hash::of_nothing()]].concat();
            assert_eq!(new_head.continues(&old_head, &more), Err(NotProved::Length));
            if let Some((_, fewer)) = proof.split_last() {
                assert_eq!(new_head.continues(&old_head, fewer), Err(NotProved::Length));
            }
        }
        let larger = Head { size: new_head.size + 1, ..new_head };
        assert_eq!(new_head.continues(&larger, &[]), Err(NotProved::Sizes));
        assert!(Plan::consistency(larger.size, new_head.size).is_err());
    }
}

#[test]
fn what_is_not_there_is_named() {
    let leaves = leaves(300);
    let all = tiles(&leaves);
    let plan = Plan::inclusion(3, 300).unwrap();
    assert_eq!(plan.tiles().iter().map(Tile::to_string).collect::<Vec<_>>(), ["tile/0/000", "tile/0/001.p/44"]);
    for missing in plan.tiles() {
        let mut without = all.clone();
        without.remove(&missing);
        assert_eq!(plan.hashes(&without), Err(MissingTile(missing)));
    }
    let nothing = BTreeMap::new();
    assert_eq!(Plan::root(0).hashes(&nothing), Ok(vec![Hash::of_nothing()]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn proofs_from_tiles_are_those_of_the_model(new in 1_usize..900, leaf: Index, old: Index, bit in 0_usize..256) {
        let leaves = leaves(u64::try_from(new).unwrap());
        let (head, tiles) = (head(&leaves), tiles(&leaves));
        let index = leaf.index(new);
        let at = u64::try_from(index).unwrap();
        let proof = made(&Plan::inclusion(at, head.size).unwrap(), &tiles);
        prop_assert_eq!(&proof, &naive_path(index, &leaves));
        prop_assert_eq!(head.includes(leaves[index], at, &proof), Ok(()));
        prop_assert!(head.includes(Hash::leaf(b"edited"), at, &proof).is_err());

        let old = old.index(new) + 1;
        let old_head = Head { size: u64::try_from(old).unwrap(), root: naive_root(&leaves[..old]) };
        let consistency = made(&Plan::consistency(old_head.size, head.size).unwrap(), &tiles);
        prop_assert_eq!(&consistency, &naive_subproof(old, &leaves, true));
        prop_assert_eq!(head.continues(&old_head, &consistency), Ok(()));

        // One bit anywhere.
        for place in 0..proof.len().max(consistency.len()) {
            let flipped = |proof: &[Hash]| {
                let mut proof = proof.to_vec();
                proof[place].0[bit / 8] ^= 1 << (bit % 8);
                proof
            };
            if place < proof.len() {
                prop_assert_eq!(head.includes(leaves[index], at, &flipped(&proof)), Err(NotProved::Root));
            }
            if place < consistency.len() {
                prop_assert_eq!(head.continues(&old_head, &flipped(&consistency)), Err(NotProved::Root));
            }
        }
    }

    /// Whoever edits, drops, adds or swaps events of before cannot prove the new tree to who has the old root.
    #[test]
    fn an_edited_past_has_no_proof(size in 2_usize..300, more in 0_usize..200, at: Index, edit in 0..4) {
        let honest = leaves(u64::try_from(size).unwrap());
        let signed = head(&honest);
        let mut edited = leaves(u64::try_from(size + more).unwrap());
        let at = at.index(size);
        match edit {
            0 => edited[at] = Hash::leaf(b"edited"),
            1 => { edited.remove(at); edited.push(Hash::leaf(b"so that the size is right")); }
            2 => edited.insert(at, Hash::leaf(b"added")),
            _ => edited.swap(at, (at + 1) % size),
        }
        let (forged, tiles) = (head(&edited), tiles(&edited));
        let proof = made(&Plan::consistency(signed.size, forged.size).unwrap(), &tiles);
        prop_assert_eq!(forged.continues(&signed, &proof), Err(NotProved::Root));
    }

    /// Sizes far beyond what can be built: the plans are those of a tree of that size, within bounds.
    #[test]
    fn plans_of_huge_trees_are_bounded(size in 1..=u64::MAX, index: u64, old: u64) {
        let plan = Plan::inclusion(index % size, size).unwrap();
        prop_assert!(plan.runs.len() <= 64 && plan.tiles().len() <= 128);
        prop_assert_eq!(plan.runs.iter().map(|run| run.end - run.start).sum::<u64>(), size - 1);
        let plan = Plan::consistency(old % size, size).unwrap();
        prop_assert!(plan.runs.len() <= 65 && plan.tiles().len() <= 128);
    }
}
