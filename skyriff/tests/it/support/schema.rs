//! Whether a message is what `schemas/` says, for readers who have nothing else.

use std::{collections::BTreeMap, fs, path::Path, sync::LazyLock};

use jsonschema::{ValidationOptions, Validator};
use serde_json::{Map, Value};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas");

/// The checked-in schemas of events, by type, and that of the headers.
static EVENTS: LazyLock<BTreeMap<String, Validator>> = LazyLock::new(|| {
    let files = fs::read_dir(format!("{FOLDER}/events")).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: std::path::PathBuf| (path.file_stem().unwrap().to_str().unwrap().to_owned(), check(read(&path)));
    files.map(named).collect()
});
static HEADERS: LazyLock<Validator> = LazyLock::new(|| {
    let asyncapi = read(Path::new(&format!("{FOLDER}/asyncapi.json")));
    check(asyncapi["components"]["schemas"]["headers"].clone())
});

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn check(mut schema: Value) -> Validator {
    close(&mut schema);
    schema["unevaluatedProperties"] = Value::Bool(false);
    options().build(&schema).unwrap()
}

/// Formats count, and one that is not known is an error.
pub fn options<'o>() -> ValidationOptions<'o> {
    let options = jsonschema::options().should_validate_formats(true).should_ignore_unknown_formats(false);
    // Those of numbers say nothing of texts: see `close`.
    let of_numbers = ["int32", "int64", "double"].into_iter();
    of_numbers.fold(options, |options, format| options.with_format(format, |_: &str| true))
}

/// What is wrong with a message: nothing, if its headers and its payload are as described.
pub fn wrong(kind: &str, payload: &str, headers: &[(String, String)]) -> Vec<String> {
    let Some(schema) = EVENTS.get(kind) else { return vec![format!("{kind} has no schema")] };
    let headers = headers.iter().map(|(name, value)| (name.clone(), Value::String(value.clone())));
    let headers = Value::Object(headers.collect());
    let mut wrong: Vec<_> = HEADERS.iter_errors(&headers).map(|error| format!("{kind}'s headers: {error}")).collect();
    match serde_json::from_str(payload) {
        Ok(payload) => {
            wrong.extend(schema.iter_errors(&payload).map(|error| format!("{kind}: {error}")));
            // JSON Schema takes 1.0 for an integer, and no event has a fraction.
            wrong.extend(has_fraction(&payload).then(|| format!("{kind} has a number that is no integer")));
        }
        Err(error) => wrong.push(format!("{kind} is no JSON: {error}")),
    }
    wrong
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(parts) => parts.iter().any(has_fraction),
        Value::Object(members) => members.values().any(has_fraction),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

/// Readers pass over members that are not described; we have to say what they are. And JSON Schema itself does not know
/// how wide `OpenAPI`'s integers are.
pub fn close(schema: &mut Value) {
    match schema {
        Value::Array(parts) => parts.iter_mut().for_each(close),
        Value::Object(members) => {
            for (keyword, part) in members.iter_mut() {
                match (keyword.as_str(), &mut *part) {
                    ("properties", Value::Object(properties)) => properties.values_mut().for_each(say_all),
                    ("items" | "additionalProperties", part) => say_all(part),
                    ("prefixItems", Value::Array(items)) => items.iter_mut().for_each(say_all),
                    _ => {}
                }
                close(part);
            }
            let bounds = match members.get("format").and_then(Value::as_str) {
                Some("int32") => Some((i64::from(i32::MIN), i64::from(i32::MAX))),
                Some("int64") => Some((i64::MIN, i64::MAX)),
                Some(_) | None => None,
            };
            if let Some((least, most)) = bounds {
                members.entry("minimum").or_insert_with(|| least.into());
                members.entry("maximum").or_insert_with(|| most.into());
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A value's schema has all of its members, if it has any.
fn say_all(schema: &mut Value) {
    let has_members = |schema: &Map<String, Value>| {
        ["$ref", "oneOf", "anyOf", "allOf", "properties"].iter().any(|keyword| schema.contains_key(*keyword))
    };
    if let Some(schema) = schema.as_object_mut().filter(|schema| has_members(schema)) {
        schema.insert("unevaluatedProperties".to_owned(), Value::Bool(false));
    }
}
