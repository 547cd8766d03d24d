//! Where objects are: a folder, or a bucket.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    Attribute, Attributes, ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, RetryConfig, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path as Key,
    signer::Signer,
};
use sha2::{Digest, Sha256};
use tokio::{
    fs,
    io::{AsyncRead, AsyncReadExt},
};
use url::Url;

use crate::{ObjectName, ledger};

/// What is sent at once; larger files go in parts of this size, which is more than the 5 MiB that S3 asks for.
const PART_BYTES: usize = 8 * 1_024 * 1_024;
/// Parts of one file that are on their way at the same time.
const PARTS_IN_FLIGHT_MAX: usize = 3;
/// One request to a bucket.
const REQUEST_MAX: Duration = Duration::from_secs(60);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A request that did not work is tried again, with back-off, so often and for so long.
const RETRIES_MAX: usize = 5;
const RETRY_MAX: Duration = Duration::from_secs(120);

/// Where objects are kept.
#[derive(Clone)]
pub struct ObjectStorage {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) place: Place,
}

#[derive(Clone)]
pub(crate) enum Place {
    Folder(PathBuf),
    Bucket { bucket: Arc<AmazonS3>, prefix: Key },
}

/// What did not work.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The address is none of ours.
    #[error("{0:?} is neither file:///FOLDER nor s3://BUCKET or s3://BUCKET/PREFIX")]
    Address(String),
    /// The file has more bytes than it may have.
    #[error("the file is larger than {bytes_max} bytes")]
    TooLarge {
        /// What it may have.
        bytes_max: u64,
    },
    /// A file cannot be read or written.
    #[error("cannot use the file {file}")]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store did not do it.
    #[error("the object storage failed")]
    Store(#[from] object_store::Error),
}

/// What was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// How large it is.
    pub bytes: u64,
    /// SHA-256 of it, in hexadecimal digits.
    pub sha256: String,
}

/// What the storage knows of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// How large it is.
    pub bytes: u64,
    /// Another one for other contents, in quotation marks.
    pub etag: Option<String>,
    /// When it was put.
    pub put_at: DateTime<Utc>,
}

impl ObjectStorage {
    /// The storage at `file:///FOLDER`, which is made when missing and readable by its owner only, or at
    /// `s3://BUCKET/PREFIX`, as the variables that AWS' own tools read say: `AWS_ENDPOINT_URL`, `AWS_REGION`,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` …; `AWS_ALLOW_HTTP=true` for servers without TLS.
    ///
    /// # Errors
    /// [`StorageError`]. A bucket is not asked before it is used.
    pub fn open(address: &str, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, StorageError> {
        let not_ours = || StorageError::Address(address.to_owned());
        let url = Url::parse(address).map_err(|_| not_ours())?;
        match url.scheme() {
            "file" => Self::folder(&url.to_file_path().map_err(|()| not_ours())?),
            "s3" => {
                let bucket = url.host_str().filter(|bucket| !bucket.is_empty()).ok_or_else(not_ours)?;
                let prefix = Key::from_url_path(url.path()).map_err(object_store::Error::from)?;
                let mut builder = AmazonS3Builder::new();
                for (name, value) in variables {
                    if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>()
                        && name.starts_with("AWS_")
                    {
                        builder = builder.with_config(key, value);
                    }
                }
                let allow_http =
                    builder.get_config_value(&AmazonS3ConfigKey::Client(object_store::ClientConfigKey::AllowHttp));
                let allow_http = allow_http.is_some_and(|value| value == "true" || value == "1");
                let client = ClientOptions::new().with_timeout(REQUEST_MAX).with_connect_timeout(CONNECT_MAX);
                let retry =
                    RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_MAX, ..RetryConfig::default() };
                let bucket = builder
                    .with_bucket_name(bucket)
                    .with_client_options(client.with_allow_http(allow_http))
                    .with_retry(retry)
                    .build()?;
                let bucket = Arc::new(bucket);
                Ok(Self { store: bucket.clone(), place: Place::Bucket { bucket, prefix } })
            }
            _ => Err(not_ours()),
        }
    }

    fn folder(folder: &Path) -> Result<Self, StorageError> {
        use std::os::unix::fs::DirBuilderExt;
        let failed = |source| StorageError::File { file: folder.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let store = LocalFileSystem::new_with_prefix(folder)?;
        // The store resolves links, and so must we.
        let folder = folder.canonicalize().map_err(failed)?;
        Ok(Self { store: Arc::new(store), place: Place::Folder(folder) })
    }

    /// Whether we serve the objects ourselves.
    pub fn is_folder(&self) -> bool {
        matches!(self.place, Place::Folder(_))
    }

    /// What stands before every name.
    pub(crate) fn prefix(&self) -> Key {
        match &self.place {
            Place::Folder(_) => Key::default(),
            Place::Bucket { prefix, .. } => prefix.clone(),
        }
    }

    fn key(&self, name: &ObjectName) -> Key {
        self.prefix().join(name.folder()).join(name.to_string())
    }

    /// Put a file of at most `bytes_max` bytes. When this returns, the object is there to stay; before that nobody sees
    /// it. Memory is bounded by a few parts, however large the file is.
    ///
    /// # Errors
    /// [`StorageError`]; then the object is not there.
    pub async fn put(&self, name: &ObjectName, file: &Path, bytes_max: u64) -> Result<Stored, StorageError> {
        let failed = |source| StorageError::File { file: file.to_owned(), source };
        let mut from = fs::File::open(file).await.map_err(failed)?;
        let key = self.key(name);
        let attributes = match &self.place {
            // A file has no attributes; the name says what it is.
            Place::Folder(_) => Attributes::default(),
            Place::Bucket { .. } => Attributes::from_iter([(Attribute::ContentType, name.format.content_type())]),
        };
        let (mut sha256, mut bytes) = (Sha256::new(), 0_u64);
        let mut take = |part: &[u8]| {
            sha256.update(part);
            bytes = bytes.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
            if bytes > bytes_max { Err(StorageError::TooLarge { bytes_max }) } else { Ok(()) }
        };
        let first = next_part(&mut from).await.map_err(failed)?;
        take(&first)?;
        if first.len() < PART_BYTES {
            let options = PutOptions { attributes, ..PutOptions::default() };
            self.store.put_opts(&key, PutPayload::from(first), options).await?;
        } else {
            let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
            let upload = self.store.put_multipart_opts(&key, options).await?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
            let sent = async {
                upload.put(first.into());
                loop {
                    upload.wait_for_capacity(PARTS_IN_FLIGHT_MAX).await?;
                    let part = next_part(&mut from).await.map_err(failed)?;
                    if part.is_empty() {
                        return Ok(());
                    }
                    take(&part)?;
                    upload.put(part.into());
                }
            };
            match sent.await {
                Ok(()) => upload.finish().await.map(drop)?,
                Err(error) => {
                    // Parts without an end are nobody's, and a bucket charges for them.
                    if let Err(error) = upload.abort().await {
                        tracing::warn!(%error, object = %name, "parts of an object may be left over");
                    }
                    return Err(error);
                }
            }
        }
        self.sync(name).await?;
        Ok(Stored { bytes, sha256: format!("{:x}", sha256.finalize()) })
    }

    /// A bucket has what it says it has; a file system only after it was told to.
    async fn sync(&self, name: &ObjectName) -> Result<(), StorageError> {
        let Place::Folder(folder) = &self.place else { return Ok(()) };
        let parent = folder.join(name.folder());
        for file in [parent.join(name.to_string()), parent, folder.clone()] {
            let synced = async { fs::File::open(&file).await?.sync_all().await };
            synced.await.map_err(|source| StorageError::File { file, source })?;
        }
        Ok(())
    }

    /// What is known of an object; nothing when there is none.
    ///
    /// # Errors
    /// [`StorageError::Store`].
    pub async fn head(&self, name: &ObjectName) -> Result<Option<Head>, StorageError> {
        match self.store.head(&self.key(name)).await {
            Ok(meta) => Ok(Some(head(&meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The bytes of an object, as they come.
    ///
    /// # Errors
    /// [`StorageError::Store`], also when there is no such object.
    pub async fn read(
        &self,
        name: &ObjectName,
        range: std::ops::Range<u64>,
    ) -> Result<impl Stream<Item = object_store::Result<axum::body::Bytes>> + Send + use<>, StorageError> {
        // An empty object has no range that could be asked for.
        let range = (!range.is_empty()).then_some(GetRange::Bounded(range));
        let options = GetOptions { range, ..GetOptions::default() };
        Ok(self.store.get_opts(&self.key(name), options).await?.into_stream())
    }

    /// Delete an object, if it is there.
    ///
    /// # Errors
    /// [`StorageError::Store`].
    pub async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        match self.store.delete(&self.key(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The bucket's own link to an object; nothing for a folder.
    pub(crate) async fn presigned(&self, name: &ObjectName, lifetime: Duration) -> Result<Option<Url>, StorageError> {
        match &self.place {
            Place::Folder(_) => Ok(None),
            Place::Bucket { bucket, .. } => {
                Ok(Some(bucket.signed_url(axum::http::Method::GET, &self.key(name), lifetime).await?))
            }
        }
    }

    /// Every object that is an output or none of ours, in no order. What the ledger keeps is not among them: nobody who
    /// looks for outputs is to touch it.
    pub(crate) fn list(&self) -> BoxStream<'static, Result<Listed, StorageError>> {
        let prefix = match &self.place {
            Place::Folder(_) => None,
            Place::Bucket { prefix, .. } => Some(prefix),
        };
        let of_ledger = self.prefix().join(ledger::ROOT);
        let others = self
            .store
            .list(prefix)
            .try_filter(move |meta| futures::future::ready(!meta.location.prefix_matches(&of_ledger)));
        let listed = others.map_err(StorageError::from).map_ok(|meta| {
            let name = meta.location.filename().and_then(|name| name.parse().ok());
            Listed { name, put_at: meta.last_modified }
        });
        listed.boxed()
    }

    /// The folder, if it is one.
    pub(crate) fn as_folder(&self) -> Option<&Path> {
        match &self.place {
            Place::Folder(folder) => Some(folder),
            Place::Bucket { .. } => None,
        }
    }
}

/// What a listing says of an object.
pub(crate) struct Listed {
    /// Nothing when it is none of ours.
    pub(crate) name: Option<ObjectName>,
    pub(crate) put_at: DateTime<Utc>,
}

impl fmt::Debug for ObjectStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ObjectStorage {
    /// Without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Folder(folder) => write!(f, "the folder {}", folder.display()),
            Place::Bucket { bucket, prefix } => write!(f, "{bucket}/{prefix}"),
        }
    }
}

fn head(meta: &ObjectMeta) -> Head {
    let quoted = |etag: &String| if etag.starts_with('"') { etag.clone() } else { format!("\"{etag}\"") };
    Head { bytes: meta.size, etag: meta.e_tag.as_ref().map(quoted), put_at: meta.last_modified }
}

/// As much as one part holds; less only at the end.
async fn next_part(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut part = Vec::new();
    let limit = u64::try_from(PART_BYTES).unwrap_or(u64::MAX);
    from.take(limit).read_to_end(&mut part).await?;
    Ok(part)
}
