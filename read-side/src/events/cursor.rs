//! Where a reader of the log is, as a text that it gives back to go on from there.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use skyriff_domain::{Position, ShardCount, ShardId};

/// The first byte; another meaning gets another.
const VERSION: u8 = 1;

/// The last position that was read of each shard that is read. Opaque to clients: what is in it may change.
pub type Positions = BTreeMap<ShardId, Position>;

/// As text, without characters that an address or a header would change.
pub fn encode(positions: &Positions) -> String {
    let mut bytes = Vec::with_capacity(1 + positions.len() * 6);
    bytes.push(VERSION);
    for (shard, position) in positions {
        number(u64::from(shard.0), &mut bytes);
        number(u64::try_from(position.0).unwrap_or_default(), &mut bytes);
    }
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Read one back; none for what is not one of ours, or of a store with fewer shards.
pub fn decode(text: &str, shards: ShardCount) -> Option<Positions> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (version, mut rest) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    let mut positions = Positions::new();
    while !rest.is_empty() {
        let shard = ShardId(u16::try_from(take(&mut rest)?).ok()?);
        let position = Position(i64::try_from(take(&mut rest)?).ok()?);
        let new = positions.insert(shard, position).is_none();
        if !new || shard.0 >= shards.get() {
            return None;
        }
    }
    (!positions.is_empty()).then_some(positions)
}

/// Seven bits a byte, the lowest first, the highest bit set on all but the last (LEB128).
fn number(mut number: u64, bytes: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or_default();
        number >>= 7;
        bytes.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return;
        }
    }
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_back_and_others_are_refused() {
        let shards = ShardCount::default();
        let positions: Positions =
            [(0, 0), (3, 1_042), (15, i64::MAX)].map(|(shard, at)| (ShardId(shard), Position(at))).into();
        let text = encode(&positions);
        assert_eq!(decode(&text, shards), Some(positions));
        assert_eq!(decode(&text, ShardCount::new(15).unwrap()), None);
        let of = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        for bad in
            ["", "x", "§", &of(&[]), &of(&[1]), &of(&[2, 0, 0]), &of(&[1, 0]), &of(&[1, 0, 1, 0, 1]), &of(&[0xff; 20])]
        {
            assert_eq!(decode(bad, shards), None, "{bad}");
        }
    }
}
