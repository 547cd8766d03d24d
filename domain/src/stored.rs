//! How the stock cqrs-es repository sees events.

/// An aggregate's event is stored under its `name()` and in its `VERSION`.
macro_rules! stored_by_name {
    ($event:ty) => {
        impl cqrs_es::DomainEvent for $event {
            fn event_type(&self) -> String {
                self.name().to_owned()
            }

            fn event_version(&self) -> String {
                Self::VERSION.to_owned()
            }
        }
    };
}

pub(crate) use stored_by_name;
