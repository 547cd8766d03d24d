//! A real S3 server, in this process: s3s with a folder behind it.
//!
//! What it is: the S3 protocol over HTTP, with AWS signatures (version 4) checked on headers and on presigned addresses,
//! their expiry as well, and multipart uploads. What it is not: it does not ask for parts of 5 MiB, keeps no media types
//! (so what is sent is looked at here), has no policies, lifecycle rules or versions, and is never slow or busy. It takes no
//! notice of `If-None-Match`, as some servers do; one that does has that added here.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use hyper::{
    Method, Request,
    body::Incoming,
    header::{CONTENT_TYPE, IF_NONE_MATCH},
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use skyriff_storage::ObjectStorage;
use tempfile::TempDir;
use tokio::net::TcpListener;

const BUCKET: &str = "videos";

pub struct S3Server {
    root: TempDir,
    pub address: SocketAddr,
    /// The media types that objects were put with.
    pub content_types: Arc<Mutex<Vec<String>>>,
}

impl S3Server {
    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    /// One that makes an object only where there is none, if it is asked to.
    pub async fn start_that_keeps() -> Self {
        Self::start_with(true).await
    }

    async fn start_with(keeps: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single("the-key", "the-secret"));
        let service = service.build().into_shared();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let content_types = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&content_types);
        let folder = root.path().to_owned();
        tokio::spawn(async move {
            let one_at_a_time = Arc::new(tokio::sync::Mutex::new(()));
            while let Ok((stream, _)) = listener.accept().await {
                let (service, seen) = (service.clone(), Arc::clone(&seen));
                let (folder, turn) = (folder.clone(), Arc::clone(&one_at_a_time));
                let service = service_fn(move |request: Request<Incoming>| {
                    // A part has none of its own; the upload that it belongs to has.
                    let puts = match (request.method(), request.uri().query()) {
                        (&Method::PUT, None) => true,
                        (&Method::POST, Some(query)) => query.starts_with("uploads"),
                        _ => false,
                    };
                    if puts {
                        let content_type = request.headers().get(CONTENT_TYPE).map(|value| value.to_str().unwrap());
                        seen.lock().unwrap().push(content_type.unwrap_or("none").to_owned());
                    }
                    let is_conditional = keeps && request.headers().contains_key(IF_NONE_MATCH);
                    let file = folder.join(request.uri().path().trim_start_matches('/'));
                    let (service, turn) = (service.clone(), Arc::clone(&turn));
                    async move {
                        if !is_conditional {
                            return service.call(request).await;
                        }
                        let _mine = turn.lock().await;
                        if file.exists() {
                            let refused = hyper::Response::builder().status(412).body(s3s::Body::empty());
                            return Ok(refused.unwrap());
                        }
                        service.call(request).await
                    }
                });
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    server.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Self { root, address, content_types }
    }

    /// The storage below a prefix of its bucket, as somebody who knows this secret.
    pub fn storage(&self, secret: &str) -> ObjectStorage {
        let endpoint = format!("http://{}", self.address);
        let variables = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "the-key"),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        ObjectStorage::open(&format!("s3://{BUCKET}/made/here"), variables).unwrap()
    }

    pub fn bucket(&self) -> std::path::PathBuf {
        Path::new(self.root.path()).join(BUCKET)
    }
}
