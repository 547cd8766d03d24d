//! The shapes of events, for whoever reads them without this code.

use serde_json::Value;
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema},
};

/// The shape of the events of one kind of stream.
#[derive(Clone)]
pub struct AggregateSchema {
    /// As stored in `aggregate_type`.
    pub aggregate_type: &'static str,
    /// As stored in `event_version`.
    pub version: &'static str,
    /// One of the objects, each with the event's type as its only property.
    pub events: RefOr<Schema>,
    /// What these refer to, by name.
    pub definitions: Vec<(String, RefOr<Schema>)>,
}

impl AggregateSchema {
    /// Of the events `E`.
    pub(crate) fn of<E: ToSchema>(aggregate_type: &'static str, version: &'static str) -> Self {
        let mut definitions = Vec::new();
        E::schemas(&mut definitions);
        Self { aggregate_type, version, events: E::schema(), definitions }
    }

    /// The shape of each event as JSON, by what is stored in `event_type`.
    pub fn by_type(&self) -> Vec<(String, Value)> {
        let schema = serde_json::to_value(&self.events).unwrap_or_default();
        let alternatives = schema["oneOf"].as_array().cloned().unwrap_or_else(|| vec![schema.clone()]);
        let named = |alternative: Value| {
            let only = alternative["properties"].as_object()?.keys().next()?.clone();
            Some((only, alternative))
        };
        alternatives.into_iter().filter_map(named).collect()
    }
}

impl std::fmt::Debug for AggregateSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AggregateSchema")
            .field("aggregate_type", &self.aggregate_type)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
