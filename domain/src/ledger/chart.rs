//! The chart of accounts, and what each event posts: told by the code that posts, so that the two cannot drift apart.
//!
//! [`document`] is checked in as `schemas/ledger.md`.

use std::{collections::BTreeSet, fmt::Write};

use chrono::{DateTime, NaiveDate};
use uuid::Uuid;

use super::{Account, Issuance, Payouts, Standing, Unit, postings};
use crate::{
    Bucket, Event, HoldId, JobId, Label, Note, OrderId, Points, Purse, SpendId, StreamId, TipId, UserId, WithdrawalId,
    points_account::{self, Direction, ReleaseCause},
    video_job::{self, Cost, Output},
};

/// One account of the chart, or one for each product or currency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its name; PRODUCT and CURRENCY stand for a label.
    pub account: String,
    /// Whether each user has one.
    pub of_users: bool,
    /// What it counts.
    pub unit: String,
    /// What it is for.
    pub purpose: &'static str,
}

impl Account {
    /// What it is for.
    pub const fn purpose(&self) -> &'static str {
        match self {
            Self::User { standing: Standing::Available, bucket: Bucket::Promo, .. } => {
                "Given by the platform; may be spent and held until it expires."
            }
            Self::User { standing: Standing::Available, bucket: Bucket::Paid, .. } => {
                "Bought with money; may be spent, held and given as a tip."
            }
            Self::User { standing: Standing::Available, bucket: Bucket::Income, .. } => {
                "Received from others; may be spent, held, given as a tip and withdrawn."
            }
            Self::User { standing: Standing::Held, bucket: Bucket::Promo, .. } => {
                "Set aside for something that takes its time, such as a video."
            }
            Self::User { standing: Standing::Held, bucket: Bucket::Paid, .. } => {
                "Set aside for something that takes its time, such as a video or a tip."
            }
            Self::User { standing: Standing::Held, bucket: Bucket::Income, .. } => {
                "Set aside for something that takes its time, such as a video, a tip or a withdrawal."
            }
            Self::Issuance(Issuance::CheckIn) => "Negative by all the points that were given for checking in.",
            Self::Issuance(Issuance::Earning) => {
                "Negative by all the points that were given for tasks, and as creators' earnings."
            }
            Self::Issuance(Issuance::Recharge) => "Negative by all the points that were bought.",
            Self::Issuance(Issuance::Adjustment) => {
                "Negative by what was given by hand, less what was taken by hand; each with a reason."
            }
            Self::Revenue(Some(_)) => "What users spent on a product, less what they got back.",
            Self::Revenue(None) => "The same, from before revenue was kept by product, and refunds of that.",
            Self::Expiry => "What nobody spent in time.",
            Self::Transit => {
                "Tips that have left one user and not reached the other, or the other way round; zero when none is under way."
            }
            Self::TipShare => "The platform's part of tips.",
            Self::Payouts(Payouts::Pending) => "Withdrawals that are with the payout provider, and nobody knows yet.",
            Self::Payouts(Payouts::Paid) => "Withdrawals that have gone as money, without the fee.",
            Self::WithdrawalFee => "The platform's part of withdrawals.",
            Self::ProviderCost(_) => "What providers wanted for attempts at videos, the failed ones too.",
            Self::ProviderPayable(_) => {
                "The other side of what providers wanted: negative by all of it, whatever was paid of it elsewhere."
            }
        }
    }

    /// The account by its name; `user` is whose it is, should it be a user's.
    pub fn named(name: &str, user: UserId) -> Option<Self> {
        if let Some(label) = name.strip_prefix("platform:revenue:") {
            return label.parse().ok().map(|product| Self::Revenue(Some(product)));
        }
        if let Some(label) = name.strip_prefix("platform:provider_cost:") {
            return label.parse().ok().map(Self::ProviderCost);
        }
        if let Some(label) = name.strip_prefix("platform:provider_payable:") {
            return label.parse().ok().map(Self::ProviderPayable);
        }
        every(user, &Label::of("any")).into_iter().find(|account| account.to_string() == name)
    }

    /// As in the chart.
    fn pattern(&self) -> String {
        match self {
            Self::Revenue(Some(_)) => "platform:revenue:PRODUCT".to_owned(),
            Self::ProviderCost(_) => "platform:provider_cost:CURRENCY".to_owned(),
            Self::ProviderPayable(_) => "platform:provider_payable:CURRENCY".to_owned(),
            Self::User { .. }
            | Self::Issuance(_)
            | Self::Revenue(None)
            | Self::Expiry
            | Self::Transit
            | Self::TipShare
            | Self::Payouts(_)
            | Self::WithdrawalFee => self.to_string(),
        }
    }
}

/// All accounts that there are, with one label for those that have one.
fn every(user: UserId, label: &Label) -> Vec<Account> {
    let mut all = Vec::new();
    for standing in [Standing::Available, Standing::Held] {
        all.extend(Bucket::ALL.map(|bucket| Account::User { user, standing, bucket }));
    }
    let reasons = [Issuance::CheckIn, Issuance::Earning, Issuance::Recharge, Issuance::Adjustment];
    all.extend(reasons.map(Account::Issuance));
    all.extend([
        Account::Revenue(Some(label.clone())),
        Account::Revenue(None),
        Account::Expiry,
        Account::Transit,
        Account::TipShare,
        Account::Payouts(Payouts::Pending),
        Account::Payouts(Payouts::Paid),
        Account::WithdrawalFee,
        Account::ProviderCost(label.clone()),
        Account::ProviderPayable(label.clone()),
    ]);
    all
}

/// The chart of accounts.
pub fn chart() -> Vec<Line> {
    let line = |account: Account| Line {
        account: account.pattern(),
        of_users: account.user().is_some(),
        unit: match account.unit() {
            Unit::Points => Unit::Points.to_string(),
            Unit::Micros(_) => "millionths of CURRENCY".to_owned(),
        },
        purpose: account.purpose(),
    };
    every(UserId(Uuid::nil()), &Label::of("any")).into_iter().map(line).collect()
}

/// An event of each type that posts something, and what to call it where one name has several meanings.
fn examples() -> Vec<(&'static str, StreamId, Event)> {
    let user = UserId(Uuid::nil());
    let (day, at) = (NaiveDate::default(), DateTime::UNIX_EPOCH);
    let some = |points: i64| Points::try_from(points).unwrap_or_default();
    let promo = Purse::promo(some(1), at);
    let all = Purse { paid: some(2), income: some(3), ..promo.clone() };
    let not_promo = Purse { paid: some(2), income: some(3), ..Purse::default() };
    let income = Purse::income(some(3));
    let (hold, spend, order) = (HoldId(user.0), SpendId(user.0), OrderId(user.0));
    let (tip, withdrawal, reason) = (TipId(user.0), WithdrawalId(user.0), Label::of("any"));
    let product = || Some(Label::of("any"));
    let note = || Note::of("any");
    use points_account::Event as E;
    let on_account = [
        ("", E::CheckedIn { day, days_in_a_row: 1, points: some(1), expires_at: at }),
        ("", E::Earned { credited: promo.clone(), reason: reason.clone() }),
        ("", E::Earned { credited: income.clone(), reason: reason.clone() }),
        ("", E::Recharged { order, points: some(1) }),
        ("", E::Spent { spend, taken: all.clone(), product: reason.clone(), refundable_until: at, revenue: product() }),
        ("", E::Held { hold, taken: all.clone(), reason: reason.clone(), expires_at: None }),
        ("", E::Captured { hold, taken: all.clone(), revenue: product() }),
        ("", E::Released { hold, returned: all.clone(), cause: ReleaseCause::Requested }),
        ("", E::Refunded { spend, returned: all.clone(), revenue: product() }),
        ("", E::Expired { lots: promo }),
        (" up", E::Adjusted { direction: Direction::Credit, moved: all.clone(), reason: note(), words: None }),
        (" down", E::Adjusted { direction: Direction::Debit, moved: all.clone(), reason: note(), words: None }),
        ("", E::TipPaid { tip, to: user, taken: not_promo }),
        ("", E::TipReceived { tip, from: user, income: some(2), share: some(1) }),
        ("", E::PayoutStarted { withdrawal, taken: income.clone() }),
        ("", E::PaidOut { withdrawal, points: some(2), fee: some(1) }),
        ("", E::PayoutReturned { withdrawal, returned: income }),
        (", before", E::Spent { spend, taken: all.clone(), product: reason, refundable_until: at, revenue: None }),
        (", before", E::Captured { hold, taken: all.clone(), revenue: None }),
        (", before", E::Refunded { spend, returned: all, revenue: None }),
    ];
    let cost = || Cost { micros: 1, currency: Label::of("any") };
    let any = crate::Reference::of("any");
    let output = Output { object: any.clone(), seconds: 1, bytes: 1, sha256: any.clone(), content_type: any };
    use video_job::Event as V;
    let on_job = [
        V::Succeeded { attempt: 1, output, used: some(1), cost: cost() },
        V::AttemptFailed { attempt: 1, reason: note(), words: None, retry_at: at, cost: cost() },
        V::Failed { attempt: 1, reason: note(), words: None, retryable: false, cost: cost() },
    ];
    let on_account = on_account.map(|(note, event)| (note, StreamId::PointsAccount(user), Event::PointsAccount(event)));
    let on_job = on_job.map(|event| ("", StreamId::VideoJob(JobId(user.0)), Event::VideoJob(event)));
    on_account.into_iter().chain(on_job).collect()
}

/// The chart and what each event posts, in Markdown, for whoever reads the books.
pub fn document() -> String {
    let mut text = String::from(
        "# The ledger\n\n\
         Made from the code by `make schemas`. The books are double entry: each event posts between the accounts below, and\n\
         its amounts sum to zero in each unit. A positive amount means that the account has more than before.\n\n\
         ## Accounts\n\n\
         Each user has accounts of the names that begin with `user:`. PRODUCT is what was paid for (a video job's kind, or the\n\
         product or reason that a spend or a hold gives); CURRENCY is what a provider is paid in. Money is in books of its own:\n\
         amounts in different units are never added up.\n\n\
         | account | unit | what it is for |\n|---|---|---|\n",
    );
    for Line { account, of_users: _, unit, purpose } in chart() {
        let _ = writeln!(text, "| `{account}` | {unit} | {purpose} |");
    }
    text.push_str(
        "\n## What each event posts\n\n\
         Events that are not here post nothing. \"Before\" are events from before revenue was kept by product: they name none,\n\
         and what a refund of one gives back names none either, so that no product's revenue is taken for another's.\n\n\
         | event | from | to |\n|---|---|---|\n",
    );
    let mut rows: Vec<(String, BTreeSet<String>, BTreeSet<String>)> = Vec::new();
    for (note, stream, event) in examples() {
        let name = format!("`{}.{}`{note}", stream.aggregate_type(), event.event_type());
        if rows.last().is_none_or(|(last, ..)| *last != name) {
            rows.push((name, BTreeSet::new(), BTreeSet::new()));
        }
        for posting in postings(&stream, &event) {
            if let Some((_, from, to)) = rows.last_mut() {
                let side = if posting.amount < 0 { from } else { to };
                side.insert(format!("`{}`", posting.account.pattern()));
            }
        }
    }
    for (name, from, to) in rows {
        let list = |side: BTreeSet<String>| side.into_iter().collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "| {name} | {} | {} |", list(from), list(to));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_document_is_what_the_code_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/ledger.md");
        let written = fs::read_to_string(path).unwrap_or_default();
        assert!(written == document(), "schemas/ledger.md is not what the code says; run `make schemas`");
    }

    #[test]
    fn the_chart_has_every_account_that_is_posted_to_and_no_other() {
        let posted = examples().into_iter().flat_map(|(_, stream, event)| postings(&stream, &event));
        let posted: BTreeSet<_> = posted.map(|posting| posting.account.pattern()).collect();
        let charted: Vec<_> = chart().into_iter().map(|line| line.account).collect();
        assert_eq!(charted.iter().cloned().collect::<BTreeSet<_>>(), posted);
        assert_eq!(charted.len(), posted.len());
    }

    #[test]
    fn there_is_an_example_of_every_event_of_an_account() {
        let schema = Event::schemas().into_iter().find(|schema| schema.aggregate_type == "points_account").unwrap();
        let schema = serde_json::to_value(schema.events).unwrap();
        let names = schema["oneOf"].as_array().unwrap().iter();
        let names = names.flat_map(|event| event["properties"].as_object().unwrap().keys().cloned());
        let shown = examples().into_iter().filter(|(_, stream, _)| matches!(stream, StreamId::PointsAccount(_)));
        let shown: BTreeSet<_> = shown.map(|(.., event)| event.event_type().to_owned()).collect();
        assert_eq!(names.collect::<BTreeSet<_>>(), shown);
    }

    #[test]
    fn accounts_are_found_by_their_names() {
        let user = UserId(Uuid::from_u128(7));
        for account in every(user, &Label::of("text_to_video")) {
            assert_eq!(Account::named(&account.to_string(), user), Some(account));
        }
        for none in ["", "user", "user:available", "platform:revenue:", "platform:revenue:A", "platform:nothing", "x\0"]
        {
            assert_eq!(Account::named(none, user), None, "{none}");
        }
    }
}
