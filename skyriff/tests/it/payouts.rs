//! Withdrawals become money, by the binary, through kill -9 and with two processes that pay.

use std::{fs, os::unix::fs::PermissionsExt};

use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::{
    crashes::free_port,
    hostile_provider::{End, HostileProvider, Looking, Paying, SECRET},
    support::{Api, Dev, Folder, Process, eventually, skyriff},
    withdrawals::files_with,
};

const ACCOUNT: &str = "mei.lin@example.com";

/// A withdrawal, as its owner asked for it.
struct Asked {
    owner: Api,
    path: String,
    id: Uuid,
}

/// Somebody new earns points and asks for their money.
async fn withdraw(folder: &Folder, dev: &Dev) -> Asked {
    let user = Uuid::new_v4();
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    service.earn(user, &format!("earn {user}"), 900).await.unwrap().with(StatusCode::CREATED);
    let owner = dev.api.as_caller(&folder.token("user", user).await);
    let destination = json!({ "kind": "alipay", "account": ACCOUNT, "name": "Mei Lin" });
    let body = json!({ "points": 900, "destination": destination });
    let asked = owner.post("/v1/withdrawals", "my money", Some(body)).await.unwrap().with(StatusCode::CREATED);
    let path = asked.header("location").to_owned();
    let id = path.rsplit_once('/').unwrap().1.parse().unwrap();
    Asked { owner, path, id }
}

async fn status(asked: &Asked) -> Option<Value> {
    let answer = asked.owner.send(reqwest::Method::GET, &asked.path, &[], None).await.ok()?;
    (answer.status == StatusCode::OK).then(|| answer.json["status"].clone())
}

async fn until(asked: &Asked, expected: &str) {
    eventually(expected, async || (status(asked).await? == expected).then_some(())).await;
}

/// Whoever had tasks is known to be dead.
async fn leases_end(folder: &Folder) {
    let options = PgConnectOptions::new_without_pgpass().socket(folder.join("run/primary")).username("skyriff_process");
    let mut connection = PgConnection::connect_with(&options.database("skyriff_events")).await.unwrap();
    connection.execute("UPDATE tasks SET due_at = now()").await.unwrap();
}

async fn books_are_in_order(folder: &Folder, provider: &HostileProvider, paid_points: i64) {
    provider.settled().await;
    provider.books_are_in_order();
    let audit = folder.audit().await;
    assert_eq!((&audit["problems_total"], &audit["ledger_sums"]["points"]), (&json!(0), &json!(0)), "{audit:#}");
    let of = |account: &str| audit["ledger"][account].as_i64().unwrap_or_default();
    assert_eq!(of("platform:payouts:paid") + of("platform:withdrawal_fee"), paid_points, "{audit:#}");
    assert_eq!((of("platform:payouts:pending"), of("user:held:income")), (0, 0), "{audit:#}");
}

#[tokio::test]
async fn without_an_account_anywhere_withdrawals_go_into_a_payment_file() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let asked = withdraw(&folder, &dev).await;
    until(&asked, "paid").await;
    let files: Vec<_> = fs::read_dir(folder.join("payouts")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let file = files.iter().find(|file| file.extension().is_some_and(|extension| extension == "csv")).unwrap();
    let text = fs::read_to_string(file).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.lines().nth(1).unwrap().starts_with(&asked.id.to_string()) && text.contains(ACCOUNT), "{text}");
    for (path, mode) in [(file.clone(), 0o600), (folder.join("payouts"), 0o700)] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
    assert_eq!(files_with(&folder, ACCOUNT), [file.display().to_string()], "it is nowhere else");
    let ended = dev.interrupt().await.well();
    for said in [&ended.stdout, &ended.stderr] {
        assert!(!said.contains(ACCOUNT), "a destination was logged:\n{said}");
    }
}

#[tokio::test]
async fn killed_wherever_it_is_with_a_payout_it_goes_on_and_nobody_is_paid_twice() {
    // Where the first request for each withdrawal stands still while the process is killed.
    let pay = |_, times| match times {
        1 => Paying::HoldAfter(End::Paid),
        _ => Paying::Honest(End::Paid),
    };
    let held_look = std::sync::atomic::AtomicBool::new(false);
    let look = move |_, times| {
        let first = !held_look.swap(true, std::sync::atomic::Ordering::Relaxed);
        if first && times == 1 { Looking::Hold } else { Looking::Honest }
    };
    let provider = HostileProvider::start(pay, look).await;
    let folder = Folder::new();
    let listen = format!("127.0.0.1:{}", free_port());
    let secret = String::from_utf8(SECRET.to_vec()).unwrap();
    let variables = [
        ("SKYRIFF_PAYOUT_PROVIDER", "http"),
        ("SKYRIFF_PAYOUT_NAME", "acme"),
        ("SKYRIFF_PAYOUT_URL", provider.url.as_str()),
        ("SKYRIFF_PAYOUT_SECRET", secret.as_str()),
        ("SKYRIFF_PAYOUT_LOOK_AGAIN_MIN_MS", "50"),
    ];
    let dev = folder.dev_with_variables(&listen, &variables).await;
    provider.call_back_at(&format!("http://{listen}/v1/payout-callbacks/acme"));

    // In the look-up, and then with the money gone and the answer on its way.
    let first = withdraw(&folder, &dev).await;
    provider.holds().await;
    dev.kill().await;
    assert_eq!(provider.has_paid(first.id), None);
    let dev = folder.dev_with_variables(&listen, &variables).await;
    leases_end(&folder).await;
    provider.holds().await;
    assert_eq!(provider.has_paid(first.id), Some(true));
    dev.kill().await;
    let dev = folder.dev_with_variables(&listen, &variables).await;
    leases_end(&folder).await;
    until(&first, "paid").await;

    // Two processes pay at once; one is killed while it waits for an answer, and a callback settles what it asked for.
    let mut command = folder.with_databases(skyriff(&["serve", "--listen", "127.0.0.1:0", "--roles", "process"]));
    command.env("SKYRIFF_TOKEN_SECRET", fs::read_to_string(folder.join("token-secret")).unwrap());
    command.envs(variables);
    let mut other = Process::spawn(command);
    other.says("its address", |said| said.contains("listens").then_some(())).await;
    let mut all = vec![first];
    for _ in 0..5 {
        all.push(withdraw(&folder, &dev).await);
    }
    for asked in &all {
        eventually("the request to pay", async || provider.has_paid(asked.id)).await;
    }
    other.signal(Signal::KILL);
    other.end().await;
    let (by_callback, others) = all.split_at(3);
    for asked in by_callback {
        let heard = provider.call_back(asked.id, crate::hostile_provider::Signing::Genuine).await;
        assert_eq!(heard, StatusCode::NO_CONTENT);
        let forged = provider.call_back(asked.id, crate::hostile_provider::Signing::Forged).await;
        assert_eq!(forged, StatusCode::UNAUTHORIZED);
        until(asked, "paid").await;
    }
    assert_eq!(dev.api.metric("skyriff_payout_callbacks_total", "outcome=\"forged\"").await, 3.0);
    leases_end(&folder).await;
    for asked in others {
        until(asked, "paid").await;
    }
    provider.let_go();
    books_are_in_order(&folder, &provider, 900 * 6).await;
    let ended = dev.interrupt().await.well();
    for said in [&ended.stdout, &ended.stderr] {
        assert!(!said.contains(ACCOUNT) && !said.contains(&secret), "a secret was logged:\n{said}");
    }
}
