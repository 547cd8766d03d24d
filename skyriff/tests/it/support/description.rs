//! Whether what a process answers is what its own description says, for clients that are made from nothing else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use jsonschema::{Registry, Validator};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::{Value, json};

use super::{Answer, schema};

/// Where references into the description lead.
const ROOT: &str = "urn:description";

/// What one process says of itself.
pub struct Description {
    paths: Vec<(String, Value)>,
    registry: Registry<'static>,
    /// Made when an answer first needs them, by their place in the description.
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

impl Description {
    pub fn of(mut document: Value) -> Self {
        schema::close(&mut document["components"]["schemas"]);
        let paths = document["paths"].as_object().unwrap().clone().into_iter().collect();
        let registry = Registry::new().add(ROOT, document).unwrap().prepare().unwrap();
        Self { paths, registry, validators: Mutex::default() }
    }

    /// What is wrong with an answer: nothing, if it is as described. What is not described at all is a 404 or a 405.
    pub fn wrong(&self, method: &Method, path: &str, answer: &Answer) -> Vec<String> {
        let path = path.split('?').next().unwrap_or_default();
        let method = method.as_str().to_lowercase();
        let operation = self.template(path).and_then(|(template, item)| Some((template, item.get(&method)?)));
        let Some((template, operation)) = operation else { return Vec::new() };
        let status = answer.status.as_str();
        let Some(response) = operation["responses"].get(status) else {
            return vec![format!("{method} {template} answers {status}, which its description does not have")];
        };
        let Some(content) = response.get("content").and_then(Value::as_object) else { return Vec::new() };
        let kind = answer.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !content.contains_key(kind) {
            return vec![format!(
                "{method} {template} answers {status} with {kind:?}; its description has {content:?}"
            )];
        }
        if !kind.ends_with("json") || kind == "application/x-ndjson" {
            return Vec::new();
        }
        let place = ["paths", template, &method, "responses", status, "content", kind, "schema"].map(escaped).concat();
        let validator = self.validator(&place);
        let said = |error: jsonschema::ValidationError<'_>| {
            format!("{method} {template} answers {status} with {}: {error}", error.instance_path())
        };
        validator.iter_errors(&answer.json).map(said).collect()
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
            let options = jsonschema::options().with_registry(&self.registry).should_validate_formats(true);
            Arc::new(options.build(&schema).unwrap())
        });
        Arc::clone(made)
    }
}

/// A member's name, as a step of a JSON Pointer (RFC 6901) in a URI's fragment.
fn escaped(name: &str) -> String {
    let step = name.replace('~', "~0").replace('/', "~1");
    format!("/{}", step.replace('{', "%7B").replace('}', "%7D"))
}
