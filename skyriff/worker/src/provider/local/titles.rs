//! The prompt as moving titles: a subtitle file in the format that libass sets, with fonts found for every script.
//!
//! Architecture invariant: the prompt is only ever in the contents of that file. No command line and no filter has any of
//! it, so nothing that somebody writes can be understood as one; what the file's own format understands is escaped.

use std::fmt::Write;

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// The size that positions are in; the renderer scales them.
const WIDTH: u32 = 1_280;
const HEIGHT: u32 = 720;
/// A card of titles stays for so long at least, in seconds.
const CARD_SECONDS_MIN: u32 = 3;
const CARDS_MAX: u32 = 20;

/// From large to small: the size of the letters, how many columns fit into a line, and how many lines onto a card.
const SIZES: [Size; 4] = [
    Size { letters: 92, columns: 20, lines: 3 },
    Size { letters: 72, columns: 26, lines: 4 },
    Size { letters: 56, columns: 34, lines: 5 },
    Size { letters: 40, columns: 48, lines: 7 },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    letters: u32,
    columns: usize,
    lines: usize,
}

/// The whole file for a video of so many seconds.
pub(super) fn titles(prompt: &str, seconds: u32) -> String {
    let (size, cards) = cards(prompt, seconds);
    let mut file = format!(
        "[Script Info]\nScriptType: v4.00+\nPlayResX: {WIDTH}\nPlayResY: {HEIGHT}\nWrapStyle: 2\n\
         ScaledBorderAndShadow: yes\n\n[V4+ Styles]\n\
         Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, \
         Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, \
         MarginV, Encoding\n\
         Style: Title,Noto Sans,{letters},&H00FFFFFF,&H00FFFFFF,&H00201008,&H90000000,1,0,0,0,100,100,0.5,0,1,3,2.5,5,40,40,\
         40,-1\n\
         Style: Mark,Noto Sans,20,&H60FFFFFF,&H60FFFFFF,&HA0201008,&HC0000000,1,0,0,0,100,100,4,0,1,1,0,3,32,32,26,-1\n\n\
         [Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n\
         Dialogue: 0,{start},{end},Mark,,0,0,0,,SkyRiff\n",
        letters = size.letters,
        start = time(0),
        end = time(u64::from(seconds) * 1_000),
    );
    let count = u64::try_from(cards.len().max(1)).unwrap_or(1);
    let slot_ms = u64::from(seconds) * 1_000 / count;
    let pitch = size.letters * 5 / 4;
    for (card, start_ms) in cards.iter().zip((0..).map(|card: u64| card * slot_ms)) {
        let lines = u32::try_from(card.len()).unwrap_or(1);
        let top = (HEIGHT + pitch).saturating_sub(lines * pitch) / 2;
        for (line, number) in card.iter().zip(0_u32..) {
            // Each line comes a little after the one above it, rises slowly, and all of them go together.
            let delay_ms = (u64::from(number) * 140).min(slot_ms / 3);
            let fade_ms = (slot_ms / 5).min(450);
            let (x, y) = (WIDTH / 2, top + number * pitch);
            let effects = format!(
                "{{\\move({x},{from},{x},{to})\\blur0.7\\fad({fade_ms},{fade_ms})}}",
                from = y + 16,
                to = y.saturating_sub(16)
            );
            let (start, end) = (time(start_ms + delay_ms), time(start_ms + slot_ms));
            // Writing to a string cannot fail.
            writeln!(file, "Dialogue: 1,{start},{end},Title,,0,0,0,,{effects}{}", escaped(line)).ok();
        }
    }
    file
}

/// The lines of each card, in the largest letters in which all of it fits; what does not fit in the smallest is cut off.
fn cards(prompt: &str, seconds: u32) -> (Size, Vec<Vec<String>>) {
    let cards_max = usize::try_from((seconds / CARD_SECONDS_MIN).clamp(1, CARDS_MAX)).unwrap_or(1);
    let [.., smallest] = SIZES;
    let fits = |size: &Size| wrap(prompt, size.columns).len() <= cards_max * size.lines;
    let size = SIZES.into_iter().find(fits).unwrap_or(smallest);
    let mut lines = wrap(prompt, size.columns);
    if lines.len() > cards_max * size.lines {
        lines.truncate(cards_max * size.lines);
        if let Some(last) = lines.last_mut() {
            last.push('…');
        }
    }
    // As full as each other, rather than a single line on the last one.
    let cards = lines.len().div_ceil(size.lines).max(1);
    let each = lines.len().div_ceil(cards).max(1);
    (size, lines.chunks(each).map(<[String]>::to_vec).collect())
}

/// Lines of at most so many columns, broken between words, between characters of scripts without spaces, and inside words
/// only when they are longer than a line.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        for (piece, is_first) in pieces(word).into_iter().zip(std::iter::once(true).chain(std::iter::repeat(false))) {
            let space = usize::from(is_first && !line.is_empty());
            if line.width() + space + piece.width() <= columns {
                line.push_str(if space == 1 { " " } else { "" });
                line.push_str(&piece);
                continue;
            }
            if !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            for grapheme in piece.graphemes(true) {
                if !line.is_empty() && line.width() + grapheme.width() > columns {
                    lines.push(std::mem::take(&mut line));
                }
                line.push_str(grapheme);
            }
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// What a line may be broken between: whole words, and each wide character by itself, with the punctuation after it.
fn pieces(word: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    let mut after_wide = true;
    for grapheme in word.graphemes(true) {
        let is_wide = grapheme.width() == 2;
        let closes = grapheme.chars().all(|c| "。，、．！？：；」』）】》〉”’".contains(c));
        match pieces.last_mut() {
            Some(piece) if closes || (!is_wide && !after_wide) => piece.push_str(grapheme),
            _ => pieces.push(grapheme.to_owned()),
        }
        after_wide = is_wide;
    }
    pieces
}

/// So that the renderer sets it as it is.
fn escaped(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            '{' => escaped.push_str("\\{"),
            '}' => escaped.push_str("\\}"),
            // A word joiner has no width, and no letter that follows it makes an escape.
            '\\' => escaped.push_str("\\\u{2060}"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// `h:mm:ss.cc`
fn time(ms: u64) -> String {
    let (seconds, hundredths) = (ms / 1_000, ms % 1_000 / 10);
    format!("{}:{:02}:{:02}.{hundredths:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_where_readers_expect_it() {
        for (text, columns, expected) in [
            ("a lighthouse dances in the rain", 12, vec!["a lighthouse", "dances in", "the rain"]),
            ("  much \n\t white\u{0} space  ", 40, vec!["much white space"]),
            ("Donaudampfschifffahrt", 8, vec!["Donaudam", "pfschiff", "fahrt"]),
            ("灯塔在雨中跳舞。", 8, vec!["灯塔在雨", "中跳舞。"]),
            ("雨中。", 4, vec!["雨", "中。"]),
            ("say 你好 now", 8, vec!["say 你好", "now"]),
            ("👩‍👩‍👧‍👦👩‍👩‍👧‍👦👩‍👩‍👧‍👦", 4, vec!["👩‍👩‍👧‍👦👩‍👩‍👧‍👦", "👩‍👩‍👧‍👦"]),
            (" ", 4, vec![]),
        ] {
            assert_eq!(wrap(text, columns), expected, "{text}");
        }
    }

    #[test]
    fn short_prompts_are_large_and_long_ones_go_over_several_cards_and_end_in_an_ellipsis() {
        assert_eq!(cards("Hello", 5).0.letters, 92);
        let prompt = "word ".repeat(60);
        let (size, spread) = cards(&prompt, 30);
        assert!(size.letters > 40 && spread.len() > 1 && spread.len() <= 10, "{size:?} {}", spread.len());
        let (size, cut) = cards(&"word ".repeat(2_000), 3);
        assert_eq!((size.letters, cut.len(), cut[0].len()), (40, 1, 7));
        assert!(cut[0][6].ends_with('…'));
        assert_eq!(cards("", 3).1, Vec::<Vec<String>>::new());
    }

    #[test]
    fn nothing_in_a_prompt_is_a_command() {
        let evil =
            "{\\fs500}\\N{\\p1}m 0 0\nDialogue: 9,0:00:00.00,9:00:00.00,Title,,0,0,0,,owned ',[v];movie=/etc/passwd";
        let file = titles(evil, 10);
        assert_eq!(file.lines().filter(|line| line.starts_with("Dialogue: 9")).count(), 0);
        for line in file.lines().filter(|line| line.starts_with("Dialogue: 1")) {
            // After our own effects no group opens and no escape is understood.
            let (_, text) = line.split_once('}').unwrap();
            let unescaped = text.replace("\\{", "").replace("\\}", "").replace("\\\u{2060}", "");
            assert!(!unescaped.contains(['{', '}', '\\']), "{text}");
        }
        assert_eq!(time(3_723_450), "1:02:03.45");
    }
}
