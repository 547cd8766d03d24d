//! One shard, row by row: its tree, its streams, its part of the books, and whether positions and sequences are whole.

use std::collections::{BTreeMap, HashMap};

use skyriff_domain::{
    Event, LogPosition, Position, ShardCount, ShardId, State, StreamId, UserId,
    ledger::{Account, Unit, postings},
    owner::Owner,
    shard_of,
};
use skyriff_proof::EventRow;
use uuid::Uuid;

use super::{findings::Findings, tree::Tree};

/// A stream, folded; its last sequence, and when that event happened, in microseconds of Unix time.
pub struct Folded {
    pub sequence: i64,
    pub state: State,
    pub last_at_us: i64,
}

/// What the log of a shard comes to, up to [`Shard::last`].
pub struct Shard {
    pub id: ShardId,
    pub last: Position,
    pub events: u64,
    /// By aggregate and event.
    pub by_type: BTreeMap<(&'static str, &'static str), u64>,
    pub streams: HashMap<StreamId, Folded>,
    /// All users together: in their accounts the user is nil.
    pub ledger: BTreeMap<Account, i64>,
    pub tree: Tree,
    pub findings: Findings,
    count: ShardCount,
}

impl Shard {
    pub fn new(id: ShardId, count: ShardCount, mut tree: Tree) -> Self {
        let mut findings = Findings::default();
        tree.compare(id, &mut findings);
        Self {
            id,
            last: Position::START,
            events: 0,
            by_type: BTreeMap::new(),
            streams: HashMap::new(),
            ledger: BTreeMap::new(),
            tree,
            findings,
            count,
        }
    }

    /// The next row that was read.
    pub fn row(&mut self, row: &EventRow<'_>) {
        let at = row.at();
        self.events += 1;
        if at.shard != self.id {
            self.findings.at(at, format!("this is among the events of shard {}", self.id));
        }
        if row.position != self.last.next() {
            let missing = LogPosition { shard: self.id, position: self.last.next() };
            let what = format!("it is not there, and {} comes after {}", row.position, self.last);
            self.findings.at(missing, what);
            self.tree.is_cut_at(missing.position);
        }
        self.last = row.position;
        match row.leaf() {
            Ok(leaf) => self.tree.grow(row, leaf, &mut self.findings),
            Err(error) => {
                self.tree.is_cut_at(row.position);
                self.findings.at(at, error.to_string());
            }
        }
        match decode(row) {
            Ok((stream, event)) => self.fold(row, stream, &event),
            Err(error) => self.findings.at(at, format!("it is not an event of ours: {:#}", anyhow::Error::from(error))),
        }
    }

    /// Something that should be a row and is none.
    pub fn unreadable(&mut self, what: String) {
        let at = LogPosition { shard: self.id, position: self.last.next() };
        self.tree.is_cut_at(at.position);
        self.findings.at(at, what);
        self.last = at.position;
    }

    fn fold(&mut self, row: &EventRow<'_>, stream: StreamId, event: &Event) {
        let at = row.at();
        *self.by_type.entry((stream.aggregate_type(), event.event_type())).or_default() += 1;
        let (findings, id, count) = (&mut self.findings, self.id, self.count);
        let folded = self.streams.entry(stream).or_insert_with(|| {
            if let Owner::Named(user) = stream.owner()
                && shard_of(user, count) != id
            {
                findings.at(at, format!("{stream:?} belongs to shard {}", shard_of(user, count)));
            }
            Folded { sequence: 0, state: stream.empty(), last_at_us: row.occurred_at_us }
        });
        folded.last_at_us = row.occurred_at_us;
        folded.sequence += 1;
        if row.sequence != folded.sequence {
            let what = format!("{stream:?} has sequence {} here, not {}", row.sequence, folded.sequence);
            self.findings.at(at, what);
            folded.sequence = row.sequence;
        }
        folded.state.apply(event);
        self.post(at, &stream, event);
    }

    fn post(&mut self, at: LogPosition, stream: &StreamId, event: &Event) {
        let postings = postings(stream, event);
        for (unit, sum) in unbalanced(postings.iter().map(|posting| (&posting.account, posting.amount))) {
            self.findings.at(at, format!("the postings in {unit} sum to {sum} and not to zero"));
        }
        for posting in postings {
            let account = self.ledger.entry(of_everybody(posting.account)).or_default();
            match account.checked_add(posting.amount) {
                Some(points) => *account = points,
                None => self.findings.at(at, "an account of the books overflows".to_owned()),
            }
        }
    }

    /// What can be said of the shard by itself, when all of it was read.
    pub fn end(&mut self) {
        for (unit, sum) in unbalanced(self.ledger.iter().map(|(account, amount)| (account, *amount))) {
            self.findings.of(self.id, format!("the ledger's {unit} sum to {sum} instead of zero"));
        }
        self.tree.end(self.id, self.last, &mut self.findings);
    }

    /// The state of a stream, if it has any event.
    pub fn state(&self, stream: &StreamId) -> Option<&State> {
        self.streams.get(stream).map(|folded| &folded.state)
    }
}

pub fn decode(row: &EventRow<'_>) -> Result<(StreamId, Event), skyriff_domain::stream::DecodeError> {
    let stream = StreamId::decode(&row.aggregate_type, &row.aggregate_id)?;
    let event = Event::decode(&stream, &row.event_type, &row.event_version, &row.payload)?;
    Ok((stream, event))
}

/// What amounts on accounts come to, in each unit: points and the money of providers are never added up.
pub fn sums<'a>(amounts: impl IntoIterator<Item = (&'a Account, i64)>) -> BTreeMap<Unit, i128> {
    let mut sums = BTreeMap::new();
    for (account, amount) in amounts {
        *sums.entry(account.unit()).or_default() += i128::from(amount);
    }
    sums
}

/// The units in which amounts do not come to zero.
fn unbalanced<'a>(amounts: impl IntoIterator<Item = (&'a Account, i64)>) -> impl Iterator<Item = (Unit, i128)> {
    sums(amounts).into_iter().filter(|(_, sum)| *sum != 0)
}

/// The account of the chart that a user's account belongs to.
pub fn of_everybody(account: Account) -> Account {
    let nobody = UserId(Uuid::nil());
    if let Account::User { standing, bucket, user: _ } = account {
        Account::User { user: nobody, standing, bucket }
    } else {
        account
    }
}

#[cfg(test)]
mod tests {
    use skyriff_domain::ledger::Account;
    use skyriff_proof::{Frontier, Hash, Head};

    use super::{
        super::{report::Report, tree::Kept},
        Findings, Shard, ShardCount, ShardId, Tree,
    };

    const CHANGED: [(&str, i64); 3] =
        [("platform:expiry", 5), ("platform:provider_payable:usd", -5), ("platform:transit", 0)];
    const BALANCED: [(&str, i64); 4] = [
        ("platform:expiry", 5),
        ("platform:transit", -5),
        ("platform:provider_cost:usd", 7),
        ("platform:provider_payable:usd", -7),
    ];

    fn shard(amounts: &[(&str, i64)]) -> Shard {
        let mut shard = Shard::new(ShardId(3), ShardCount::default(), Tree::new(Vec::new(), None, None));
        let account = |name| Account::named(name, super::UserId(super::Uuid::nil())).unwrap();
        shard.ledger = amounts.iter().map(|(name, amount)| (account(name), *amount)).collect();
        shard
    }

    fn told(findings: &Findings) -> Vec<String> {
        findings.told().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_is_sealed_under_the_root_of_nothing_alone() {
        let kept = |root| Kept { head: Head { size: 0, root }, name: "kept".into() };
        for (root, told_of_it) in [
            (Frontier::empty().root(), vec![]),
            (Hash([7; 32]), vec!["shard 3: kept has sealed no event of it, under a root that is not that of nothing"]),
        ] {
            let shard = Shard::new(ShardId(3), ShardCount::default(), Tree::new(vec![kept(root)], None, None));
            assert_eq!(told(&shard.findings), told_of_it);
        }
    }

    #[test]
    fn what_a_unit_lacks_is_not_made_up_for_by_another() {
        let mut shard = shard(&CHANGED);
        shard.end();
        let wrong = [
            "shard 3: the ledger's points sum to 5 instead of zero",
            "shard 3: the ledger's millionths of usd sum to -5 instead of zero",
        ];
        assert_eq!(told(&shard.findings), wrong);
        let mut report = Report::default();
        report.add(shard);
        report.end();
        let of_all = [
            "the ledger's points sum to 5 instead of zero",
            "the ledger's millionths of usd sum to -5 instead of zero",
        ];
        assert_eq!(told(&report.findings), [wrong, of_all].concat());
    }

    #[test]
    fn books_that_are_zero_in_each_unit_are_well() {
        let mut shard = shard(&BALANCED);
        shard.end();
        let mut report = Report::default();
        report.add(shard);
        report.end();
        assert_eq!(told(&report.findings), <[&str; 0]>::default());
    }
}
