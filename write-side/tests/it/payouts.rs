//! Payouts, against a provider that gets everything wrong: each withdrawal is paid at most once, and says so exactly
//! when it was.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::StatusCode;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use skyriff_domain::{
    Event, Intent, ShardCount, StreamId, UserId, WithdrawalId, ledger, shard_of,
    withdrawal::{self, Outcome, Status, Step, What, Withdrawal},
};
use skyriff_edge::{
    Tokens,
    request::{self, Limits as RequestLimits},
};
use skyriff_postgres::databases::{COMMAND, PROCESS};
use skyriff_vault::{Destination, KeyDatabase, MasterKeys, Vault};
use skyriff_write_side::{
    CommandSide,
    commands::Limits,
    http::{self, PayoutCallbacks},
    payouts::{
        Patience, PayoutProvider, Payouts, WithdrawalRecords,
        http::{HttpProvider, Settings},
        local::LocalProvider,
        signature::Secret,
    },
    processes::{self, ProcessDatabase, ProcessSide, Services},
};
use sqlx::{
    Executor,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{net::TcpListener, time::Instant};
use uuid::Uuid;

use crate::{
    hostile_provider::{End, HostileProvider, Looking, Paying, SECRET, Signing},
    store::{LONG, Logged, Store, command, earn, node, noon, once, points, some_user},
};

const POINTS: i64 = 500;

/// A store with its payouts: the API that takes callbacks, and what nodes that pay need.
struct House {
    store: Store,
    api: CommandSide,
    keys: MasterKeys,
    callbacks: String,
}

impl House {
    async fn open() -> Self {
        let store = Store::create().await;
        let api = store.node();
        let shards = ShardCount::default();
        let callbacks = PayoutCallbacks {
            commands: api.commands.clone(),
            shards,
            records: WithdrawalRecords::new([(store.options(COMMAND), shards.shards().collect())]),
            provider: Some(("acme".parse().unwrap(), Secret::new(SECRET).unwrap())),
        };
        let (routes, _) = http::payout_callback_routes(callbacks).split_for_parts();
        let routes = request::around(routes, Tokens::new(&[7; 32]).unwrap(), RequestLimits::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let callbacks = format!("http://{}/v1/payout-callbacks/acme", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let keys = MasterKeys::from_base64(&MasterKeys::generate()).unwrap();
        Self { store, api, keys, callbacks }
    }

    /// A user asks for money.
    async fn withdraw(&self) -> (UserId, WithdrawalId) {
        let (user, withdrawal) = (some_user(), WithdrawalId(Uuid::new_v4()));
        self.api.commands.execute(once(user, earn(POINTS))).await.unwrap();
        self.request(user, withdrawal, POINTS).await;
        (user, withdrawal)
    }

    async fn request(&self, user: UserId, withdrawal: WithdrawalId, amount: i64) {
        let destination = json!({ "kind": "alipay", "account": "mei@example.com", "name": "Mei \"M\" Lin" });
        let destination: Destination = serde_json::from_value(destination).unwrap();
        let vault = vault(&self.keys, self.store.options(COMMAND));
        let destination = vault.seal_destination(user, withdrawal, &destination).await.unwrap();
        self.step(user, withdrawal, What::Request { points: points(amount), destination }).await;
    }

    async fn step(&self, user: UserId, withdrawal: WithdrawalId, what: What) {
        let intent = Intent::Withdrawal(Step { withdrawal, what });
        let submission = command(&Uuid::new_v4().to_string(), user, noon(), intent);
        self.api.commands.execute(submission).await.unwrap();
    }

    fn plan(&self, provider: impl PayoutProvider + 'static, patience: Patience) -> Plan {
        Plan {
            keys: self.keys.clone(),
            append: self.store.options(COMMAND),
            react: self.store.options(PROCESS),
            provider: Arc::new(provider),
            patience,
        }
    }

    async fn withdrawals(&self) -> BTreeMap<WithdrawalId, Withdrawal> {
        let mut owner = self.store.owner().await;
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT aggregate_id, event_type, payload::text FROM events WHERE aggregate_type = 'withdrawal'
             ORDER BY aggregate_id, sequence",
        )
        .fetch_all(&mut owner)
        .await
        .unwrap();
        let mut withdrawals = BTreeMap::<_, Withdrawal>::new();
        for (id, _, payload) in rows {
            let event = serde_json::from_str(&payload).unwrap();
            withdrawals.entry(WithdrawalId(id.parse().unwrap())).or_default().apply(&event);
        }
        withdrawals
    }

    async fn status(&self, withdrawal: WithdrawalId) -> Status {
        self.withdrawals().await[&withdrawal].status().unwrap()
    }

    async fn until(&self, what: &str, is_so: impl Fn(Status) -> bool) {
        let end = Instant::now() + LONG * 3;
        loop {
            let statuses: Vec<_> = self.withdrawals().await.values().filter_map(Withdrawal::status).collect();
            if statuses.iter().all(|status| is_so(*status)) {
                return;
            }
            if Instant::now() > end {
                let tasks: Vec<(String, i64, Option<String>)> =
                    sqlx::query_as("SELECT process, position, error FROM tasks")
                        .fetch_all(&mut self.store.owner().await)
                        .await
                        .unwrap();
                panic!("not all are {what}: {statuses:?}, {tasks:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whoever had tasks is known to be dead.
    async fn leases_end(&self) {
        self.store.owner().await.execute("UPDATE tasks SET due_at = now()").await.unwrap();
    }

    async fn tasks(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM tasks").fetch_one(&mut self.store.owner().await).await.unwrap()
    }

    /// Points are where the withdrawals say, and the ledger is zero.
    async fn ledger_agrees(&self) {
        let log = self.store.log().await;
        let accounts = accounts(&log);
        let of = |name: &str| accounts.get(name).copied().unwrap_or_default();
        assert_eq!(accounts.values().sum::<i64>(), 0, "{accounts:?}");
        // As of the same moment: nodes may still be at work.
        let mut withdrawals = BTreeMap::<_, Withdrawal>::new();
        for logged in &log {
            if let (StreamId::Withdrawal(id), Event::Withdrawal(event)) = (logged.stream(), logged.event()) {
                withdrawals.entry(id).or_default().apply(&event);
            }
        }
        let sum = |is: fn(Status) -> bool| {
            let of_it = withdrawals.values().filter(|it| it.status().is_some_and(is));
            of_it.map(|it| it.request().unwrap().points.get()).sum::<i64>()
        };
        let paid = of("platform:payouts:paid") + of("platform:withdrawal_fee");
        assert_eq!(paid, sum(|status| status == Status::Paid), "{accounts:?}");
        let pending = sum(|status| matches!(status, Status::Paying | Status::NeedsAttention));
        assert_eq!(of("platform:payouts:pending"), pending, "{accounts:?}");
        let held = sum(|status| matches!(status, Status::UnderReview | Status::Approved));
        assert_eq!(of("user:held:income"), held, "{accounts:?}");
    }
}

fn accounts(log: &[Logged]) -> BTreeMap<String, i64> {
    let mut accounts = BTreeMap::<_, i64>::new();
    for logged in log {
        for posting in ledger::postings(&logged.stream(), &logged.event()) {
            *accounts.entry(posting.account.to_string()).or_default() += posting.amount;
        }
    }
    accounts
}

fn vault(keys: &MasterKeys, options: PgConnectOptions) -> Vault {
    let primary = PgPoolOptions::new().max_connections(4).connect_lazy_with(options);
    let shards = ShardCount::default();
    let database = KeyDatabase { shards: shards.shards().collect(), primary };
    Vault::new(keys.clone(), shards, vec![database])
}

/// What it takes to start a node that pays.
#[derive(Clone)]
struct Plan {
    keys: MasterKeys,
    append: PgConnectOptions,
    react: PgConnectOptions,
    provider: Arc<dyn PayoutProvider>,
    patience: Patience,
}

/// A node that pays, in a runtime of its own: it can be killed between any two steps.
struct Payer(Option<tokio::runtime::Runtime>);

impl Plan {
    fn start(&self) -> Payer {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let plan = self.clone();
        let _inside = runtime.enter();
        let count = ShardCount::default();
        let side = node(plan.append, &Limits::default());
        let shards: Vec<_> = count.shards().collect();
        let payouts = Payouts {
            provider: plan.provider,
            vault: vault(&plan.keys, plan.react.clone()),
            records: WithdrawalRecords::new([(plan.react.clone(), shards.clone())]),
            patience: plan.patience,
        };
        let services = Services::new(side.commands.clone(), count).with_payouts(Some(payouts));
        let database = ProcessDatabase { options: plan.react, shards };
        let limits = processes::Limits { back_off_max: Duration::from_millis(200), ..processes::Limits::default() };
        let processes = ProcessSide::start(&[database], &services, &limits);
        runtime.spawn(async move {
            let _both = (side, processes);
            std::future::pending::<()>().await;
        });
        Payer(Some(runtime))
    }
}

impl Payer {
    /// Wherever it is.
    fn kill(mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

impl Drop for Payer {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn client(provider: &HostileProvider) -> HttpProvider {
    HttpProvider::new(Settings {
        name: "acme".parse().unwrap(),
        url: provider.url.parse().unwrap(),
        secret: Secret::new(SECRET).unwrap(),
        connect_timeout: Duration::from_millis(300),
        timeout: Duration::from_millis(300),
    })
    .unwrap()
}

fn patient() -> Patience {
    Patience {
        look_again_min: Duration::from_millis(20),
        look_again_max: Duration::from_millis(200),
        attention_after: Duration::from_secs(60),
    }
}

fn soon() -> Patience {
    Patience { attention_after: Duration::from_millis(700), ..patient() }
}

const fn is_over(status: Status) -> bool {
    matches!(status, Status::Paid | Status::Failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_misbehaviour_alone_ends_as_the_book_says() {
    use End::{Declined, Paid};
    let table = [
        (Paying::Honest(Paid), Status::Paid),
        (Paying::Honest(Declined), Status::Failed),
        (Paying::PendingFor(3, Paid), Status::Paid),
        (Paying::PendingFor(3, Declined), Status::Failed),
        (Paying::FailBefore, Status::Paid),
        (Paying::FailAfter(Paid), Status::Paid),
        (Paying::FailAfter(Declined), Status::Failed),
        (Paying::LoseAfter(Paid), Status::Paid),
        (Paying::LoseAfter(Declined), Status::Failed),
        (Paying::SlowAfter(Paid), Status::Paid),
        (Paying::HappenLate(Paid), Status::Paid),
        (Paying::GarbageAfter(Paid), Status::Paid),
        (Paying::TooMany, Status::Paid),
        (Paying::CallBackFirst(Paid), Status::Paid),
        (Paying::CallBackFirst(Declined), Status::Failed),
    ];
    let house = House::open().await;
    let tricks = Arc::new(Mutex::new(BTreeMap::<Uuid, Paying>::new()));
    let of = Arc::clone(&tricks);
    // At the first request; after that it is honest.
    let pay = move |key, times| match of.lock().unwrap().get(&key) {
        Some(trick) if times == 1 => *trick,
        _ => Paying::Honest(Paid),
    };
    let provider = HostileProvider::start(pay, |_, _| Looking::Honest).await;
    provider.call_back_at(&house.callbacks);
    let mut expected = Vec::new();
    for (trick, status) in table {
        let (user, withdrawal) = (some_user(), WithdrawalId(Uuid::new_v4()));
        tricks.lock().unwrap().insert(withdrawal.0, trick);
        house.api.commands.execute(once(user, earn(POINTS))).await.unwrap();
        house.request(user, withdrawal, POINTS).await;
        expected.push((withdrawal, trick, status));
    }
    let _payer = house.plan(client(&provider), patient()).start();
    house.until("over", is_over).await;
    provider.settled().await;
    for (withdrawal, trick, status) in expected {
        assert_eq!(house.status(withdrawal).await, status, "{trick:?}");
        assert_eq!(provider.has_paid(withdrawal.0), Some(status == Status::Paid), "{trick:?}");
    }
    provider.books_are_in_order();
    house.ledger_agrees().await;
}

/// What cannot be looked up is not paid again, whatever the answer to the first request was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_decided_needs_attention_and_ends_when_the_provider_or_an_operator_says() {
    let house = House::open().await;
    // Honest at first, so that it is asked to pay; then no look-up tells anything.
    let look = |key: Uuid, times| match times {
        1 => Looking::Honest,
        _ => [Looking::Fail, Looking::Lose, Looking::BareNotFound, Looking::Garbage, Looking::TooMany]
            [usize::try_from(key.as_u128() % 5).unwrap()],
    };
    let pay = |key: Uuid, _| {
        if key.as_u128().is_multiple_of(2) { Paying::LoseAfter(End::Paid) } else { Paying::FailBefore }
    };
    let provider = HostileProvider::start(pay, look).await;
    provider.call_back_at(&house.callbacks);
    let mut withdrawals = Vec::new();
    for number in 0..10_u128 {
        let user = some_user();
        let withdrawal = WithdrawalId(Uuid::from_u128((Uuid::new_v4().as_u128() & !0xffff) / 10 * 10 + number));
        house.api.commands.execute(once(user, earn(POINTS))).await.unwrap();
        house.request(user, withdrawal, POINTS).await;
        withdrawals.push((user, withdrawal));
    }
    let payer = house.plan(client(&provider), soon()).start();
    house.until("waiting for a person", |status| status == Status::NeedsAttention).await;
    provider.books_are_in_order();
    for (_, withdrawal) in &withdrawals {
        assert!(provider.times_asked_to_pay(withdrawal.0) <= 1);
    }
    house.ledger_agrees().await;

    // Now look-ups work: who was paid is settled, and nobody else is paid without a person.
    provider.is_honest_from_now();
    house.until("settled, if paid", |status| matches!(status, Status::NeedsAttention | Status::Paid)).await;
    for (user, withdrawal) in withdrawals {
        match provider.has_paid(withdrawal.0) {
            Some(true) => {
                let end = Instant::now() + LONG;
                while house.status(withdrawal).await != Status::Paid {
                    assert!(Instant::now() < end, "{withdrawal}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            _ => {
                let outcome = Outcome::Failed { reason: "it is not in the bank's list".to_owned().try_into().unwrap() };
                let operator = some_user();
                house.step(user, withdrawal, What::Resolve { operator, outcome }).await;
            }
        }
    }
    house.until("over", is_over).await;
    let end = Instant::now() + LONG;
    while house.tasks().await > 0 {
        assert!(Instant::now() < end, "nothing is left to do");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    provider.books_are_in_order();
    house.ledger_agrees().await;
    payer.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_at_random_nobody_is_paid_twice_and_the_log_says_what_the_book_says() {
    let seeds: Vec<u64> = match std::env::var("PAYOUT_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => vec![1, 2, 3, 4],
    };
    for seed in seeds {
        at_random(seed).await;
    }
}

/// Mischief for one withdrawal: after so many requests the provider does what it should.
const MISCHIEF_MAX: u32 = 4;

async fn at_random(seed: u64) {
    let house = House::open().await;
    let rng = |salt: u64| StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(salt));
    let (mut paying, mut looking, mut here) = (rng(1), rng(2), rng(3));
    let pay = move |_, times| {
        let end = if paying.random_bool(0.7) { End::Paid } else { End::Declined };
        if times > MISCHIEF_MAX {
            return Paying::Honest(end);
        }
        match paying.random_range(0..12) {
            0 => Paying::Honest(end),
            1 => Paying::PendingFor(paying.random_range(1..4), end),
            2 | 3 => Paying::FailBefore,
            4 => Paying::FailAfter(end),
            5 | 6 => Paying::LoseAfter(end),
            7 => Paying::SlowAfter(end),
            8 => Paying::HappenLate(end),
            9 => Paying::GarbageAfter(end),
            10 => Paying::CallBackFirst(end),
            _ => Paying::TooMany,
        }
    };
    let look = move |key: Uuid, times| {
        // One in eight can never be looked up.
        if key.as_u128().is_multiple_of(8) && times > 1 {
            return Looking::Fail;
        }
        if times > MISCHIEF_MAX {
            return Looking::Honest;
        }
        match looking.random_range(0..12) {
            0 => Looking::Fail,
            1 => Looking::Lose,
            5 => Looking::Slow,
            2 => Looking::BareNotFound,
            3 => Looking::Garbage,
            4 => Looking::TooMany,
            _ => Looking::Honest,
        }
    };
    let provider = HostileProvider::start(pay, look).await;
    provider.call_back_at(&house.callbacks);
    let mut withdrawals = Vec::new();
    for _ in 0..16 {
        withdrawals.push(house.withdraw().await);
    }
    let patience = Patience { attention_after: Duration::from_secs(5), ..patient() };
    let plan = house.plan(client(&provider), patience);
    // Two nodes at once; now and then one of them dies.
    let mut nodes = [Some(plan.start()), Some(plan.start())];
    for kill in 0..6 {
        tokio::time::sleep(Duration::from_millis(here.random_range(30..400))).await;
        nodes[kill % 2].take().unwrap().kill();
        nodes[kill % 2] = Some(plan.start());
        house.leases_end().await;
        // What the provider says by itself, more than once, and what others say in its name.
        let (_, withdrawal) = withdrawals[here.random_range(0..withdrawals.len())];
        if provider.has_paid(withdrawal.0).is_some() {
            assert_eq!(provider.call_back(withdrawal.0, Signing::Forged).await, StatusCode::UNAUTHORIZED);
            for _ in 0..2 {
                let heard = provider.call_back(withdrawal.0, Signing::Genuine).await;
                assert_eq!(heard, StatusCode::NO_CONTENT, "seed {seed}");
            }
        }
    }
    house.until("over, or waiting for a person", |status| is_over(status) || status == Status::NeedsAttention).await;
    provider.settled().await;
    provider.books_are_in_order();
    house.ledger_agrees().await;
    // Those that wait are decided: by the provider's own word, or by an operator who has seen its book.
    for (user, withdrawal) in &withdrawals {
        if house.status(*withdrawal).await == Status::NeedsAttention {
            if provider.has_paid(withdrawal.0).is_some() {
                let heard = provider.call_back(withdrawal.0, Signing::Genuine).await;
                assert_eq!(heard, StatusCode::NO_CONTENT, "seed {seed}");
            } else {
                let outcome = Outcome::Failed { reason: "never heard of".to_owned().try_into().unwrap() };
                house.step(*user, *withdrawal, What::Resolve { operator: some_user(), outcome }).await;
            }
        }
    }
    house.until("over", is_over).await;
    for (_, withdrawal) in &withdrawals {
        let paid = house.status(*withdrawal).await == Status::Paid;
        assert_eq!(paid, provider.has_paid(withdrawal.0) == Some(true), "seed {seed}: {withdrawal}");
    }
    provider.books_are_in_order();
    house.ledger_agrees().await;
}

/// The request to pay is held, before or after it has had its effect, the node dies there, and another one takes over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_between_asking_and_hearing_has_its_payout_finished_by_another() {
    let holds: [(Option<Looking>, Paying); 3] = [
        (Some(Looking::Hold), Paying::Honest(End::Paid)),
        (None, Paying::HoldBefore(End::Paid)),
        (None, Paying::HoldAfter(End::Paid)),
    ];
    for (first_look, first_pay) in holds {
        let house = House::open().await;
        let look = move |_, times| if times == 1 { first_look.unwrap_or(Looking::Honest) } else { Looking::Honest };
        let pay = move |_, times| if times == 1 { first_pay } else { Paying::Honest(End::Paid) };
        let provider = HostileProvider::start(pay, look).await;
        let (_, withdrawal) = house.withdraw().await;
        let plan = house.plan(client(&provider), patient());
        let payer = plan.start();
        provider.holds().await;
        // Nobody is asked anything before that is recorded.
        assert_eq!(house.status(withdrawal).await, Status::Paying, "{first_pay:?}");
        payer.kill();
        let _other = plan.start();
        house.leases_end().await;
        house.until("paid", |status| status == Status::Paid).await;
        provider.let_go();
        provider.books_are_in_order();
        assert_eq!(provider.has_paid(withdrawal.0), Some(true));
        house.ledger_agrees().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_withdrawal_is_paid_after_its_second_review_and_not_before() {
    let house = House::open().await;
    let provider = HostileProvider::start(|_, _| Paying::Honest(End::Paid), |_, _| Looking::Honest).await;
    let _payer = house.plan(client(&provider), patient()).start();
    let (user, withdrawal) = (some_user(), WithdrawalId(Uuid::new_v4()));
    house.api.commands.execute(once(user, earn(20_000))).await.unwrap();
    house.request(user, withdrawal, 20_000).await;
    house.step(user, withdrawal, What::Approve { reviewer: some_user() }).await;
    // A small one that comes after it is through when its own tasks are done.
    house.withdraw().await;
    house.until("where it should be", |status| matches!(status, Status::Paid | Status::UnderReview)).await;
    assert_eq!(house.status(withdrawal).await, Status::UnderReview);
    assert_eq!(provider.times_asked_to_pay(withdrawal.0), 0);
    house.step(user, withdrawal, What::Approve { reviewer: some_user() }).await;
    house.until("paid", |status| status == Status::Paid).await;
    provider.books_are_in_order();
    house.ledger_agrees().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_that_was_erased_is_not_paid_and_needs_attention() {
    let house = House::open().await;
    let provider = HostileProvider::start(|_, _| Paying::Honest(End::Paid), |_, _| Looking::Honest).await;
    let (user, withdrawal) = house.withdraw().await;
    let shard = i16::try_from(shard_of(user, ShardCount::default()).0).unwrap();
    sqlx::query("SELECT destroy_person_key($1, $2)")
        .bind(user.0)
        .bind(shard)
        .execute(&mut house.store.owner().await)
        .await
        .unwrap();
    let _payer = house.plan(client(&provider), patient()).start();
    house.until("waiting for a person", |status| status == Status::NeedsAttention).await;
    assert_eq!(provider.times_asked_to_pay(withdrawal.0), 0);
    // Every other event has nothing to say here, whatever kinds there will be.
    let needed = |event| {
        if let Event::Withdrawal(withdrawal::Event::AttentionNeeded { reason }) = event { Some(reason) } else { None }
    };
    let reason = house.store.log().await.iter().find_map(|logged| needed(logged.event()));
    assert!(reason.unwrap().as_str().contains("the person's key was destroyed"));
    house.ledger_agrees().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_amount_under_the_key_needs_attention_at_once() {
    let house = House::open().await;
    let provider = HostileProvider::start(|_, _| Paying::WrongAmount(End::Paid), |_, _| Looking::Honest).await;
    house.withdraw().await;
    let payer = house.plan(client(&provider), patient()).start();
    // The next look-up says the right amount, and then it is paid after all.
    house.until("paid", |status| status == Status::Paid).await;
    payer.kill();
    let attention = house.store.log().await.iter().filter(|logged| logged.event_type == "attention_needed").count();
    assert_eq!(attention, 1);
    provider.books_are_in_order();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callbacks_are_believed_when_they_are_signed_fresh_and_of_a_payout() {
    let house = House::open().await;
    let provider = HostileProvider::start(|_, _| Paying::PendingFor(u32::MAX, End::Paid), |_, _| Looking::Honest).await;
    provider.call_back_at(&house.callbacks);
    let (user, withdrawal) = house.withdraw().await;
    let plan = house.plan(client(&provider), patient());
    let payer = plan.start();
    let end = Instant::now() + LONG;
    while provider.times_asked_to_pay(withdrawal.0) == 0 {
        assert!(Instant::now() < end, "it is asked to pay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    payer.kill();
    let payout = provider.payout(withdrawal.0);
    let with = |changes: &[(&str, &str)]| {
        let mut payout = payout.clone();
        for (member, value) in changes {
            payout[*member] = (*value).into();
        }
        payout
    };
    let paid = [("status", "paid"), ("reference", "po_1")];
    for signing in [Signing::Forged, Signing::Stale] {
        assert_eq!(provider.say(&with(&paid), signing).await, StatusCode::UNAUTHORIZED, "{signing:?}");
    }
    // Nobody learns whose callbacks are believed.
    provider.call_back_at(&house.callbacks.replace("acme", "other"));
    for signing in [Signing::Genuine, Signing::Forged] {
        assert_eq!(provider.say(&with(&paid), signing).await, StatusCode::UNAUTHORIZED, "{signing:?}");
    }
    provider.call_back_at(&house.callbacks);
    assert_eq!(house.status(withdrawal).await, Status::Paying, "none of them was believed");

    assert_eq!(provider.say(&with(&[]), Signing::Genuine).await, StatusCode::NO_CONTENT, "pending is no news");
    assert_eq!(provider.say(&json!({ "status": "paid" }), Signing::Genuine).await, StatusCode::BAD_REQUEST);
    assert_eq!(provider.say(&with(&[("status", "paid")]), Signing::Genuine).await, StatusCode::BAD_REQUEST);
    let (nobody, nothing) = (format!("{}/{withdrawal}", some_user()), format!("{user}/{}", Uuid::new_v4()));
    for reference in [nobody.as_str(), nothing.as_str(), "mei", ""] {
        let unknown = with(&[paid[0], paid[1], ("merchant_reference", reference)]);
        assert_eq!(provider.say(&unknown, Signing::Genuine).await, StatusCode::NOT_FOUND, "{reference}");
    }
    for change in [("currency", "usd"), ("id", "other")] {
        let other = with(&[paid[0], paid[1], change]);
        assert_eq!(provider.say(&other, Signing::Genuine).await, StatusCode::CONFLICT, "{change:?}");
    }
    assert_eq!(house.status(withdrawal).await, Status::Paying);

    for _ in 0..3 {
        assert_eq!(provider.say(&with(&paid), Signing::Genuine).await, StatusCode::NO_CONTENT, "a replay is harmless");
    }
    assert_eq!(house.status(withdrawal).await, Status::Paid);
    let contradictions: [&[_]; 2] = [&[("status", "declined")], &[("status", "paid"), ("reference", "po_2")]];
    for contradiction in contradictions {
        assert_eq!(provider.say(&with(contradiction), Signing::Genuine).await, StatusCode::CONFLICT);
    }
    assert_eq!(house.status(withdrawal).await, Status::Paid, "recorded stays recorded");
    house.ledger_agrees().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payment_files_have_one_line_for_each_withdrawal_whoever_writes_them() {
    let house = House::open().await;
    let folder = tempfile::tempdir().unwrap();
    let mut withdrawals = Vec::new();
    for _ in 0..30 {
        withdrawals.push(house.withdraw().await);
    }
    // Two processes with a folder in common, one of which dies.
    let plans = [0, 1].map(|_| house.plan(LocalProvider::open(folder.path()).unwrap(), patient()));
    let nodes = plans.each_ref().map(Plan::start);
    let end = Instant::now() + LONG;
    while house.withdrawals().await.values().filter(|it| it.status() == Some(Status::Paid)).count() < 3 {
        assert!(Instant::now() < end, "some are paid");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let [one, _other] = nodes;
    one.kill();
    house.leases_end().await;
    house.until("paid", |status| status == Status::Paid).await;
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "csv") {
            let text = std::fs::read_to_string(path).unwrap();
            lines.extend(text.lines().skip(1).map(str::to_owned));
        }
    }
    let mut written: Vec<_> = lines.iter().map(|line| line.split_once(',').unwrap().0.to_owned()).collect();
    written.sort();
    let mut expected: Vec<_> = withdrawals.iter().map(|(_, withdrawal)| withdrawal.to_string()).collect();
    expected.sort();
    assert_eq!(written, expected);
    let quoted = r#",495,cny,"#;
    assert!(
        lines.iter().all(|line| line.contains(quoted) && line.ends_with(r#"alipay,"mei@example.com","Mei ""M"" Lin""#)),
        "{lines:?}"
    );
    house.ledger_agrees().await;
}
