//! One command a request: ours, the stock path, and what each layer below could do.

use std::time::Duration;

use anyhow::Result;
use skyriff_postgres::Server;

use crate::{
    EVENTS, append,
    report::{Figure, Report},
    servers::{self, Served, Target},
    wrk::{self, Accounts, Load},
};

pub async fn run(server: &Server, each: Duration, report: &mut Report) -> Result<()> {
    servers::prepare(server).await?;
    for target in [Target::Skyriff, Target::Stock, Target::Constant] {
        let served = Served::start(target, server, EVENTS, &[]).await?;
        for (accounts, connections) in target.loads() {
            eprintln!("· {}: {connections} connections, {accounts} accounts", target.title());
            let hopeless = target == Target::Stock && accounts == 1 && connections > 1;
            // Answers take so long there that a short run sees hardly any.
            let time = if hopeless { each * 3 } else { each };
            let load = Load::one(&served, connections, Accounts::first(accounts));
            let figure = match wrk::measure(&load, time).await {
                Ok(seen) => Figure::of(target.title(), accounts, connections, &seen),
                Err(error) if hopeless => {
                    eprintln!("· {error:#}");
                    let (title, note) = (target.title().to_owned(), "answered with errors".to_owned());
                    Figure { title, accounts, connections, note, ..Figure::default() }
                }
                Err(error) => return Err(error),
            };
            report.add(figure);
        }
        served.stop().await?;
    }
    for (executors, batch) in [(1, 1), (2, 128), (2, 512)] {
        eprintln!("· the append function alone: {executors} × {batch}");
        report.add(append::run(server, EVENTS, "the append function alone", executors, batch, each).await?);
    }
    for clients in [1, 32] {
        eprintln!("· pgbench: {clients} clients");
        report.add(servers::pgbench(server, clients, each).await?);
    }
    Ok(())
}
