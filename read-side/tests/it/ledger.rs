//! The books as of any moment, beside a fold of all entries.

mod books;

mod as_of;
mod entries;
mod holds;
mod statements;
