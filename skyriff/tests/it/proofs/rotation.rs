//! Keys are changed as the README says.

use std::{fs, os::unix::fs::PermissionsExt};

use super::Auditor;
use crate::support::Folder;

#[tokio::test]
async fn keys_are_changed_and_whoever_has_the_old_or_the_new_one_can_check() {
    let folder = Folder::new();
    let dev = folder.dev_with(&["--no-worker"]).await;
    let auditor = Auditor::of(&folder, &dev.api).await;
    let before = auditor.sealed_something().await;
    let (file, new_file) = (folder.join("seal-key"), folder.join("new-key"));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let old_private = fs::read_to_string(&file).unwrap();
    let old = fs::read_to_string(folder.join("seal-keys.pub")).unwrap();

    let arguments = ["seal-key", "--name", "localhost/v1/ledger/tlog", "--out", new_file.to_str().unwrap()];
    let made = folder.run(&arguments).await.well();
    let new = made.stdout.trim().to_owned();
    let new_private = fs::read_to_string(&new_file).unwrap();
    assert_eq!(fs::metadata(&new_file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!made.stdout.contains("PRIVATE") && !made.stderr.contains("PRIVATE"), "{made:?}");
    folder.run(&arguments).await.refused(&["is there already"]);
    let no_name = ["seal-key", "--name", "a b", "--out", folder.join("other").to_str().unwrap()].map(str::to_owned);
    folder.run(&no_name.each_ref().map(String::as_str)).await.refused(&["name"]);
    dev.interrupt().await.well();

    // Both sign, the new one first.
    fs::write(&file, format!("{new_private}\n{old_private}\n")).unwrap();
    let dev = folder.dev_with(&["--no-worker"]).await;
    let auditor = auditor.at(&dev.api.url);
    let between = auditor.newer_than(&before).await;
    for known in [&old, &new] {
        auditor.knows(known);
        auditor.accepts("checkpoint", &between, None, "sealed").await;
    }
    dev.interrupt().await.well();

    // The new one alone.
    fs::write(&file, &new_private).unwrap();
    let dev = folder.dev_with(&["--no-worker"]).await;
    let auditor = auditor.at(&dev.api.url);
    dev.api.check_in(dev.user, "first").await;
    let after = auditor.sealed_more_than(&between).await;
    auditor.accepts("checkpoint", &after, None, "sealed").await;
    auditor.refuses("checkpoint", &before, None).await;
    auditor.knows(&old);
    auditor.refuses("checkpoint", &after, None).await;
    auditor.accepts("checkpoint", &before, None, "sealed").await;

    // Who knows both can check all of it, and the server tells both.
    let told = auditor.get("/v1/ledger/keys").await;
    let told: Vec<_> = told["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    assert!(told.len() == 2 && told.contains(&new.as_str()) && told.contains(&old.trim()), "{told:?}");
    auditor.knows(&told.join("\n"));
    for kept in [&before, &between] {
        auditor.accepts("consistency", &auditor.continues(kept).await, Some(kept), "what was kept is").await;
    }
    dev.interrupt().await.well();

    // A key that nobody knows does not go on with what others signed, and says so.
    fs::remove_file(folder.join("seal-keys.pub")).unwrap();
    fs::remove_file(&file).unwrap();
    let ended = folder.spawn_dev_with("127.0.0.1:0", &["--no-worker"]).end().await;
    ended.refused(&["no known key has signed the note"]);
}
