//! What `skyriff dev` says when it is ready works when it is pasted into a shell.

use reqwest::StatusCode;
use serde_json::Value;
use tokio::process::Command;

use crate::support::{Folder, Process, eventually};

/// Run a line in a shell.
async fn shell(line: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    Process::spawn(command).end().await.well().stdout
}

#[tokio::test]
async fn the_pasted_commands_check_in_and_read_the_balance_and_the_ledger() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let lines: Vec<_> = dev.welcome.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    let [check_in, balance, ledger] = lines[..] else { panic!("{}", dev.welcome) };

    let first = shell(check_in).await;
    assert!(first.starts_with("HTTP/1.1 201"), "{first}");
    // Pasted twice, it is answered as the first time.
    let second = shell(check_in).await;
    assert!(second.starts_with("HTTP/1.1 201") && second.contains("idempotent-replayed: true"), "{second}");
    let position = first.lines().find_map(|line| line.strip_prefix("skyriff-position: ")).unwrap().trim();
    assert_eq!(dev.api.balance(dev.user, position).await["available"]["promo"], 10);

    // The pasted ones ask for no freshness.
    let read = async |line: &str| {
        let answer = shell(&format!("{line} -s -w ' %{{http_code}}'")).await;
        let (body, status) = answer.rsplit_once(' ').unwrap();
        assert_eq!(status, "200", "{answer}");
        serde_json::from_str::<Value>(body).unwrap()
    };
    let balance = eventually("the check-in in the balance", async || {
        Some(read(balance).await).filter(|balance| balance["available"]["total"] == 10)
    });
    assert_eq!(balance.await["user"], dev.user.to_string());
    let entry = eventually("the check-in in the ledger", async || read(ledger).await["entries"].get(0).cloned()).await;
    assert_eq!((&entry["amount"], &entry["event_type"]), (&10.into(), &"checked_in".into()));
    assert_eq!(entry["position"], position);

    for page in ["/v1/docs", "/metrics"] {
        assert!(dev.welcome.contains(&format!("{}{page}", dev.api.url)), "{}", dev.welcome);
        let followed = shell(&format!("curl -sL -o /dev/null -w '%{{http_code}}' {}{page}", dev.api.url)).await;
        assert_eq!(followed, StatusCode::OK.as_str(), "{page}");
    }
    dev.interrupt().await.well();
}
