//! Workers: they lease video jobs, make them with a provider, check what was made, and deliver it.
//!
//! ```text
//! lease ──▶ make (heartbeats with progress) ──▶ check ──▶ put ──▶ complete
//!             │ stale: stop, clean up             │         │
//!             └── fail, retryable or not ◀────────┴─────────┘
//! ```
//!
//! A worker keeps nothing that matters: everything it knows of a job came with the lease, and whatever it leaves behind
//! when it is killed is found by the next one ([`scratch`]) or by the storage's sweep. The attempt's number fences: an
//! output is named after its attempt, and a completion of an attempt that is over is refused.

pub mod api;
mod check;
mod process;
pub mod provider;
mod run;
pub mod scratch;
mod stop;

pub use api::WorkerApi;
pub use provider::{Ended, Failure, JobSpec, Kept, Made, Progress, VideoProvider, Workplace};
pub use run::{Limits, Worker};
pub use stop::{Stop, Stopper, Why};
