//! How a video looks and sounds: colours, seeds and a chord, all from its job's id, so that the same job always looks
//! the same.

use sha2::{Digest, Sha256};
use skyriff_domain::JobId;

/// Dark, middle, light and accent, as ffmpeg writes colours.
const PALETTES: [[&str; 4]; 10] = [
    ["0x0b1d51", "0x725cad", "0x1f8fbf", "0xff7f66"],
    ["0x2b0a3d", "0xc4326b", "0xff9a5a", "0x5fd0ff"],
    ["0x04303a", "0x0f8a7a", "0x9be15d", "0xffd166"],
    ["0x120b3a", "0x3f37c9", "0x4cc9f0", "0xf72585"],
    ["0x1b0b0b", "0x9d0208", "0xfaa307", "0xe85d04"],
    ["0x03122b", "0x0077b6", "0x90e0ef", "0xb388eb"],
    ["0x10002b", "0x7b2cbf", "0xe0aaff", "0x48cae4"],
    ["0x0a2a1a", "0x2d6a4f", "0x95d5b2", "0xf4a261"],
    ["0x22092c", "0x872341", "0xf05941", "0xffc371"],
    ["0x0d1b2a", "0x415a77", "0xa9bcd0", "0xe07a5f"],
];

/// Frequencies, in hertz: four chords that nobody minds hearing for a minute.
const CHORDS: [[f64; 3]; 4] =
    [[130.81, 196.00, 329.63], [110.00, 164.81, 261.63], [146.83, 220.00, 349.23], [98.00, 146.83, 246.94]];

/// A look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Look {
    /// Dark, middle, light and accent.
    pub(super) palette: [&'static str; 4],
    /// For each layer.
    pub(super) seeds: [u32; 3],
    /// How fast the colours move.
    pub(super) speed: f64,
    /// How it sounds.
    pub(super) chord: [f64; 3],
}

impl Look {
    pub(super) fn of(job: JobId) -> Self {
        let hash = Sha256::new().chain_update("look 1").chain_update(job.0.as_bytes()).finalize();
        let byte = |at: usize| hash.get(at).copied().unwrap_or_default();
        let number = |at: usize| u32::from_be_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
        let pick = |at: usize, of: usize| usize::from(byte(at)) % of;
        let [first, ..] = PALETTES;
        let [lowest, ..] = CHORDS;
        Self {
            palette: PALETTES.get(pick(0, PALETTES.len())).copied().unwrap_or(first),
            chord: CHORDS.get(pick(1, CHORDS.len())).copied().unwrap_or(lowest),
            speed: 0.006 + f64::from(byte(2)) / 255.0 * 0.010,
            // ffmpeg takes these as numbers up to 2³² - 1; half of that leaves no doubt about signs.
            seeds: [number(4) >> 1, number(8) >> 1, number(12) >> 1],
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_same_job_has_the_same_look_and_others_have_others() {
        let look = |n| Look::of(JobId(Uuid::from_u128(n)));
        assert_eq!(look(1), look(1));
        let palettes: std::collections::HashSet<_> = (0..200).map(|n| look(n).palette).collect();
        assert_eq!(palettes.len(), PALETTES.len());
        assert!((0..200).all(|n| look(n).seeds != look(n + 1).seeds));
    }
}
