//! A row of the log, as it was sent and not yet looked at.

use bytes::Bytes;
use skyriff_domain::LogPosition;
use skyriff_proof::copy::{self, Columns};

/// A row of the log.
#[derive(Clone, Debug)]
pub struct Row {
    /// Where the event is.
    pub at: LogPosition,
    bytes: Bytes,
}

/// The row has other columns than the log's, or a time that no clock shows (`infinity`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of the event log has another form")]
pub struct OtherForm;

impl Row {
    /// What one message of `COPY` has; none for its beginning and its end.
    pub(super) fn of(message: &Bytes) -> Result<Option<Self>, OtherForm> {
        let Some(row) = copy::row(message) else { return Ok(None) };
        Ok(Some(Self { at: copy::at(row).ok_or(OtherForm)?, bytes: message.slice_ref(row) }))
    }

    /// In microseconds of Unix time.
    pub(super) fn recorded_at_us(&self) -> Result<i64, OtherForm> {
        copy::recorded_at_us(&self.bytes).ok_or(OtherForm)
    }

    pub(super) fn columns(&self) -> Result<Columns<'_>, OtherForm> {
        Columns::parse(&self.bytes).ok_or(OtherForm)
    }
}
