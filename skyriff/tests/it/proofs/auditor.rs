//! An auditor: a token, the public keys in a file, and `verify.py`.

use std::fs;

use reqwest::StatusCode;
use serde_json::Value;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;
use tokio::process::Command;
use uuid::Uuid;

use crate::support::{Api, Folder, eventually};

const VERIFIER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proof/verify.py");

/// Somebody who believes nothing but what the verifier says.
pub struct Auditor {
    pub api: Api,
    files: TempDir,
}

/// The sizes that a top checkpoint names.
pub fn sizes(checkpoint: &Value) -> Vec<u64> {
    let text = checkpoint["checkpoint"].as_str().unwrap();
    let lines = text.lines().skip(3).take_while(|line| !line.is_empty());
    lines.map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect()
}

/// When it was sealed.
pub fn sealed_at(checkpoint: &Value) -> i64 {
    let text = checkpoint["checkpoint"].as_str().unwrap();
    text.lines().find_map(|line| line.strip_prefix("sealed ")).unwrap().parse().unwrap()
}

impl Auditor {
    /// With the keys that the folder has.
    pub async fn of(folder: &Folder, api: &Api) -> Self {
        let public = fs::read_to_string(folder.join("seal-keys.pub")).unwrap();
        let auditor = Self {
            api: api.as_caller(&folder.token("auditor", Uuid::from_u128(1)).await),
            files: tempfile::tempdir().unwrap(),
        };
        auditor.knows(&public);
        auditor
    }

    /// The same one, after the server was started again.
    pub fn at(self, url: &str) -> Self {
        Self { api: self.api.at(url), ..self }
    }

    /// From now on, these public keys and no others.
    pub fn knows(&self, keys: &str) {
        fs::write(self.files.path().join("keys"), keys).unwrap();
    }

    pub async fn get(&self, path: &str) -> Value {
        self.api.get(path).await.with(StatusCode::OK).json
    }

    /// The newest checkpoint, once there is one.
    pub async fn sealed_something(&self) -> Value {
        eventually("a checkpoint", async || {
            let answer = self.api.get("/v1/ledger/checkpoint").await;
            (answer.status == StatusCode::OK).then_some(answer.json)
        })
        .await
    }

    /// A checkpoint with more in it than this one.
    pub async fn sealed_more_than(&self, kept: &Value) -> Value {
        self.sealed_events(sizes(kept).iter().sum::<u64>()).await
    }

    /// A checkpoint of more events than so many.
    pub async fn sealed_events(&self, events: u64) -> Value {
        eventually("more is sealed", async || {
            let newest = self.get("/v1/ledger/checkpoint").await;
            (sizes(&newest).iter().sum::<u64>() > events).then_some(newest)
        })
        .await
    }

    /// Another checkpoint than this one.
    pub async fn newer_than(&self, kept: &Value) -> Value {
        eventually("another checkpoint", async || {
            let newest = self.get("/v1/ledger/checkpoint").await;
            (sealed_at(&newest) > sealed_at(kept)).then_some(newest)
        })
        .await
    }

    /// A checkpoint with everything that the log has.
    pub async fn all_sealed(&self, folder: &Folder) -> Value {
        let options =
            PgConnectOptions::new_without_pgpass().socket(folder.join("run/primary")).username("skyriff_query");
        let mut log = PgConnection::connect_with(&options.database("skyriff_events")).await.unwrap();
        let heads = sqlx::query_scalar("SELECT position FROM heads ORDER BY shard").fetch_all(&mut log);
        let heads: Vec<i64> = heads.await.unwrap();
        eventually("everything is sealed", async || {
            let newest = self.get("/v1/ledger/checkpoint").await;
            sizes(&newest)
                .iter()
                .zip(&heads)
                .all(|(sealed, head)| i64::try_from(*sealed).unwrap() >= *head)
                .then_some(newest)
        })
        .await
    }

    /// The proof that the newest checkpoint continues this one.
    pub async fn continues(&self, kept: &Value) -> Value {
        let sizes = sizes(kept).iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        self.get(&format!("/v1/ledger/proofs/consistency?sizes={sizes}")).await
    }

    /// How the verifier ends, and what it says.
    pub async fn verify(&self, what: &str, answer: &Value, kept: Option<&Value>) -> (Option<i32>, String) {
        let put = |name: &str, value: &Value| {
            let file = self.files.path().join(name);
            fs::write(&file, value.to_string()).unwrap();
            file
        };
        let mut verifier = Command::new("python3");
        verifier.args(["-B", VERIFIER]).arg(self.files.path().join("keys")).arg(what).arg(put("answer.json", answer));
        verifier.args(kept.map(|kept| put("kept.json", kept)));
        let output = verifier.output().await.expect("python3 is needed, as for the tests of exports");
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    /// What the verifier says of inclusion proofs, all of which it accepts: in one process, since each takes a moment to start.
    pub async fn verify_all(&self, answers: &[Value]) -> Vec<String> {
        let mut verifier = Command::new("python3");
        verifier.args(["-B", VERIFIER]).arg(self.files.path().join("keys")).arg("inclusion");
        for (number, answer) in answers.iter().enumerate() {
            let file = self.files.path().join(format!("{number}.json"));
            fs::write(&file, answer.to_string()).unwrap();
            verifier.arg(file);
        }
        let output = verifier.output().await.expect("python3 is needed, as for the tests of exports");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    pub async fn accepts(&self, what: &str, answer: &Value, kept: Option<&Value>, says: &str) {
        let (code, said) = self.verify(what, answer, kept).await;
        assert!(code == Some(0) && said.contains(says), "{says}: {code:?} {said}");
    }

    pub async fn refuses(&self, what: &str, answer: &Value, kept: Option<&Value>) {
        let (code, said) = self.verify(what, answer, kept).await;
        assert!(code == Some(1) && said.starts_with("DOES NOT HOLD"), "{code:?} {said}");
    }
}
