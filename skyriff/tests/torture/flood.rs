//! More than the queues of a node hold: bulk requests that wait for room, and single commands that are turned away.

use std::net::SocketAddr;

use chrono::Utc;
use uuid::Uuid;

use crate::{
    ask::{Ask, What},
    history::{Entry, Via},
    wire::{Wire, command_id},
};

const BULKS: u128 = 4;
const COMMANDS_IN_BULK: u128 = 200;
const SINGLES: u128 = 300;

/// The history of a flood, and whether it was one: whether anything found the queue full.
pub async fn flood(wire: &Wire, node: SocketAddr, name: &str) -> (Vec<Entry>, bool) {
    let before = wire.overloaded().len();
    let entry = |number: u128, via| {
        let what = What::Earn { bucket: "income", points: 1 };
        let ask = Ask { key: format!("{name}-{via:?}-{number}"), user: Uuid::from_u128(number % 12 + 1), what };
        Entry::new(command_id(&ask.key), ask, via, None, 0)
    };
    let mut sends = Vec::new();
    for bulk in 0..BULKS {
        let first = bulk * COMMANDS_IN_BULK;
        let mut entries: Vec<_> = (first..first + COMMANDS_IN_BULK).map(|number| entry(number, Via::Bulk)).collect();
        let wire = wire.clone();
        sends.push(tokio::spawn(async move {
            let asks: Vec<_> = entries.iter().map(|entry| entry.ask.clone()).collect();
            let sent_at = Utc::now();
            let answers = wire.batch(node, &asks, false).await;
            entries.iter_mut().zip(answers).for_each(|(entry, answer)| entry.hear(answer, sent_at));
            entries
        }));
    }
    for number in 0..SINGLES {
        let (mut entry, wire) = (entry(number, Via::Flood), wire.clone());
        sends.push(tokio::spawn(async move {
            let sent_at = Utc::now();
            let answer = wire.single(node, &entry.ask).await;
            entry.hear(answer, sent_at);
            vec![entry]
        }));
    }
    let mut history = Vec::new();
    for sent in sends {
        history.extend(sent.await.expect("sending does not panic"));
    }
    let filled = wire.overloaded().len() > before;
    (history, filled)
}
