//! Which part of an object a client asks for (RFC 9110, 14).

use std::ops::Range;

/// What is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All of it: nothing else was asked, or in a way that may be passed over.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes that it does not have.
    NotThere,
}

/// What a `Range` header means for an object of so many bytes. Several ranges at once are answered with the whole, which
/// is allowed and which players do not ask for.
pub(crate) fn asked(header: Option<&str>, bytes: u64) -> Asked {
    let Some(range) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else { return Asked::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return Asked::Whole };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than fit are beyond the end of everything.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (number(first), number(last)) {
        (Some(first), _) if first >= bytes && (last.is_empty() || number(last).is_some()) => Asked::NotThere,
        (Some(first), None) if last.is_empty() => Asked::Part(first..bytes),
        (Some(first), Some(last)) if first <= last => Asked::Part(first..last.saturating_add(1).min(bytes)),
        (None, Some(0)) if first.is_empty() => Asked::NotThere,
        (None, Some(_)) if first.is_empty() && bytes == 0 => Asked::NotThere,
        (None, Some(count)) if first.is_empty() => Asked::Part(bytes.saturating_sub(count)..bytes),
        _ => Asked::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_a_table() {
        let huge = format!("bytes={}-", "9".repeat(40));
        for (header, expected) in [
            ("bytes=0-", Asked::Part(0..100)),
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=10-19", Asked::Part(10..20)),
            ("bytes=90-1000", Asked::Part(90..100)),
            ("bytes=0-99999999999999999999999", Asked::Part(0..100)),
            ("bytes=-1", Asked::Part(99..100)),
            ("bytes=-1000", Asked::Part(0..100)),
            ("bytes=100-", Asked::NotThere),
            ("bytes=100-200", Asked::NotThere),
            (&huge, Asked::NotThere),
            ("bytes=-0", Asked::NotThere),
            ("bytes=20-10", Asked::Whole),
            ("bytes=0-1,5-6", Asked::Whole),
            ("bytes=", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=a-b", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("lines=0-1", Asked::Whole),
        ] {
            assert_eq!(asked(Some(header), 100), expected, "{header}");
        }
        assert_eq!(asked(None, 100), Asked::Whole);
        assert_eq!((asked(Some("bytes=0-"), 0), asked(Some("bytes=-5"), 0)), (Asked::NotThere, Asked::NotThere));
    }
}
