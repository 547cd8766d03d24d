//! Whether what a process answers is what its own description says, for clients that are made from nothing else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use jsonschema::{Registry, ValidationError, Validator};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::{Value, json};

use super::{Answer, schema};

/// Where references into the description lead.
const ROOT: &str = "urn:description";
/// What is not described, and is there: the description itself, and files as C2SP tlog-tiles names them, whose names have
/// slashes that no parameter of a path can have.
const ELSEWHERE: [&str; 3] = ["/v1/openapi.json", "/v1/docs", "/v1/ledger/tlog/"];

/// What one process says of itself.
pub struct Description {
    paths: Vec<(String, Value)>,
    registry: Registry<'static>,
    /// Made when an answer first needs them, by their place in the description.
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

impl Description {
    pub fn of(mut document: Value) -> Self {
        schema::close(&mut document);
        let paths = document["paths"].as_object().unwrap().clone().into_iter().collect();
        let registry = Registry::new().add(ROOT, document).unwrap().prepare().unwrap();
        Self { paths, registry, validators: Mutex::default() }
    }

    /// What is wrong with an answer: nothing, if it is as described.
    pub fn wrong(&self, method: &Method, path: &str, answer: &Answer) -> Vec<String> {
        let (status, method) = (answer.status, method.as_str().to_lowercase());
        let operation = self.template(path).and_then(|(template, item)| Some((template, item.get(&method)?)));
        let Some((template, operation)) = operation else {
            let is_wrong = status.is_success() && !ELSEWHERE.iter().any(|start| path.starts_with(start));
            return is_wrong
                .then(|| format!("{method} {path} answers {status}, and is not described"))
                .into_iter()
                .collect();
        };
        let answers = format!("{method} {template} answers {}", status.as_str());
        let Some(response) = operation["responses"].get(status.as_str()) else {
            return vec![format!("{answers}, which its description does not have")];
        };
        let Some(content) = response.get("content").and_then(Value::as_object) else {
            let is_wrong = response.get("$ref").is_some() || !answer.bytes.is_empty();
            return is_wrong.then(|| format!("{answers} with a body, which is not described")).into_iter().collect();
        };
        let kind = answer.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !content.contains_key(kind) {
            let kinds: Vec<_> = content.keys().collect();
            return vec![format!("{answers} with {kind:?}; its description has {kinds:?}")];
        }
        let parts: Vec<&[u8]> = match kind {
            "application/json" | "application/problem+json" => vec![&answer.bytes],
            "application/x-ndjson" => answer.bytes.split_inclusive(|byte| *byte == b'\n').collect(),
            _ => return Vec::new(),
        };
        let place = ["paths", template, &method, "responses", status.as_str(), "content", kind, "schema"];
        let validator = self.validator(&place.map(escaped).concat());
        let wrong_of = |part: &[u8]| match serde_json::from_slice(part) {
            Ok(part) => {
                let said = |error: ValidationError<'_>| format!("{answers} with {}: {error}", error.instance_path());
                validator.iter_errors(&part).map(said).collect()
            }
            Err(error) => vec![format!("{answers} with what is no JSON: {error}")],
        };
        parts.into_iter().flat_map(wrong_of).collect()
    }

    /// The described path that this is one of: that with the fewest parameters.
    fn template(&self, path: &str) -> Option<(&str, &Value)> {
        let is_parameter = |segment: &str| segment.starts_with('{');
        let fits = |template: &str| {
            template.split('/').count() == path.split('/').count()
                && template.split('/').zip(path.split('/')).all(|(of, is)| is_parameter(of) || of == is)
        };
        let fitting = self.paths.iter().filter(|(template, _)| fits(template));
        let best = fitting.min_by_key(|(template, _)| template.split('/').filter(|of| is_parameter(of)).count())?;
        Some((&best.0, &best.1))
    }

    fn validator(&self, place: &str) -> Arc<Validator> {
        let mut validators = self.validators.lock().unwrap();
        let made = validators.entry(place.to_owned()).or_insert_with(|| {
            let schema = json!({ "$ref": format!("{ROOT}#{place}"), "unevaluatedProperties": false });
            Arc::new(schema::options().with_registry(&self.registry).build(&schema).unwrap())
        });
        Arc::clone(made)
    }
}

/// A member's name, as a step of a JSON Pointer (RFC 6901) in a URI's fragment.
fn escaped(name: &str) -> String {
    let step = name.replace('~', "~0").replace('/', "~1");
    format!("/{}", step.replace('{', "%7B").replace('}', "%7D"))
}

#[cfg(test)]
mod tests {
    use reqwest::{
        StatusCode,
        header::{HeaderMap, HeaderValue},
    };

    use super::*;

    fn description() -> Description {
        let named = json!({ "type": "object", "required": ["name"], "properties": {
            "name": { "type": "string" }, "size": { "type": "integer", "format": "int32" },
            "at": { "type": "string", "format": "date-time" }, "parts": { "type": "array", "items": { "$ref": "#/components/schemas/Part" } }
        } });
        let schema = json!({ "schema": { "$ref": "#/components/schemas/Named" } });
        Description::of(json!({
            "paths": { "/v1/things/{thing}": { "get": { "responses": {
                "200": { "content": { "application/json": schema, "application/x-ndjson": schema } }, "204": {}
            } } } },
            "components": { "schemas": { "Named": named, "Part": { "type": "object", "properties": { "no": { "type": "integer" } } } } }
        }))
    }

    fn answer(status: u16, kind: &'static str, body: &str) -> Answer {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        Answer { status: StatusCode::from_u16(status).unwrap(), headers, json: Value::Null, bytes: body.into() }
    }

    #[test]
    fn an_answer_that_is_not_as_described_is_found() {
        let description = description();
        let json = "application/json; charset=utf-8";
        let wrong = |path, answer| description.wrong(&Method::GET, path, &answer).len();
        for (status, kind, body, expected) in [
            (200, json, r#"{"name":"a","size":1,"at":"2026-01-31T00:00:00Z","parts":[{"no":1}]}"#, 0),
            (200, json, r#"{"size":1}"#, 1),
            (200, json, r#"{"name":"a","colour":"red"}"#, 1),
            (200, json, r#"{"name":"a","size":2147483648}"#, 1),
            (200, json, r#"{"name":"a","at":"yesterday"}"#, 1),
            (200, json, r#"{"name":"a","parts":[{"no":1},{"no":1,"of":2}]}"#, 1),
            (200, json, "", 1),
            (200, json, "{", 1),
            (200, "text/html", "<p>", 1),
            (200, "application/x-ndjson", "{\"name\":\"a\"}\n{\"name\":\"b\"}\n", 0),
            (200, "application/x-ndjson", "{\"name\":\"a\"}\n{\"name\":1}\n", 1),
            (204, json, "", 0),
            (204, json, "{}", 1),
            (201, json, r#"{"name":"a"}"#, 1),
        ] {
            assert_eq!(wrong("/v1/things/1", answer(status, kind, body)), expected, "{status} {kind} {body}");
        }
        assert_eq!(wrong("/v1/others", answer(200, json, "{}")), 1);
        assert_eq!(wrong("/v1/others", answer(404, json, "{}")), 0);
        assert_eq!(wrong("/v1/ledger/tlog/3/tile/0/000", answer(200, "application/octet-stream", "x")), 0);
    }
}
