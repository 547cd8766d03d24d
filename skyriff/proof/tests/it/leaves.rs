//! `vectors/leaves.json`: rows with their entries and hashes. Never changed, only added to: events are hashed for ever.

use std::borrow::Cow;

use serde_json::{Value, json};
use skyriff_proof::{EventRow, Hash};

use crate::{python, vectors};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn rows_are_hashed_as_the_vectors_say() {
    let vectors = vectors::read("leaves.json");
    let vectors = vectors.as_array().unwrap();
    assert!(vectors.len() >= 5);
    let calls: Vec<_> = vectors.iter().map(|vector| python::call("leaf_hex", json!([vector["event"]]))).collect();
    let by_python = python::run(&calls);
    for (vector, by_python) in vectors.iter().zip(by_python) {
        let row: EventRow = serde_json::from_value(vector["event"].clone()).unwrap();
        assert_eq!(hex(&row.entry().unwrap()), vector["entry"].as_str().unwrap());
        let leaf = row.leaf().unwrap();
        assert_eq!(leaf, Hash::leaf(&row.entry().unwrap()));
        assert_eq!((json!(hex(&leaf.0)), &by_python), (vector["leaf"].clone(), &vector["leaf"]));
        // Nothing of the row is lost on the way to the answer and back.
        assert_eq!(serde_json::to_value(&row).unwrap(), vector["event"]);
    }
}

#[test]
fn a_change_of_any_column_is_another_leaf() {
    let row: EventRow = serde_json::from_value(vectors::read("leaves.json")[0]["event"].clone()).unwrap();
    let Value::Object(columns) = serde_json::to_value(&row).unwrap() else { panic!("a row is an object") };
    assert_eq!(columns.len(), 11);
    for (column, value) in &columns {
        let mut changed = columns.clone();
        changed[column] = value.as_i64().map_or_else(|| json!(format!("{value} ")), |number| json!(number + 1));
        let changed: EventRow = serde_json::from_value(Value::Object(changed)).unwrap();
        assert_ne!(changed.leaf(), row.leaf(), "{column}");
    }
    // What moves from the end of one column to the beginning of the next.
    let moved = EventRow { aggregate_type: Cow::from("a"), aggregate_id: Cow::from("bc"), ..row.clone() };
    let apart = EventRow { aggregate_type: Cow::from("ab"), aggregate_id: Cow::from("c"), ..row };
    assert_ne!(moved.leaf(), apart.leaf());
}
