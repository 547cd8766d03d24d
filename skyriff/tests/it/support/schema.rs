//! Whether a message is what `schemas/` says, for readers who have nothing else.
//!
//! A small part of JSON Schema: what our schemas use. A keyword that this does not know is an error, so that a new one is
//! not passed over in silence.

use std::{collections::BTreeMap, fs, sync::LazyLock};

use chrono::{DateTime, NaiveDate};
use serde_json::{Map, Value};
use uuid::Uuid;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas");

/// The checked-in schemas of events, by type, and that of the headers.
static EVENTS: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
    let files = fs::read_dir(format!("{FOLDER}/events")).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: std::path::PathBuf| (path.file_stem().unwrap().to_str().unwrap().to_owned(), read(&path));
    files.map(named).collect()
});
static HEADERS: LazyLock<Value> = LazyLock::new(|| {
    let asyncapi = read(std::path::Path::new(&format!("{FOLDER}/asyncapi.json")));
    asyncapi["components"]["schemas"]["headers"].clone()
});

fn read(path: &std::path::Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What is wrong with a message: nothing, if its headers and its payload are as described.
pub fn wrong(kind: &str, payload: &str, headers: &[(String, String)]) -> Vec<String> {
    let Some(schema) = EVENTS.get(kind) else { return vec![format!("{kind} has no schema")] };
    let headers = headers.iter().map(|(name, value)| (name.clone(), Value::String(value.clone())));
    let headers = Value::Object(headers.collect());
    let mut wrong = Vec::new();
    check(&HEADERS, &HEADERS, &headers, "headers", &mut wrong);
    match serde_json::from_str(payload) {
        Ok(payload) => check(schema, schema, &payload, kind, &mut wrong),
        Err(error) => wrong.push(format!("{kind} is no JSON: {error}")),
    }
    wrong
}

fn check(root: &Value, schema: &Value, value: &Value, path: &str, wrong: &mut Vec<String>) {
    for (keyword, says) in schema.as_object().unwrap() {
        let mut must = |holds: bool, what: &str| {
            if !holds {
                wrong.push(format!("{path} is {value}, and {what}: {keyword} {says}"));
            }
        };
        match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" | "examples" => {}
            "$ref" => {
                let name = says.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                check(root, &root["$defs"][name], value, path, wrong);
            }
            "type" => must(has_type(value, says), "is of another type"),
            "const" => must(value == says, "is another"),
            "enum" => must(says.as_array().unwrap().contains(value), "is none of these"),
            "minimum" => must(value.as_i64().is_none_or(|number| Some(number) >= says.as_i64()), "is less"),
            "maximum" => must(value.as_i64().is_none_or(|number| Some(number) <= says.as_i64()), "is more"),
            "minLength" => must(length(value).is_none_or(|length| Some(length) >= says.as_u64()), "is shorter"),
            "maxLength" => must(length(value).is_none_or(|length| Some(length) <= says.as_u64()), "is longer"),
            "pattern" => must(value.as_str().is_none_or(|text| is_all_of(text, says)), "is not like it"),
            "format" => must(has_format(value, says.as_str().unwrap()), "is not of the format"),
            "required" => {
                let missing = |name: &&Value| value.get(name.as_str().unwrap()).is_none();
                must(says.as_array().unwrap().iter().find(missing).is_none(), "has not all");
            }
            "oneOf" => {
                let fits = says.as_array().unwrap().iter().filter(|schema| {
                    let mut wrong = Vec::new();
                    check(root, schema, value, path, &mut wrong);
                    wrong.is_empty()
                });
                must(fits.count() == 1, "is not one of them");
            }
            "properties" => {
                for (name, value) in members(value) {
                    match says.get(name) {
                        Some(schema) => check(root, schema, value, &format!("{path}/{name}"), wrong),
                        // A reader would pass it over; we have to say what it is.
                        None if schema.get("additionalProperties").is_none() => {
                            wrong.push(format!("{path}/{name} is not described"));
                        }
                        None => {}
                    }
                }
            }
            "additionalProperties" => {
                let named = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
                for (name, value) in members(value).filter(|(name, _)| !named.contains_key(*name)) {
                    check(root, says, value, &format!("{path}/{name}"), wrong);
                }
            }
            "propertyNames" => {
                for (name, _) in members(value) {
                    check(root, says, &Value::String(name.clone()), &format!("the name of {path}/{name}"), wrong);
                }
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, says, value, &format!("{path}/{index}"), wrong);
                }
            }
            other => wrong.push(format!("{path}: this check does not know {other:?}")),
        }
    }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn has_type(value: &Value, says: &Value) -> bool {
    if let Some(any) = says.as_array() {
        return any.iter().any(|one| has_type(value, one));
    }
    match says.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("this check does not know the type {other}"),
    }
}

fn length(value: &Value) -> Option<u64> {
    value.as_str().and_then(|text| text.chars().count().try_into().ok())
}

/// A pattern is a class of characters, one or more times.
fn is_all_of(text: &str, pattern: &Value) -> bool {
    let class = pattern.as_str().unwrap().strip_prefix("^[").and_then(|rest| rest.strip_suffix("]+$"));
    let class: Vec<char> =
        class.unwrap_or_else(|| panic!("this check does not know the pattern {pattern}")).chars().collect();
    let is_in = |char: char| {
        let in_range = |range: &[char]| matches!(range, [from, '-', to] if (*from..=*to).contains(&char));
        class.windows(3).any(in_range) || class.contains(&char)
    };
    !text.is_empty() && text.chars().all(is_in)
}

/// Formats are about text or about whole numbers, and say nothing of anything else.
fn has_format(value: &Value, format: &str) -> bool {
    match (value, format) {
        (Value::String(text), "uuid") => text.parse::<Uuid>().is_ok(),
        (Value::String(text), "date") => text.parse::<NaiveDate>().is_ok(),
        (Value::String(text), "date-time") => DateTime::parse_from_rfc3339(text).is_ok(),
        (Value::Number(number), "int32") => number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
        (Value::Number(number), "int64") => number.is_i64(),
        (_, "uuid" | "date" | "date-time" | "int32" | "int64") => true,
        (_, other) => panic!("this check does not know the format {other}"),
    }
}
