//! What jobs have made, as the log says, for those who may have it.

use futures::future::join_all;
use skyriff_domain::{
    JobId, UserId, WorkId,
    video_job::{Event, Output},
};

use super::{
    Place, VideoQueue,
    watch::{self, Change, NotWatched},
    within,
};

impl VideoQueue {
    /// What a user's job has made; none as long as it has made nothing.
    ///
    /// # Errors
    /// [`NotWatched`], but never that too many watch.
    pub async fn made(&self, user: UserId, job: JobId) -> Result<Option<Output>, NotWatched> {
        let place = self.place_of(user).ok_or(NotWatched::NotFound)?;
        let events = watch::events(&place.pool, &[(0, job, 0)]).await?;
        let is_own = events.first().is_some_and(|(_, change)| match change {
            Change::Event { event: Event::Submitted(order), .. } => order.user == user,
            Change::Event { .. } | Change::Progress { .. } => false,
        });
        if !is_own {
            return Err(NotWatched::NotFound);
        }
        if place.is_erased(user).await? {
            return Err(NotWatched::Erased);
        }
        Ok(events.into_iter().find_map(|(_, change)| made(change)))
    }

    /// What the job has made of which a work comes that is shown now. A work has the id of its job and lives where its
    /// maker does, which its id does not tell: every database is asked.
    ///
    /// # Errors
    /// [`NotWatched`], but never that too many watch: not found also when it was made elsewhere and came without a job.
    pub async fn shown(&self, work: WorkId) -> Result<Output, NotWatched> {
        let answers = join_all(self.places.iter().map(|place| place.shown(work))).await;
        let mut failed = None;
        for answer in answers {
            match answer {
                Ok(Some(output)) => return Ok(output),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.map_or(NotWatched::NotFound, NotWatched::Unavailable))
    }
}

impl Place {
    /// Whether a person who lives here is forgotten: what was made of their prompts is deleted.
    async fn is_erased(&self, user: UserId) -> sqlx::Result<bool> {
        let look = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM events WHERE aggregate_type = 'erasure' AND aggregate_id = $1)",
        );
        within(look.bind(user.to_string()).fetch_one(&self.pool)).await
    }

    async fn shown(&self, work: WorkId) -> sqlx::Result<Option<Output>> {
        let last = sqlx::query_scalar(
            "SELECT event_type FROM events WHERE aggregate_type = 'work' AND aggregate_id = $1
             ORDER BY sequence DESC LIMIT 1",
        );
        let last: Option<String> = within(last.bind(work.to_string()).fetch_optional(&self.pool)).await?;
        if last.as_deref() != Some("published") {
            return Ok(None);
        }
        let events = watch::events(&self.pool, &[(0, JobId(work.0), 0)]).await?;
        let maker = events.first().and_then(|(_, change)| match change {
            Change::Event { event: Event::Submitted(order), .. } => Some(order.user),
            Change::Event { .. } | Change::Progress { .. } => None,
        });
        // It is taken down soon; until then it is not to be had either.
        if let Some(maker) = maker
            && self.is_erased(maker).await?
        {
            return Ok(None);
        }
        Ok(events.into_iter().find_map(|(_, change)| made(change)))
    }
}

fn made(change: Change) -> Option<Output> {
    match change {
        Change::Event { event: Event::Succeeded { output, .. }, .. } => Some(output),
        Change::Event { .. } | Change::Progress { .. } => None,
    }
}
