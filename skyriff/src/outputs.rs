//! What jobs made: where it is kept, whether a worker's word about it holds, and links to it for its owner.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::{
    extract::State,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use chrono::Utc;
use clap::Args;
use futures::future::BoxFuture;
use serde::Deserialize;
use skyriff_domain::{JobId, UserId, WorkId, video_job::Output};
use skyriff_edge::{Caller, Kind, Path as UrlPath, Problem, Query, Right, Tokens, problem::ProblemBody};
use skyriff_storage::{Link, LinkKey, Links, ObjectName, ObjectStorage};
use skyriff_write_side::{
    outputs::{OutputProblem, Outputs},
    video_queue::{NotWatched, VideoQueue},
};
use utoipa::{IntoParams, IntoResponses};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Where outputs are kept, unless told otherwise, in the folder of `dev`.
const FOLDER: &str = "objects";
/// What the key of links is derived for: no token is ever signed over this.
const LINKS: &str = "skyriff object links 1";

/// Where outputs are kept.
#[derive(Args, Clone, Debug)]
pub struct StorageArguments {
    /// Where outputs are kept: file:///FOLDER, or s3://BUCKET/PREFIX with the variables of AWS' own tools
    /// (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID …; AWS_ALLOW_HTTP=true for a server without TLS). The folder
    /// `objects` of `skyriff dev`, unless given.
    #[arg(long, env = "SKYRIFF_STORAGE")]
    storage: Option<String>,
}

/// How clients get at outputs.
#[derive(Args, Clone, Debug)]
pub struct LinkArguments {
    #[command(flatten)]
    storage: StorageArguments,
    /// What stands before links to outputs in a folder, as clients reach this API, such as `https://api.example.org`. Nothing: they
    /// stay on the server that they were asked of.
    #[arg(long, env = "SKYRIFF_PUBLIC_URL")]
    public_url: Option<String>,
    /// For how long a link to an output is good, in seconds.
    #[arg(long, env = "SKYRIFF_LINK_LIFETIME_S", default_value_t = 900, value_parser = clap::value_parser!(u32).range(1..=604_800))]
    link_lifetime_s: u32,
}

impl StorageArguments {
    /// Its address, as given, or else that of the development folder.
    fn address(&self, folder: &Path) -> Result<String> {
        match &self.storage {
            Some(address) => Ok(address.clone()),
            None => Ok(format!("file://{}", std::path::absolute(folder.join(FOLDER))?.display())),
        }
    }

    /// As given, or else in the development folder.
    pub fn open(&self, folder: &Path) -> Result<ObjectStorage> {
        let address = self.address(folder)?;
        // Only what can be read as text can be meant for us.
        let variables = std::env::vars_os();
        let variables =
            variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        ObjectStorage::open(&address, variables).context("the object storage (SKYRIFF_STORAGE)")
    }
}

impl LinkArguments {
    /// The address of where outputs are.
    pub fn storage_address(&self, folder: &Path) -> Result<String> {
        self.storage.address(folder)
    }

    /// Where outputs are, and what is sealed.
    pub fn storage(&self, folder: &Path) -> Result<ObjectStorage> {
        self.storage.open(folder)
    }

    /// Links to what is in the storage, signed with a key of the token secret.
    pub fn links(&self, folder: &Path, tokens: &Tokens) -> Result<Links> {
        let lifetime = Duration::from_secs(u64::from(self.link_lifetime_s));
        let key = LinkKey::new(&tokens.derived_secret(LINKS));
        Ok(Links::new(self.storage.open(folder)?, key, self.public_url.as_deref(), lifetime))
    }
}

/// Accepts an output only when it is in the storage.
#[derive(Clone, Debug)]
pub struct Stored(pub ObjectStorage);

impl Outputs for Stored {
    fn check<'a>(&'a self, job: JobId, attempt: u32, output: &'a Output) -> BoxFuture<'a, Result<(), OutputProblem>> {
        Box::pin(async move {
            let name: ObjectName = output.object.as_str().parse().map_err(|_| OutputProblem::NotIts)?;
            if (name.job, name.attempt) != (job, attempt) || output.content_type.as_str() != name.format.content_type()
            {
                return Err(OutputProblem::NotIts);
            }
            let head = self.0.head(&name).await.map_err(|error| {
                let error = anyhow::Error::from(error);
                OutputProblem::Unavailable(format!("{error:#}"))
            })?;
            match head.ok_or(OutputProblem::Missing)?.bytes {
                found if found == output.bytes => Ok(()),
                found => Err(OutputProblem::OtherSize { found }),
            }
        })
    }

    fn delete<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<(), OutputProblem>> {
        Box::pin(async move {
            let name: ObjectName = object.parse().map_err(|_| OutputProblem::NotIts)?;
            self.0.delete(&name).await.map_err(|error| {
                let error = anyhow::Error::from(error);
                OutputProblem::Unavailable(format!("{error:#}"))
            })
        })
    }
}

#[derive(Clone)]
struct Linked {
    queue: VideoQueue,
    links: Arc<Links>,
}

/// Links to outputs, and what the links of a folder lead to.
pub fn routes(queue: VideoQueue, links: Links) -> OpenApiRouter {
    let objects = skyriff_storage::route::routes(links.clone());
    let linked = Linked { queue, links: Arc::new(links) };
    OpenApiRouter::new().routes(routes!(of_job)).routes(routes!(of_work)).with_state(linked).merge(objects)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct How {
    /// Answer with 302 to the output itself.
    #[serde(default)]
    redirect: bool,
}

/// A link to what a job made, good for a while.
///
/// For the job's owner. The link itself needs no token, so it can be given to a player; ask again when it has expired.
#[utoipa::path(get, path = "/v1/users/{user}/video-jobs/{job}/output", tag = "videos",
    params(("user" = UserId, Path), ("job" = JobId, Path), How),
    responses((status = 404, description = "There is no such job, or it has made nothing so far", body = ProblemBody, content_type = "application/problem+json"),
              (status = 410, description = "What belonged to this person was erased", body = ProblemBody, content_type = "application/problem+json"),
              LinkResponses))]
async fn of_job(
    State(linked): State<Linked>,
    UrlPath((user, job)): UrlPath<(UserId, JobId)>,
    Query(how): Query<How>,
    caller: Caller,
) -> Result<Response, Problem> {
    caller.may(Right::OrderVideos, user)?;
    let made = linked.queue.made(user, job).await.map_err(problem)?;
    let made = made.ok_or_else(|| Problem::new(&Kind::NOT_FOUND).detail("the job has made nothing so far"))?;
    linked.answer(&made, how).await
}

/// A link to what a work shows, good for a while, also when the work is taken back meanwhile.
///
/// For everybody, as long as the work is shown. Of works that were made elsewhere there is nothing here.
#[utoipa::path(get, path = "/v1/works/{work}/output", tag = "works", params(("work" = WorkId, Path), How),
    responses((status = 404, description = "There is no such work, or it was made elsewhere", body = ProblemBody, content_type = "application/problem+json"),
              LinkResponses))]
async fn of_work(
    State(linked): State<Linked>,
    UrlPath(work): UrlPath<WorkId>,
    Query(how): Query<How>,
    caller: Caller,
) -> Result<Response, Problem> {
    caller.may_at_all(Right::ReadWorks)?;
    let made = linked.queue.shown(work).await.map_err(problem)?;
    linked.answer(&made, how).await
}

/// What both routes answer.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only the description of the API is made of it")]
enum LinkResponses {
    #[response(status = 200)]
    Link(#[to_schema] Link),
    /// To the output itself.
    #[response(status = 302)]
    Found,
    #[response(status = 401, content_type = "application/problem+json")]
    NotLoggedIn(#[to_schema] ProblemBody<'static>),
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] ProblemBody<'static>),
    #[response(status = 503, content_type = "application/problem+json", headers(("Retry-After" = u32)))]
    Unavailable(#[to_schema] ProblemBody<'static>),
}

impl Linked {
    async fn answer(&self, made: &Output, how: How) -> Result<Response, Problem> {
        let object = made.object.as_str().parse().map_err(|error| Problem::fault(&error))?;
        let link = self.links.link(&object, Utc::now()).await.map_err(|error| {
            tracing::warn!(error = %format!("{:#}", anyhow::Error::from(error)), "no link can be made");
            Problem::new(&Kind::UNAVAILABLE).retry_after_s(2)
        })?;
        // Whoever has the address has the output: it is for the caller alone, and not for longer than it is good.
        const NOT_KEPT: [(HeaderName, HeaderValue); 1] =
            [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
        Ok(if how.redirect {
            let found = [(header::LOCATION, link.url)];
            (axum::http::StatusCode::FOUND, NOT_KEPT, found).into_response()
        } else {
            (NOT_KEPT, axum::Json(link)).into_response()
        })
    }
}

fn problem(error: NotWatched) -> Problem {
    match error {
        NotWatched::Busy(_) => Problem::new(&Kind::OVERLOADED).retry_after_s(2),
        NotWatched::NotFound => Problem::new(&Kind::NOT_FOUND),
        NotWatched::Erased => Problem::new(&Kind::ERASED),
        NotWatched::Unavailable(_) => Problem::new(&Kind::UNAVAILABLE).retry_after_s(2),
    }
}
