//! Attempts that ended by their worker's own fault: they say nothing about the provider that the job was made with.
//!
//! The reason of such an attempt is one of these texts, word for word; whoever judges providers knows it by that.

use crate::Note;

/// What a worker can fail of by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerFault {
    /// It was not heard of.
    Lost,
    /// It was heard of, and came to no end.
    Endless,
    /// It was told to end, and gave the job back.
    Stopped,
    /// It was told that the attempt is over, and stopped.
    Dismissed,
    /// It has not the provider that the job was leased for.
    NoProvider,
    /// It cannot write to its disk.
    NoScratch,
    /// It cannot run a program.
    NoProgram,
    /// It cannot put into the object storage what was made.
    NotStored,
}

impl WorkerFault {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Lost,
        Self::Endless,
        Self::Stopped,
        Self::Dismissed,
        Self::NoProvider,
        Self::NoScratch,
        Self::NoProgram,
        Self::NotStored,
    ];

    /// As in the reason of an attempt. Events have it, so it is not changed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "its worker was not heard of for too long",
            Self::Endless => "its worker came to no end",
            Self::Stopped => "the worker was stopped",
            Self::Dismissed => "its worker was told to stop",
            Self::NoProvider => "this worker has no such provider",
            Self::NoScratch => "the worker cannot write its files",
            Self::NoProgram => "the worker cannot run a program that it needs",
            Self::NotStored => "the output could not be stored",
        }
    }

    /// The reason of an attempt that ended so.
    pub fn reason(self) -> Note {
        Note::of(self.as_str())
    }

    /// Whether an attempt with this reason ended by its worker's own fault.
    pub fn is_in(reason: &Note) -> bool {
        Self::ALL.into_iter().any(|fault| fault.as_str() == reason.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_s_fault_is_known_by_its_reason_and_nothing_else_is() {
        for fault in WorkerFault::ALL {
            assert!(WorkerFault::is_in(&fault.reason()), "{fault:?}");
            // As whoever sends it has to write it.
            assert_eq!(Note::try_from(fault.as_str().to_owned()), Ok(fault.reason()));
        }
        for other in ["it broke", "the attempt took too long", "the worker was stopped by its provider"] {
            assert!(!WorkerFault::is_in(&Note::of(other)), "{other}");
        }
    }
}
