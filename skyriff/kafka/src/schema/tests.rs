use std::{fs, path::Path};

use super::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas");

fn checked_in() -> BTreeMap<String, Value> {
    let events = fs::read_dir(Path::new(FOLDER).join("events")).unwrap();
    let events = events.map(|entry| format!("events/{}", entry.unwrap().file_name().to_str().unwrap()));
    let read = |path: String| {
        let text = fs::read_to_string(Path::new(FOLDER).join(&path)).unwrap();
        (path, serde_json::from_str(&text).unwrap())
    };
    events.chain(["asyncapi.json".to_owned()]).map(read).collect()
}

#[test]
fn what_was_published_holds_and_is_up_to_date() {
    let (published, now) = (checked_in(), files());
    for (path, before) in &published {
        let Some(now) = now.get(path) else {
            panic!(
                "{path} was published, and there is no such event any more: events are kept for ever, and so is what reads them"
            );
        };
        let broken = breaks_in(path, before, now);
        assert!(
            broken.is_empty(),
            "{path} would break its readers: {broken:?}\nundo the change, or make it a new version of the event with an upcaster"
        );
    }
    for (path, now) in &now {
        assert!(
            published.get(path) == Some(now),
            "schemas/{path} is not what the code says; run `make schemas` and look at what changed"
        );
    }
}

#[test]
fn every_event_is_described_whole() {
    let files = files();
    assert!(files.len() > 20, "{}", files.len());
    for (path, schema) in files.iter().filter(|(path, _)| path.starts_with("events/")) {
        let defined =
            schema["$defs"].as_object().map(|all| all.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        for name in references(schema) {
            assert!(defined.contains(&name), "{path} refers to {name}");
        }
        assert!(!schema.to_string().contains(COMPONENTS), "{path}");
        assert!(schema["description"].is_string(), "{path} says nothing");
        assert_eq!(schema["properties"].as_object().map(Map::len), Some(1), "{path}");
    }
}

#[test]
fn a_change_that_breaks_readers_is_seen() {
    let before = json!({
        "description": "It happened.",
        "properties": { "paid": {
            "type": "object",
            "required": ["points", "how"],
            "properties": {
                "points": { "$ref": "#/$defs/Points" },
                "how": { "type": "string", "enum": ["card", "cash"] },
                "note": { "type": ["string", "null"] }
            }
        } },
        "required": ["paid"],
        "$defs": { "Points": { "type": "integer", "minimum": 0 } }
    });
    let table: [(&str, Value, Option<&str>); 9] = [
        ("/description", json!("It happened, once."), None),
        ("/properties/paid/properties/when", json!({ "type": "string" }), None),
        ("/properties/paid/required", json!(["points", "how", "note"]), None),
        ("/properties/paid/required", json!(["points"]), Some("/paid/how may be missing")),
        (
            "/properties/paid/properties",
            json!({ "points": { "type": "integer", "minimum": 0 }, "how": { "type": "string", "enum": ["card", "cash"] } }),
            Some("/paid/note is gone"),
        ),
        ("/$defs/Points/type", json!("string"), Some("/paid/points/type was \"integer\"")),
        ("/$defs/Points/maximum", json!(5), Some("limited by \"maximum\"")),
        ("/properties/paid/properties/how/enum", json!(["card", "cash", "shells"]), Some("/paid/how/enum")),
        ("/properties", json!({ "payed": {} }), Some("/paid is gone")),
    ];
    for (place, value, expected) in table {
        let mut now = before.clone();
        let (parent, name) = place.rsplit_once('/').unwrap();
        now.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(name.to_owned(), value);
        let broken = breaks(&before, &now);
        match expected {
            None => assert!(broken.is_empty(), "{place}: {broken:?}"),
            Some(why) => assert!(broken.iter().any(|said| said.contains(why)), "{place}: {broken:?}"),
        }
    }
}

#[test]
fn headers_and_types_are_relied_upon_as_well() {
    let before = files().remove(ASYNCAPI).unwrap();
    let headers = "/components/schemas/headers";
    type Change = fn(&mut Map<String, Value>);
    let table: [(&str, Change, Option<&str>); 6] = [
        ("/info", |info| drop(info.insert("title".to_owned(), json!("Events"))), None),
        (headers, |headers| headers["properties"]["ce_new"] = json!({ "type": "string" }), None),
        (
            headers,
            |headers| drop(headers["properties"].as_object_mut().unwrap().remove("ce_shard")),
            Some("headers: /ce_shard is gone"),
        ),
        (
            headers,
            |headers| headers["required"].as_array_mut().unwrap().retain(|name| name != "ce_shard"),
            Some("headers: /ce_shard may be missing"),
        ),
        (
            headers,
            |headers| headers["properties"]["ce_position"]["pattern"] = json!("^[0-9a-f]+$"),
            Some("headers: /ce_position/pattern"),
        ),
        (
            "/channels/events/messages",
            |messages| drop(messages.remove("skyriff.points_account.spent.v1")),
            Some("skyriff.points_account.spent.v1 is gone"),
        ),
    ];
    for (place, change, expected) in table {
        let mut now = before.clone();
        change(now.pointer_mut(place).unwrap().as_object_mut().unwrap());
        assert_ne!(before, now, "{place}");
        let broken = breaks_in(ASYNCAPI, &before, &now);
        match expected {
            None => assert!(broken.is_empty(), "{place}: {broken:?}"),
            Some(why) => assert!(broken.iter().any(|said| said.contains(why)), "{place}: {broken:?}"),
        }
    }
}
