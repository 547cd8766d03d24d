//! What others need to read the topic: a JSON Schema for each type and version of event, and an AsyncAPI document.
//!
//! They are made from the types that write the events, and checked in below `schemas/`; a test compares the two. What
//! was published is kept: a change that would break a reader is a new version of the event, see [`breaks_in`].

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use skyriff_domain::{AggregateSchema, Event};

use crate::{message::type_of, settings::TOPIC};

/// How utoipa refers to a definition, and how a file that stands alone does.
const COMPONENTS: &str = "#/components/schemas/";
const DEFINITIONS: &str = "#/$defs/";
/// The topic and what all messages have in common.
const ASYNCAPI: &str = "asyncapi.json";
/// What only explains.
const ANNOTATIONS: [&str; 5] = ["title", "description", "examples", "$defs", "$id"];

/// Every file below `schemas/`, by its path there.
pub fn files() -> BTreeMap<String, Value> {
    let mut files = BTreeMap::new();
    let mut types = Vec::new();
    for aggregate in Event::schemas() {
        for (event_type, schema) in aggregate.by_type() {
            let name = type_of(aggregate.aggregate_type, &event_type, aggregate.version);
            files.insert(event_file(&name), stand_alone(&name, schema, &aggregate));
            types.push(name);
        }
    }
    files.insert(ASYNCAPI.to_owned(), asyncapi(&types));
    files
}

/// As the files are written.
pub fn text(schema: &Value) -> String {
    format!("{schema:#}\n")
}

fn event_file(name: &str) -> String {
    format!("events/{name}.json")
}

/// With what it refers to, as a document of its own.
fn stand_alone(name: &str, event: Value, aggregate: &AggregateSchema) -> Value {
    let all: BTreeMap<_, _> = aggregate.definitions.iter().map(|(name, schema)| (name.as_str(), schema)).collect();
    let event = as_json_schema(event);
    let mut definitions = Map::new();
    let mut wanted = references(&event);
    while let Some(name) = wanted.pop() {
        if !definitions.contains_key(&name)
            && let Some(schema) = all.get(name.as_str())
        {
            let schema = as_json_schema(serde_json::to_value(schema).unwrap_or_default());
            wanted.extend(references(&schema));
            definitions.insert(name, schema);
        }
    }
    let mut document = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": format!("urn:skyriff:event:{name}"),
        "title": name,
    });
    if let (Some(document), Value::Object(event)) = (document.as_object_mut(), event) {
        document.extend(event);
        if !definitions.is_empty() {
            document.insert("$defs".to_owned(), Value::Object(definitions));
        }
    }
    document
}

/// From OpenAPI's dialect. A reader is to ignore what it does not know, so that a version may still gain a field.
fn as_json_schema(schema: Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let field = |(name, value): (String, Value)| match name.as_str() {
                "additionalProperties" if value == false => None,
                "example" => Some(("examples".to_owned(), json!([value]))),
                "$ref" => {
                    let local = value.as_str().unwrap_or_default().replace(COMPONENTS, DEFINITIONS);
                    Some((name, Value::String(local)))
                }
                _ => Some((name, as_json_schema(value))),
            };
            Value::Object(fields.into_iter().filter_map(field).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(as_json_schema).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => schema,
    }
}

fn references(schema: &Value) -> Vec<String> {
    match schema {
        Value::Object(fields) => {
            let own = fields.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(DEFINITIONS));
            own.map(str::to_owned).into_iter().chain(fields.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// What of a published file below `schemas/` a reader may rely on, and no longer could, by its path there.
pub fn breaks_in(path: &str, before: &Value, now: &Value) -> Vec<String> {
    if path != ASYNCAPI {
        return breaks(before, now);
    }
    // The rest of it explains, or is made of the other files.
    let headers = |document: &Value| document["components"]["schemas"]["headers"].clone();
    let messages =
        |document: &Value| document["channels"]["events"]["messages"].as_object().cloned().unwrap_or_default();
    let still = messages(now);
    let gone = messages(before).into_iter().map(|(name, _)| name).filter(|name| !still.contains_key(name));
    let gone = gone.map(|name| format!("{name} is gone"));
    breaks(&headers(before), &headers(now)).into_iter().map(|broken| format!("headers: {broken}")).chain(gone).collect()
}

/// What of a published schema a reader may rely on, and no longer could: none when a change is safe.
///
/// Safe are new fields, and whatever only explains. Not safe is to take a field away, to no longer promise it, or to let
/// it hold anything else than before.
pub fn breaks(before: &Value, now: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    compare(&Side { root: before, at: before }, &Side { root: now, at: now }, "", &mut broken);
    broken
}

/// A part of a document.
struct Side<'a> {
    root: &'a Value,
    at: &'a Value,
}

impl<'a> Side<'a> {
    /// Where a reference leads.
    fn resolved(&self) -> &'a Value {
        let name = self.at.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(DEFINITIONS));
        name.map_or(self.at, |name| &self.root["$defs"][name])
    }

    fn with(&self, at: &'a Value) -> Self {
        Self { root: self.root, at }
    }
}

fn compare(before: &Side<'_>, now: &Side<'_>, path: &str, broken: &mut Vec<String>) {
    let place = if path.is_empty() { "the event" } else { path };
    match (before.resolved(), now.resolved()) {
        (Value::Object(was), Value::Object(is)) => {
            let names = was.keys().chain(is.keys().filter(|name| !was.contains_key(*name)));
            for name in names.filter(|name| !ANNOTATIONS.contains(&name.as_str())) {
                match (name.as_str(), was.get(name), is.get(name)) {
                    ("properties", Some(Value::Object(was)), Some(Value::Object(is))) => {
                        for (field, was) in was {
                            match is.get(field) {
                                Some(is) => {
                                    compare(&before.with(was), &now.with(is), &format!("{path}/{field}"), broken)
                                }
                                None => broken.push(format!("{path}/{field} is gone")),
                            }
                        }
                    }
                    ("required", Some(Value::Array(was)), is) => {
                        let still = is.and_then(Value::as_array).cloned().unwrap_or_default();
                        for field in was.iter().filter(|field| !still.contains(field)) {
                            broken.push(format!("{path}/{} may be missing now", field.as_str().unwrap_or_default()));
                        }
                    }
                    // A new field; that it is always there, too.
                    ("properties" | "required", None, Some(_)) => {}
                    (_, Some(was), Some(is)) => {
                        compare(&before.with(was), &now.with(is), &format!("{path}/{name}"), broken);
                    }
                    (_, Some(_), None) => broken.push(format!("{place} is no longer limited by {name:?}")),
                    (_, None, _) => broken.push(format!("{place} is now limited by {name:?}")),
                }
            }
        }
        (Value::Array(was), Value::Array(is)) if was.len() == is.len() => {
            for (index, (was, is)) in was.iter().zip(is).enumerate() {
                compare(&before.with(was), &now.with(is), &format!("{path}/{index}"), broken);
            }
        }
        (was, is) if was == is => {}
        (was, is) => broken.push(format!("{place} was {was} and is {is}")),
    }
}

/// The topic, for tools that know AsyncAPI 3.
fn asyncapi(types: &[String]) -> Value {
    let message = |name: &String| {
        let message = json!({
            "name": name,
            "title": name,
            "contentType": "application/json",
            "headers": { "$ref": "#/components/schemas/headers" },
            "payload": {
                "schemaFormat": "application/schema+json;version=draft-2020-12",
                "schema": { "$ref": format!("./{}", event_file(name)) }
            },
            "bindings": { "kafka": {
                "key": { "type": "string", "description": "The stream: AGGREGATE/ID.", "examples": ["points_account/959de6e1-d9ef-5a29-a884-f19f971b9c27"] },
                "bindingVersion": "0.5.0"
            } }
        });
        (name.clone(), message)
    };
    let refer = |name: &String| (name.clone(), json!({ "$ref": format!("#/components/messages/{name}") }));
    let in_channel: Map<_, _> = types.iter().map(refer).collect();
    let messages: Map<_, _> = types.iter().map(message).collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "SkyRiff's events",
            "version": "1",
            "description": "Everything that happens in SkyRiff, as CloudEvents 1.0 in Kafka's binary mode.\n\n\
                A partition is a shard: everything of a user is in one partition, in order. Delivery is at least once and in \
                order: take a message whose ce_position is the next after the last one that you took of its partition, drop \
                one that is not later than that, and treat anything else as an alarm. Ignore fields and types that you do \
                not know: both are added over time. What is there does not change; a changed event is a new version."
        },
        "defaultContentType": "application/json",
        "channels": { "events": {
            "address": TOPIC,
            "messages": in_channel,
            "bindings": { "kafka": {
                "topic": TOPIC,
                "topicConfiguration": { "cleanup.policy": ["delete"], "retention.ms": -1 },
                "bindingVersion": "0.5.0"
            } }
        } },
        "operations": { "sendEvents": { "action": "send", "channel": { "$ref": "#/channels/events" } } },
        "components": { "messages": messages, "schemas": { "headers": headers() } }
    })
}

/// As [`crate::message`] describes them. Header values are text.
fn headers() -> Value {
    let text = |description: &str, example: &str| json!({ "type": "string", "description": description, "examples": [example] });
    let number = |description: &str| json!({ "type": "string", "pattern": "^[0-9]+$", "description": description });
    let time = |description: &str| json!({ "type": "string", "format": "date-time", "description": description });
    json!({
        "type": "object",
        "required": [
            "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "ce_time", "content-type", "ce_shard",
            "ce_position", "ce_streamsequence", "ce_recordedtime"
        ],
        "properties": {
            "ce_specversion": { "type": "string", "const": "1.0" },
            "ce_id": text("Shard and position: unique within the source, the same however often it is sent.", "9:42"),
            "ce_source": text("The store.", "/skyriff"),
            "ce_type": text("Aggregate, event and version: the name of the schema.", "skyriff.points_account.checked_in.v1"),
            "ce_subject": text("The stream, as in the key.", "points_account/959de6e1-d9ef-5a29-a884-f19f971b9c27"),
            "ce_time": time("When it happened in the world."),
            "content-type": { "type": "string", "const": "application/json" },
            "ce_shard": number("The shard, which is the partition."),
            "ce_position": number("The place in the shard's log: 1, 2, 3 … without a gap."),
            "ce_streamsequence": number("Which of the stream's events it is, from 1."),
            "ce_recordedtime": time("When the log recorded it."),
            "ce_commandid": { "type": "string", "format": "uuid", "description": "The command that recorded it." },
            "ce_correlationid": text("The request that brought the command.", "3f0c9a56-9a1c-4b7e-8a53-6f2f0e4f8e11"),
            "ce_causationid": text("The event that made a process send the command.", "9:41"),
            "ce_traceparent": text("W3C trace context of the request.", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        }
    })
}

#[cfg(test)]
mod tests;
