//! Files of providers beside the ledger: real withdrawals that were paid and real recharges, with one of each kind of
//! mistake; files that come again, overlap, and explain; a run that is killed.

use std::{collections::BTreeMap, fs};

use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use skyriff_domain::{ExceptionId, reconciliation::Kind};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::{
    support::{Api, Dev, Ended, Folder, Process, eventually, skyriff},
    withdrawals::files_with,
};

const OPERATOR: Uuid = Uuid::from_u128(2);
const REASON: &str = "she paid the difference in cash at the desk";
const OF_NOBODY: &str = "the clerk of the bank says they have sent it back";

async fn log(folder: &Folder) -> PgConnection {
    let options = PgConnectOptions::new_without_pgpass().socket(folder.join("run/primary")).username("skyriff_query");
    PgConnection::connect_with(&options.database("skyriff_events")).await.unwrap()
}

/// As the superuser, where the read models have this order.
async fn on_recharge(folder: &Folder, order: Uuid, sql: &str) {
    let mut changed = 0;
    for database in ["skyriff_reads_0", "skyriff_reads_1"] {
        let options = PgConnectOptions::new_without_pgpass().socket(folder.join("run/primary")).username("postgres");
        let mut reads = PgConnection::connect_with(&options.database(database)).await.unwrap();
        changed += sqlx::query(sql).bind(order).bind(Uuid::nil()).execute(&mut reads).await.unwrap().rows_affected();
    }
    assert_eq!(changed, 1, "{sql}");
}

/// How many events there are of reconciliations, by name.
async fn recorded(folder: &Folder) -> BTreeMap<String, i64> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT aggregate_type || '.' || event_type, count(*) FROM events WHERE aggregate_type LIKE 'reconciliation%' GROUP BY 1",
    )
    .fetch_all(&mut log(folder).await)
    .await
    .unwrap();
    rows.into_iter().collect()
}

/// Whose a payment is, and what its reference is.
struct Payment {
    user: Uuid,
    id: Uuid,
    reference: String,
}

/// Somebody withdraws, and a payment file is written.
async fn paid_out(folder: &Folder, dev: &Dev, service: &Api) -> Payment {
    let user = Uuid::new_v4();
    service.earn(user, &format!("earn {user}"), 900).await.unwrap().with(StatusCode::CREATED);
    let owner = dev.api.as_caller(&folder.token("user", user).await);
    let destination = json!({ "kind": "alipay", "account": "mei@example.com", "name": "Mei Lin" });
    let body = json!({ "points": 900, "destination": destination });
    let asked = owner.post("/v1/withdrawals", "my money", Some(body)).await.unwrap().with(StatusCode::CREATED);
    let path = asked.header("location").to_owned();
    let reference =
        eventually("the payout", async || owner.get(&path).await.json["reference"].as_str().map(str::to_owned)).await;
    Payment { user, id: path.rsplit_once('/').unwrap().1.parse().unwrap(), reference }
}

/// With whom the payouts were started.
async fn provider(folder: &Folder) -> String {
    sqlx::query_scalar("SELECT payload #>> '{payout_started,provider}' FROM events WHERE aggregate_type = 'withdrawal' AND event_type = 'payout_started' LIMIT 1")
        .fetch_one(&mut log(folder).await)
        .await
        .unwrap()
}

fn arguments(kind: &str, file: &str, provider: &str) -> Vec<String> {
    arguments_of(kind, file, provider, -1)
}

/// Of three days, the first of which is so many after today.
fn arguments_of(kind: &str, file: &str, provider: &str, after: i64) -> Vec<String> {
    let first = chrono::Utc::now().date_naive() + chrono::TimeDelta::days(after);
    let (from, to) = (first, first + chrono::TimeDelta::days(3));
    let operator = OPERATOR.to_string();
    let words = [
        "reconcile",
        kind,
        file,
        "--provider",
        provider,
        "--from",
        &from.to_string(),
        "--to",
        &to.to_string(),
        "--operator",
        &operator,
    ];
    words.map(str::to_owned).to_vec()
}

/// Reconcile a file with these lines.
async fn reconcile(folder: &Folder, kind: &str, provider: &str, lines: &[String]) -> Ended {
    reconcile_days(folder, kind, provider, lines, -1).await
}

async fn reconcile_days(folder: &Folder, kind: &str, provider: &str, lines: &[String], after: i64) -> Ended {
    let header = match kind {
        "payouts" => "withdrawal,reference,amount_minor,currency,status,at",
        _ => "order,points,status,at",
    };
    let file = folder.join(&format!("{}.csv", Uuid::new_v4()));
    fs::write(&file, format!("{header}\n{}\n", lines.join("\n"))).unwrap();
    let arguments = arguments_of(kind, file.to_str().unwrap(), provider, after);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    folder.run(&arguments).await
}

/// The exceptions, by the payment that they are about.
async fn exceptions(api: &Api, filter: &str) -> BTreeMap<Uuid, Value> {
    let mut all = BTreeMap::new();
    let mut next = String::new();
    loop {
        let page = api.get(&format!("/v1/ledger/reconciliations/exceptions?limit=3{filter}{next}")).await;
        let page = page.with(StatusCode::OK).json;
        for exception in page["exceptions"].as_array().unwrap() {
            let subject = exception["subject"].as_str().unwrap().parse().unwrap();
            assert!(all.insert(subject, exception.clone()).is_none(), "told twice: {exception}");
        }
        match page["next"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => return all,
        }
    }
}

fn told(ended: &Ended, counts: [(&str, u64); 6]) {
    for (what, count) in counts {
        let line =
            ended.stdout.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what}: {ended:?}"));
        assert_eq!(line.split_whitespace().next(), Some(count.to_string().as_str()), "{}", ended.stdout);
    }
}

const AGREE: &str = "agree";
const NOT_IN_LEDGER: &str = "missing in the ledger";
const NOT_IN_FILE: &str = "missing in the file";
const DIFFER: &str = "differ";
const REPEATED: &str = "more than once";
const EXPLAINED: &str = "are explained";

#[tokio::test]
async fn payouts_that_do_not_agree_are_found_resolved_and_explained_once() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let as_role = async |role: &str, id: Uuid| dev.api.as_caller(&folder.token(role, id).await);
    let service = as_role("service", Uuid::from_u128(1)).await;
    let (operator, auditor) = (as_role("operator", OPERATOR).await, as_role("auditor", Uuid::from_u128(3)).await);
    let mut paid = Vec::new();
    for _ in 0..7 {
        paid.push(paid_out(&folder, &dev, &service).await);
    }
    let provider = provider(&folder).await;
    let minor: i64 = sqlx::query_scalar(
        "SELECT (payload #>> '{requested,money,minor}')::bigint FROM events WHERE event_type = 'requested' LIMIT 1",
    )
    .fetch_one(&mut log(&folder).await)
    .await
    .unwrap();
    let day = chrono::Utc::now().date_naive();
    let line = |of: &Payment, reference: &str, minor: i64, currency: &str, status: &str| {
        format!("{},{reference},{minor},{currency},{status},{day}T00:00:00Z", of.id)
    };
    let right = |of: &Payment| line(of, &of.reference, minor, "cny", "paid");
    let unknown = Payment { user: Uuid::nil(), id: Uuid::new_v4(), reference: "po_unknown".to_owned() };
    let pending = Payment { user: Uuid::nil(), id: Uuid::new_v4(), reference: "po_pending".to_owned() };
    let [agrees, amount, currency, status, absent, repeated, reference] = paid.as_slice() else { panic!() };
    let lines = [
        right(agrees),
        line(amount, &amount.reference, minor + 1, "cny", "paid"),
        line(currency, &currency.reference, minor, "usd", "paid"),
        line(status, &status.reference, minor, "cny", "declined"),
        right(repeated),
        line(repeated, &repeated.reference, minor + 5, "cny", "paid"),
        line(reference, "po_other", minor, "cny", "paid"),
        line(&unknown, &unknown.reference, 77, "cny", "paid"),
        line(&pending, &pending.reference, 77, "cny", "pending"),
    ];
    let first = reconcile(&folder, "payouts", &provider, &lines).await;
    assert_eq!(first.code, Some(2), "{first:?}");
    told(&first, [(AGREE, 2), (NOT_IN_LEDGER, 1), (NOT_IN_FILE, 1), (DIFFER, 4), (REPEATED, 2), (EXPLAINED, 0)]);

    let open = eventually("the exceptions", async || {
        Some(exceptions(&auditor, "&state=open").await).filter(|open| open.len() == 7)
    })
    .await;
    let expected = [
        (amount, "amount"),
        (currency, "currency"),
        (status, "status"),
        (absent, "missing_in_file"),
        (repeated, "repeated"),
        (reference, "reference"),
        (&unknown, "missing_in_ledger"),
    ];
    for (of, difference) in expected {
        let exception = &open[&of.id];
        assert_eq!(exception["difference"], difference, "{exception}");
        let home = if of.user.is_nil() { &exception["exception"] } else { &json!(of.user) };
        assert_eq!(&exception["home"], home, "{exception}");
    }
    assert_eq!(
        open[&amount.id]["ours"],
        json!({"amount": minor, "currency": "cny", "status": "paid", "reference": amount.reference})
    );
    assert_eq!((&open[&amount.id]["theirs"]["amount"], &open[&amount.id]["line"]), (&json!(minor + 1), &json!(3)));
    assert_eq!((open[&absent.id].get("theirs"), open[&unknown.id].get("ours")), (None, None));
    let before = recorded(&folder).await;
    assert_eq!(before["reconciliation_exception.found"], 7);

    // The same file is the same reconciliation.
    let file = folder.join("again.csv");
    fs::write(&file, format!("withdrawal,reference,amount_minor,currency,status,at\n{}\n", lines.join("\n"))).unwrap();
    let again = arguments("payouts", file.to_str().unwrap(), &provider);
    let again = folder.run(&again.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert!(again.code == Some(2) && again.stdout.contains("reconciled before"), "{again:?}");
    assert_eq!(recorded(&folder).await, before);
    let runs = auditor.get("/v1/ledger/reconciliations").await.with(StatusCode::OK).json;
    let runs = runs["reconciliations"].as_array().unwrap().clone();
    assert_eq!((runs.len(), &runs[0]["matched"], &runs[0]["repeated"]), (1, &json!(2), &json!(2)), "{runs:?}");

    // One is resolved: by an operator, with a reason, once.
    let path = |exception: &Value| {
        let text = |name: &str| exception[name].as_str().unwrap().to_owned();
        format!("/v1/ledger/reconciliations/exceptions/{}/{}/resolve", text("home"), text("exception"))
    };
    let of_status = path(&open[&status.id]);
    let body = json!({"outcome": "accepted", "reason": REASON});
    let owner = as_role("user", status.user).await;
    let as_operator = as_role("operator", status.user).await;
    for api in [&auditor, &owner, &service] {
        api.post(&of_status, "no", Some(body.clone())).await.unwrap().is_problem(StatusCode::FORBIDDEN, "forbidden");
    }
    as_operator
        .post(&of_status, "own", Some(body.clone()))
        .await
        .unwrap()
        .is_problem(StatusCode::FORBIDDEN, "four-eyes");
    let nothing = operator.post(&of_status, "why", Some(json!({"outcome": "accepted"}))).await.unwrap();
    nothing.is_problem(StatusCode::BAD_REQUEST, "malformed-request");
    let elsewhere = of_status.replace(&status.user.to_string(), &amount.user.to_string());
    operator
        .post(&elsewhere, "elsewhere", Some(body.clone()))
        .await
        .unwrap()
        .is_problem(StatusCode::NOT_FOUND, "not-found");
    let resolved = operator.post(&of_status, "yes", Some(body.clone())).await.unwrap().with(StatusCode::CREATED);
    let again = operator.post(&of_status, "yes", Some(body.clone())).await.unwrap().with(StatusCode::CREATED);
    assert_eq!(again.header("idempotent-replayed"), "true");
    operator.post(&of_status, "the same", Some(body)).await.unwrap().with(StatusCode::OK);
    let other = json!({"outcome": "corrected_there", "reason": "no"});
    operator.post(&of_status, "other", Some(other)).await.unwrap().is_problem(StatusCode::CONFLICT, "refused");
    let headers = [("Skyriff-At-Least", resolved.position())];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let list = "/v1/ledger/reconciliations/exceptions?state=resolved&kind=payouts";
    let shown = auditor.send(Method::GET, list, &headers, None).await.unwrap().with(StatusCode::OK).json;
    let shown = &shown["exceptions"][0];
    assert_eq!(
        (&shown["reason"], &shown["resolved_by"], &shown["outcome"]),
        (&json!(REASON), &json!(OPERATOR), &json!("accepted"))
    );
    assert_eq!(files_with(&folder, REASON), [""; 0], "what is said of somebody is sealed");

    // An older file has the same payment right; what was said later stands.
    let earlier = right(currency).replace(&day.to_string(), &(day - chrono::TimeDelta::days(1)).to_string());
    let others = lines.iter().filter(|line| !line.starts_with(&currency.id.to_string()));
    let older: Vec<_> = others.cloned().chain([earlier]).collect();
    let older = reconcile(&folder, "payouts", &provider, &older).await;
    told(&older, [(AGREE, 3), (NOT_IN_LEDGER, 1), (NOT_IN_FILE, 1), (DIFFER, 3), (REPEATED, 2), (EXPLAINED, 0)]);

    // A later file, that overlaps: most of it agrees by now, one is still not known, one is as wrong as before. What was
    // paid under two names, or stood in a file twice, may have been paid twice: a file with one of them does not tell.
    let lines = [
        right(agrees),
        line(amount, &amount.reference, minor + 1, "cny", "paid"),
        right(currency),
        right(status),
        right(absent),
        right(repeated),
        right(reference),
        line(&unknown, &unknown.reference, 77, "cny", "paid"),
    ];
    let second = reconcile(&folder, "payouts", &provider, &lines).await;
    told(&second, [(AGREE, 6), (NOT_IN_LEDGER, 1), (NOT_IN_FILE, 0), (DIFFER, 1), (REPEATED, 0), (EXPLAINED, 2)]);
    let after = recorded(&folder).await;
    let counts = |name: &str| after[&format!("reconciliation_exception.{name}")];
    assert_eq!((counts("found"), counts("explained"), counts("resolved")), (7, 2, 1));
    let open = eventually("what is still open", async || {
        Some(exceptions(&operator, "&state=open").await).filter(|open| open.len() == 4)
    })
    .await;
    assert!([amount, repeated, reference, &unknown].iter().all(|of| open.contains_key(&of.id)), "{open:?}");
    // Nobody's is resolved in its own name.
    let of_unknown = path(&open[&unknown.id]);
    let body = json!({"outcome": "corrected_there", "reason": OF_NOBODY});
    let resolved = operator.post(&of_unknown, "theirs", Some(body)).await.unwrap().with(StatusCode::CREATED);
    let list = "/v1/ledger/reconciliations/exceptions?state=resolved";
    let headers = [("Skyriff-At-Least", resolved.position())];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let shown = auditor.send(Method::GET, list, &headers, None).await.unwrap().with(StatusCode::OK).json;
    let mut reasons = shown["exceptions"].as_array().unwrap().iter().map(|exception| &exception["reason"]);
    assert!(reasons.any(|reason| reason == OF_NOBODY), "{shown}");
    assert_eq!(files_with(&folder, OF_NOBODY), [""; 0], "nobody can tell what is in it");

    // Other figures than before open it again; the same do not, resolved or not.
    let lines = [
        line(status, &status.reference, minor, "cny", "declined"),
        line(&unknown, &unknown.reference, 78, "cny", "paid"),
    ];
    let third = reconcile(&folder, "payouts", &provider, &lines).await;
    assert_eq!(third.code, Some(2), "{third:?}");
    let open = eventually("the one with other figures", async || {
        let open = exceptions(&auditor, "&state=open").await;
        open.get(&unknown.id).is_some_and(|exception| exception["theirs"]["amount"] == 78).then_some(open)
    })
    .await;
    assert!(!open.contains_key(&status.id), "{open:?}");
    assert_eq!(folder.audit().await["ledger_sums"]["points"], 0);
    folder.run(&["rebuild", "reconciliations"]).await.well();
    dev.interrupt().await.well();
}

#[tokio::test]
async fn recharges_are_compared_and_a_run_that_is_killed_is_finished_with_nothing_doubled() {
    const UNKNOWN: usize = 8_000;
    let folder = Folder::new();
    let dev = folder.dev().await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let auditor = dev.api.as_caller(&folder.token("auditor", Uuid::from_u128(3)).await);
    let mut orders = Vec::new();
    for number in 0..4 {
        let (user, order) = (Uuid::new_v4(), Uuid::new_v4());
        let body = json!({"order": order, "points": 60});
        let path = format!("/v1/users/{user}/recharges");
        service.post(&path, &format!("recharge {number}"), Some(body)).await.unwrap().with(StatusCode::CREATED);
        orders.push(order);
    }
    let day = chrono::Utc::now().date_naive();
    let line = |order: Uuid, points: i64, status: &str| format!("{order},{points},{status},{day}T00:00:00Z");
    let [agrees, amount, absent, refunded] = orders.as_slice() else { panic!() };
    let mut lines = vec![line(*agrees, 60, "paid"), line(*amount, 61, "paid"), line(*refunded, 60, "refunded")];
    lines.extend((0..UNKNOWN).map(|_| line(Uuid::new_v4(), 60, "paid")));

    // A file that is not in order leaves no trace.
    let mut broken = lines.clone();
    broken[2] = line(*refunded, 60, "gone");
    let refused = reconcile(&folder, "recharges", "acme", &broken).await;
    refused.refused(&["line 4", "status: \"gone\" is none of paid, pending, failed, refunded"]);
    assert_eq!(recorded(&folder).await, BTreeMap::new());

    let file = folder.join("recharges.csv");
    fs::write(&file, format!("order,points,status,at\n{}\n", lines.join("\n"))).unwrap();
    let arguments = arguments("recharges", file.to_str().unwrap(), "acme");
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    for least in [1, 2_500] {
        let killed = Process::spawn(folder.with_databases(skyriff(&arguments)));
        eventually("some exceptions", async || {
            let found = recorded(&folder).await.get("reconciliation_exception.found").copied();
            found.filter(|found| *found >= least)
        })
        .await;
        killed.signal(Signal::KILL);
        killed.end().await;
    }
    let half = recorded(&folder).await;
    assert!(!half.contains_key("reconciliation.finished"), "it was too fast to be killed: {half:?}");
    let done = folder.run(&arguments).await;
    assert_eq!(done.code, Some(2), "{done:?}");
    let unknown = u64::try_from(UNKNOWN).unwrap();
    told(&done, [(AGREE, 1), (NOT_IN_LEDGER, unknown), (NOT_IN_FILE, 1), (DIFFER, 2), (REPEATED, 0), (EXPLAINED, 0)]);
    let all = recorded(&folder).await;
    let found = i64::try_from(UNKNOWN).unwrap() + 3;
    let expected =
        [("reconciliation.finished", 1), ("reconciliation.started", 1), ("reconciliation_exception.found", found)];
    assert_eq!(all, expected.map(|(name, count)| (name.to_owned(), count)).into());

    // A file from before it was paid: nobody says there that it was, which explains nothing of what another file says.
    let order_of = |line: &String| line.split_once(',').unwrap().0.parse().unwrap();
    let lines_of_nobody: Vec<Uuid> = lines[3..5].iter().map(order_of).collect();
    let late = lines_of_nobody[0];
    let before = [line(late, 60, "pending"), lines[0].clone(), lines[1].clone(), lines[2].clone()];
    let before = reconcile(&folder, "recharges", "acme", &before).await;
    told(&before, [(AGREE, 2), (NOT_IN_LEDGER, 0), (NOT_IN_FILE, 1), (DIFFER, 2), (REPEATED, 0), (EXPLAINED, 0)]);

    // What the ledger did not know is credited later, and a later file explains it by itself.
    let path = format!("/v1/users/{}/recharges", Uuid::new_v4());
    service.post(&path, "late", Some(json!({"order": late, "points": 60}))).await.unwrap().with(StatusCode::CREATED);
    let lines =
        [line(late, 60, "paid"), line(*absent, 60, "paid"), line(*amount, 60, "paid"), line(*agrees, 60, "paid")];
    let later = reconcile(&folder, "recharges", "acme", &lines).await;
    told(&later, [(AGREE, 4), (NOT_IN_LEDGER, 0), (NOT_IN_FILE, 1), (DIFFER, 0), (REPEATED, 0), (EXPLAINED, 3)]);
    let explained = eventually("what is explained", async || {
        Some(exceptions(&auditor, "&state=explained&provider=acme").await).filter(|explained| explained.len() == 3)
    })
    .await;
    assert!([late, *absent, *amount].iter().all(|order| explained.contains_key(order)), "{explained:?}");

    // An order that a file of other days has had stands in this one again: it may have been paid twice. What that one did not
    // have is awaited.
    let other_day = |line: &String| line.replace(&day.to_string(), &(day + chrono::TimeDelta::days(3)).to_string());
    let lines: Vec<_> = [line(*agrees, 60, "paid"), line(*refunded, 60, "paid")].iter().map(other_day).collect();
    let again = reconcile_days(&folder, "recharges", "acme", &lines, 3).await;
    told(&again, [(AGREE, 1), (NOT_IN_LEDGER, 0), (NOT_IN_FILE, 0), (DIFFER, 0), (REPEATED, 1), (EXPLAINED, 1)]);
    let of_order = "SELECT payload #>> '{found,difference}' FROM events
                    WHERE aggregate_type = 'reconciliation_exception' AND payload #>> '{found,subject}' = $1";
    let found: Vec<String> =
        sqlx::query_scalar(of_order).bind(agrees.to_string()).fetch_all(&mut log(&folder).await).await.unwrap();
    assert_eq!(found, ["repeated"]);
    // Nor does a file that was not compared before take it for the first one.
    let elsewhere = reconcile_days(&folder, "recharges", "another", &lines, 3).await;
    told(&elsewhere, [(AGREE, 2), (NOT_IN_LEDGER, 0), (NOT_IN_FILE, 0), (DIFFER, 0), (REPEATED, 0), (EXPLAINED, 0)]);
    // As if another database of the event store had credited the same order to somebody else.
    let again = "INSERT INTO recharges SELECT order_id, $2, shard, points, credited_at, position FROM recharges WHERE order_id = $1";
    on_recharge(&folder, *absent, again).await;
    let credited = reconcile_days(&folder, "recharges", "another", &[other_day(&line(*absent, 60, "paid"))], 3).await;
    told(&credited, [(AGREE, 0), (NOT_IN_LEDGER, 0), (NOT_IN_FILE, 0), (DIFFER, 1), (REPEATED, 0), (EXPLAINED, 0)]);
    on_recharge(&folder, *absent, "DELETE FROM recharges WHERE order_id = $1 AND user_id = $2").await;

    // What was said of a payment of nobody goes with the person whose it turns out to be.
    let theirs: Uuid = lines_of_nobody[1];
    let exception = ExceptionId::of(Kind::Recharges, &"acme".parse().unwrap(), theirs, None);
    let operator = dev.api.as_caller(&folder.token("operator", OPERATOR).await);
    let path = format!("/v1/ledger/reconciliations/exceptions/{exception}/{exception}/resolve");
    let body = json!({"outcome": "accepted", "reason": OF_NOBODY});
    let resolved = operator.post(&path, "theirs", Some(body)).await.unwrap().with(StatusCode::CREATED).position();
    let shown = async || {
        let list = "/v1/ledger/reconciliations/exceptions?state=resolved";
        let shown = auditor.send(Method::GET, list, &[("Skyriff-At-Least", &resolved)], None).await.unwrap();
        shown.with(StatusCode::OK).json["exceptions"][0].clone()
    };
    assert_eq!(shown().await["reason"], OF_NOBODY);
    let person = Uuid::new_v4().to_string();
    let body = json!({"order": theirs, "points": 60});
    service
        .post(&format!("/v1/users/{person}/recharges"), "theirs", Some(body))
        .await
        .unwrap()
        .with(StatusCode::CREATED);
    let (operator, within) = (OPERATOR.to_string(), folder.as_str());
    let erase = ["erase", &person, "--asked-by", "person", "--reference", "ticket-1", "--operator", &operator];
    folder.run(&[&erase[..], &["--folder", &within, "--yes"]].concat()).await.well();
    let gone = shown().await;
    assert_eq!((gone.get("reason"), &gone["subject"]), (None, &json!(theirs)), "{gone}");
    assert_eq!(folder.audit().await["problems_total"], 0);
    dev.interrupt().await.well();
}
