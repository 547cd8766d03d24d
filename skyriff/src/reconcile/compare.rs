//! Whether a line of a file and the ledger agree. No IO here.

use chrono::{DateTime, NaiveDate, Utc};
use skyriff_domain::{
    Label, UserId,
    reconciliation::exception::{Difference, Figures},
};

use super::file::Line;

/// The first day, and the day after the last.
pub type Days = (NaiveDate, NaiveDate);

/// What the ledger has of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ours {
    /// Whose it is.
    pub user: UserId,
    /// Who was asked to pay it; none of recharges, and before anybody was.
    pub provider: Option<Label>,
    /// Whether the points have moved for it.
    pub is_paid: bool,
    /// When it became what it is.
    pub at: DateTime<Utc>,
    pub figures: Figures,
}

/// How they differ, if they do. What neither says was paid is nobody's concern.
pub fn compare(provider: &Label, line: &Line, ours: Option<&Ours>) -> Option<Difference> {
    let known = ours.filter(|ours| ours.provider.as_ref().is_none_or(|asked| asked == provider));
    let (Some(ours), theirs) = (known, &line.figures) else {
        return line.is_paid().then_some(Difference::MissingInLedger);
    };
    if !line.is_paid() && !ours.is_paid {
        return None;
    }
    if ours.figures.currency != theirs.currency {
        Some(Difference::Currency)
    } else if ours.figures.amount != theirs.amount {
        Some(Difference::Amount)
    } else if line.is_paid() != ours.is_paid {
        Some(Difference::Status)
    } else {
        (ours.figures.reference != theirs.reference).then_some(Difference::Reference)
    }
}

/// Whether what was paid on a day belongs to a file of before and not to this one, so that it was paid there already. A line
/// that agrees leaves no trace; that a file of those days was compared does.
pub fn is_of_before(at: DateTime<Utc>, this: Days, before: &[Days]) -> bool {
    let has = |(from, to): Days| (from..to).contains(&at.date_naive());
    !has(this) && before.iter().any(|days| has(*days))
}

#[cfg(test)]
mod tests {
    use skyriff_domain::Reference;
    use uuid::Uuid;

    use super::*;

    fn label(text: &str) -> Label {
        text.parse().unwrap()
    }

    fn figures(amount: i64, currency: &str, status: &str, reference: Option<&str>) -> Figures {
        let reference = reference.map(|text| Reference::try_from(text.to_owned()).unwrap());
        Figures { amount, currency: Some(label(currency)), status: label(status), reference }
    }

    #[test]
    fn every_difference_is_seen_and_the_gravest_is_told() {
        use Difference::{Amount, Currency, MissingInLedger, Reference as Name, Status};
        let ours = |provider: Option<&str>, amount, currency, status, reference| {
            let figures = figures(amount, currency, status, reference);
            let is_paid = status == "paid";
            let (user, at) = (UserId(Uuid::nil()), DateTime::UNIX_EPOCH);
            Some(Ours { user, provider: provider.map(label), is_paid, at, figures })
        };
        let paid = |amount, currency| figures(amount, currency, "paid", Some("po_1"));
        let acme = Some("acme");
        let table = [
            (paid(5, "cny"), ours(acme, 5, "cny", "paid", Some("po_1")), None),
            (paid(5, "cny"), None, Some(MissingInLedger)),
            (paid(5, "cny"), ours(Some("other"), 5, "cny", "paid", Some("po_1")), Some(MissingInLedger)),
            (paid(5, "usd"), ours(acme, 6, "cny", "paid", Some("po_1")), Some(Currency)),
            (paid(5, "cny"), ours(acme, 6, "cny", "failed", Some("po_2")), Some(Amount)),
            (paid(5, "cny"), ours(acme, 5, "cny", "failed", None), Some(Status)),
            // Approved, and nobody was asked: the provider pays what it was not asked for.
            (paid(5, "cny"), ours(None, 5, "cny", "approved", None), Some(Status)),
            (paid(5, "cny"), ours(acme, 5, "cny", "paid", Some("po_2")), Some(Name)),
            (figures(5, "cny", "declined", None), ours(acme, 5, "cny", "paid", Some("po_1")), Some(Status)),
            (figures(5, "cny", "declined", None), ours(acme, 6, "usd", "failed", None), None),
            (figures(5, "cny", "pending", None), None, None),
        ];
        for (theirs, ours, then) in table {
            let line = Line { number: 2, subject: Uuid::nil(), figures: theirs, at: DateTime::UNIX_EPOCH };
            assert_eq!(compare(&label("acme"), &line, ours.as_ref()), then, "{line:?} {ours:?}");
        }
    }

    #[test]
    fn what_a_file_of_other_days_has_had_is_of_before() {
        let day = |day| NaiveDate::from_ymd_opt(2026, 1, day).unwrap();
        let at = |of| day(of).and_hms_opt(23, 59, 59).unwrap().and_utc();
        let (this, first, overlapping) = ((day(8), day(15)), (day(1), day(8)), (day(5), day(12)));
        for (of, before, then) in [
            (3, vec![first], true),
            (7, vec![overlapping], true),
            (8, vec![first], false),
            (9, vec![overlapping], false),
            (3, vec![overlapping], false),
            (15, vec![first], false),
            (3, vec![], false),
        ] {
            assert_eq!(is_of_before(at(of), this, &before), then, "{of} {before:?}");
        }
    }
}
