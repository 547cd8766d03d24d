//! Links as a browser follows them.

use std::{net::SocketAddr, time::Duration};

use chrono::{TimeDelta, Utc};
use reqwest::{StatusCode, header};
use skyriff_edge::{
    Tokens,
    request::{Limits, around},
};
use skyriff_storage::{LinkKey, Links, ObjectStorage, link::LIFETIME, route};
use tokio::net::TcpListener;

use crate::{Folder, bytes, name, s3_server::S3Server};

fn links(storage: &ObjectStorage) -> Links {
    Links::new(storage.clone(), LinkKey::new(&[7; 32]), None, LIFETIME)
}

/// The route behind everything that is in front of it in the product.
async fn serve(links: Links) -> SocketAddr {
    let (routes, _) = route::routes(links).split_for_parts();
    let routes = around(routes, Tokens::new(&[1; 32]).unwrap(), Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    address
}

struct Got {
    status: StatusCode,
    headers: header::HeaderMap,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(&name).unwrap_or_else(|| panic!("no {name}: {:?}", self.headers)).to_str().unwrap()
    }

    fn problem(&self) -> String {
        assert_eq!(self.header(header::CONTENT_TYPE), "application/problem+json");
        let start = self.body.windows(10).position(|window| window == b"/problems/").unwrap();
        let rest = String::from_utf8_lossy(&self.body[start + 10..]).into_owned();
        rest.split_once('"').unwrap().0.to_owned()
    }
}

async fn get(url: &str, headers: &[(header::HeaderName, &str)]) -> Got {
    let mut request = reqwest::Client::new().get(url);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Got { status, headers, body: response.bytes().await.unwrap().to_vec() }
}

#[tokio::test]
async fn a_player_can_seek() {
    let folder = Folder::new();
    let video = bytes(100_000);
    folder.storage.put(&name(1), &folder.file(&video), 1_000_000).await.unwrap();
    let links = links(&folder.storage);
    let link = links.link(&name(1), Utc::now()).await.unwrap();
    let url = format!("http://{}{}", serve(links).await, link.url);

    // A client that would take it compressed gets it as it is, with its length.
    let whole = get(&url, &[(header::ACCEPT_ENCODING, "gzip")]).await;
    assert_eq!((whole.status, whole.body == video), (StatusCode::OK, true));
    assert_eq!(whole.header(header::CONTENT_TYPE), "video/mp4");
    assert_eq!(whole.header(header::CONTENT_LENGTH), "100000");
    assert_eq!(whole.header(header::ACCEPT_RANGES), "bytes");
    assert_eq!(whole.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    assert!(whole.header(header::CACHE_CONTROL).starts_with("private, max-age="));
    let etag = whole.header(header::ETAG).to_owned();

    for (range, expected, content_range) in [
        ("bytes=0-", 0..100_000, "bytes 0-99999/100000"),
        ("bytes=500-999", 500..1_000, "bytes 500-999/100000"),
        ("bytes=99000-200000", 99_000..100_000, "bytes 99000-99999/100000"),
        ("bytes=-10", 99_990..100_000, "bytes 99990-99999/100000"),
    ] {
        let part = get(&url, &[(header::RANGE, range), (header::IF_RANGE, &etag)]).await;
        assert_eq!(part.status, StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(part.header(header::CONTENT_RANGE), content_range);
        assert_eq!(part.header(header::CONTENT_LENGTH), expected.len().to_string());
        assert!(part.body == video[expected], "{range}");
    }
    // Something else is there now than what the client has a part of.
    let changed = get(&url, &[(header::RANGE, "bytes=500-999"), (header::IF_RANGE, "\"other\"")]).await;
    assert_eq!((changed.status, changed.body.len()), (StatusCode::OK, 100_000));
    let beyond = get(&url, &[(header::RANGE, "bytes=100000-")]).await;
    assert_eq!(
        (beyond.status, beyond.problem().as_str()),
        (StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable")
    );
    assert_eq!(beyond.header(header::CONTENT_RANGE), "bytes */100000");
    let known = get(&url, &[(header::IF_NONE_MATCH, &etag)]).await;
    assert_eq!((known.status, known.body.len()), (StatusCode::NOT_MODIFIED, 0));
    let head = reqwest::Client::new().head(&url).send().await.unwrap();
    assert_eq!((head.status(), head.headers()[header::CONTENT_LENGTH].as_bytes()), (StatusCode::OK, &b"100000"[..]));
}

#[tokio::test]
async fn links_that_are_forged_expired_or_lead_elsewhere_are_refused() {
    let folder = Folder::new();
    for attempt in [1, 2] {
        folder.storage.put(&name(attempt), &folder.file(b"private"), 100).await.unwrap();
    }
    let links = links(&folder.storage);
    let path = links.link(&name(1), Utc::now()).await.unwrap().url;
    let over = links.link(&name(1), Utc::now() - TimeDelta::hours(1)).await.unwrap().url;
    let missing = links.link(&name(3), Utc::now()).await.unwrap().url;
    let address = serve(links).await;
    let url = |path: &str| format!("http://{address}{path}");
    assert_eq!(get(&url(&path), &[]).await.body, b"private");

    let (object, query) = path.split_once('?').unwrap();
    let (expires, signature) = query.split_once("&signature=").unwrap();
    let later = expires.replace("expires=", "").parse::<i64>().unwrap() + 1_000;
    for forged in [
        path.replace(".1.mp4", ".2.mp4"),
        format!("{object}?expires={later}&signature={signature}"),
        format!("{object}?{expires}&signature={}", signature.to_uppercase()),
        format!("{object}?{expires}&signature="),
        format!("/v1/objects/..%2F..%2Fetc%2Fpasswd?{query}"),
        format!("/v1/objects/%2Fetc%2Fpasswd?{query}"),
        format!("{object}%00?{query}"),
    ] {
        let refused = get(&url(&forged), &[]).await;
        assert_eq!((refused.status, refused.problem().as_str()), (StatusCode::FORBIDDEN, "link-invalid"), "{forged}");
    }
    for (path, status, problem) in [
        (over.as_str(), StatusCode::FORBIDDEN, "link-expired"),
        (missing.as_str(), StatusCode::NOT_FOUND, "not-found"),
        (object, StatusCode::BAD_REQUEST, "malformed-request"),
        ("/v1/objects/../../etc/passwd", StatusCode::NOT_FOUND, "not-found"),
    ] {
        let refused = get(&url(path), &[]).await;
        assert_eq!((refused.status, refused.problem().as_str()), (status, problem), "{path}");
    }
}

#[tokio::test]
async fn a_bucket_has_links_of_its_own_that_need_no_key_and_expire() {
    let (server, folder) = (S3Server::start().await, Folder::new());
    let storage = server.storage("the-secret");
    let video = bytes(1_000);
    storage.put(&name(1), &folder.file(&video), 10_000).await.unwrap();
    let link = links(&storage).link(&name(1), Utc::now()).await.unwrap();
    let got = get(&link.url, &[(header::RANGE, "bytes=10-19")]).await;
    assert_eq!((got.status, got.body.as_slice()), (StatusCode::PARTIAL_CONTENT, &video[10..20]));

    let without = link.url.split_once('?').unwrap().0;
    let forged = link.url.replace(".1.mp4", ".2.mp4");
    let brief = Links::new(storage.clone(), LinkKey::new(&[7; 32]), None, Duration::from_secs(1));
    let brief = brief.link(&name(1), Utc::now()).await.unwrap().url;
    for url in [without, &forged] {
        assert_eq!(get(url, &[]).await.status, StatusCode::FORBIDDEN, "{url}");
    }
    // Its clock counts whole seconds, so it is over within three.
    let over = tokio::time::timeout(Duration::from_secs(10), async {
        while get(&brief, &[]).await.status != StatusCode::FORBIDDEN {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    over.await.expect("it expires");
    assert!(route::routes(links(&storage)).split_for_parts().1.paths.paths.is_empty());
}
