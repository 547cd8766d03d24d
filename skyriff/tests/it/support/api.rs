//! HTTP, as a client sees it.

use std::sync::Arc;

use reqwest::{
    Client, Method, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{LIMIT, description::Description};

/// The API at one address, as one caller; every answer has to be as the API itself describes it. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    http: Client,
    pub url: String,
    token: String,
    description: Arc<OnceCell<Description>>,
}

/// One whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Null when it is not JSON.
    pub json: Value,
    pub bytes: Vec<u8>,
}

impl Api {
    pub fn new(url: &str, token: &str) -> Self {
        let http = Client::builder().timeout(LIMIT).build().unwrap();
        Self { http, url: url.to_owned(), token: token.to_owned(), description: Arc::default() }
    }

    /// The same address, as somebody else.
    pub fn as_caller(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Another address, as the same caller.
    pub fn at(&self, url: &str) -> Self {
        Self { url: url.to_owned(), description: Arc::default(), ..self.clone() }
    }

    /// An error is a connection that was refused or cut off.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> reqwest::Result<Answer> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.url)).bearer_auth(&self.token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = &body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        // Not where it was asked for, if it was sent somewhere else.
        let (from, path) = (response.url().origin(), response.url().path().to_owned());
        let bytes = response.bytes().await?.to_vec();
        let answer = Answer { status, headers, json: serde_json::from_slice(&bytes).unwrap_or_default(), bytes };
        let own = Url::parse(&self.url).unwrap().origin();
        if from == own
            && path.starts_with("/v1/")
            && let Ok(description) = self.description.get_or_try_init(|| self.described()).await
        {
            let wrong = description.wrong(&method, &path, &answer);
            assert!(wrong.is_empty(), "{wrong:#?} in {}", String::from_utf8_lossy(&answer.bytes));
        }
        Ok(answer)
    }

    /// An error is a connection that was refused or cut off: a process that went away after its answer does not describe it.
    async fn described(&self) -> reqwest::Result<Description> {
        let answer = self.http.get(format!("{}/v1/openapi.json", self.url)).send().await?;
        let (status, bytes) = (answer.status(), answer.bytes().await?);
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&bytes));
        Ok(Description::of(serde_json::from_slice(&bytes).unwrap()))
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], None).await.unwrap()
    }

    pub async fn post(&self, path: &str, key: &str, body: Option<Value>) -> reqwest::Result<Answer> {
        self.send(Method::POST, path, &[("Idempotency-Key", key)], body).await
    }

    pub async fn check_in(&self, user: Uuid, key: &str) -> Answer {
        self.post(&format!("/v1/users/{user}/check-ins"), key, None).await.unwrap()
    }

    /// Give points as a service.
    pub async fn earn(&self, user: Uuid, key: &str, points: i64) -> reqwest::Result<Answer> {
        let body = json!({ "bucket": "income", "points": points, "reason": "test" });
        self.post(&format!("/v1/users/{user}/earnings"), key, Some(body)).await
    }

    /// The balance, no older than a position; one that is not there yet is asked for again.
    pub async fn balance(&self, user: Uuid, at_least: &str) -> Value {
        let path = format!("/v1/users/{user}/balance");
        super::eventually("a fresh balance", async || {
            let answer = self.send(Method::GET, &path, &[("Skyriff-At-Least", at_least)], None).await.unwrap();
            match answer.status {
                StatusCode::SERVICE_UNAVAILABLE => None,
                _ => Some(answer.with(StatusCode::OK).json),
            }
        })
        .await
    }

    /// The sum of a metric over all its labels that contain `label`.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = String::from_utf8(self.get("/metrics").await.bytes).unwrap();
        let of_it = text.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with(['{', ' ']));
        let labelled = of_it.filter(|rest| rest.contains(label));
        labelled.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }
}

impl Answer {
    /// It must have this status.
    #[track_caller]
    pub fn with(self, status: StatusCode) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        self
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers));
        value.to_str().unwrap()
    }

    /// Where the command landed.
    #[track_caller]
    pub fn position(&self) -> String {
        self.header("skyriff-position").to_owned()
    }

    /// It must be this problem, in the form that every problem has.
    #[track_caller]
    pub fn is_problem(&self, status: StatusCode, name: &str) {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        assert_eq!(self.header(CONTENT_TYPE.as_str()), "application/problem+json");
        assert_eq!(self.json["type"], format!("/problems/{name}"));
        assert_eq!(self.json["status"], status.as_u16());
        assert_eq!(self.json["request_id"], self.header("x-request-id"));
        assert!(self.json["title"].is_string() && self.json["remedy"].is_string(), "{}", self.json);
    }
}
