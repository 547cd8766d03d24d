//! `noop`: makes nothing, at once. For load runs, which measure everything but the making. The queue gives it only jobs
//! that name it: who names no provider pays for something to watch.

use futures::future::BoxFuture;
use skyriff_domain::video_job::{Cost, Kind, WorkerFault};
use skyriff_storage::Format;

use super::{Ended, Failure, JobSpec, Kept, Made, VideoProvider, Workplace};

/// What every job gets.
const OUTPUT: &[u8] = b"made by skyriff's noop provider: nothing to watch\n";

/// Makes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Noop;

impl VideoProvider for Noop {
    fn name(&self) -> &'static str {
        "noop"
    }

    fn kinds(&self) -> &'static [Kind] {
        &Kind::ALL
    }

    fn make<'a>(&'a self, job: &'a JobSpec, at: Workplace<'a>) -> BoxFuture<'a, Result<Made, Ended>> {
        Box::pin(async move {
            let file = at.folder.join("output.noop");
            let written = tokio::fs::write(&file, OUTPUT).await;
            written.map_err(|error| {
                tracing::warn!(%error, "cannot write to the scratch folder");
                Failure::of_worker(WorkerFault::NoScratch)
            })?;
            Ok(Made {
                file,
                format: Format::Noop,
                said_seconds: Some(job.seconds),
                cost: Cost::none(),
                kept: Kept::Nowhere,
            })
        })
    }
}
