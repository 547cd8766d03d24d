//! What earlier runs have left beside the live versions, and what may be done from there.
//!
//! ```text
//! nothing ──make──▶ NAME_next ──switch──▶ NAME_old ──drop──▶ nothing
//!    ▲                 │  ▲                  │
//!    └──────drop───────┘  └───────back───────┘
//! ```
//!
//! A database has at most one of the two, and of several each is switched by itself. So a run that was interrupted anywhere
//! is known by what is there, and can be gone on with in either direction: where NAME_next is, the switch is yet to be
//! done, and where NAME_old is, it was.
//!
//! `rebuild all` makes every NAME_next before it fills any. So when no read model is without one of the two, those that have
//! only NAME_old were switched by the same run and are done; otherwise they were built anew some other time.

use anyhow::{Context, Result, bail, ensure};
use skyriff_follow::Follower;
use skyriff_postgres::databases::OWNER;
use skyriff_projections::Projection;
use sqlx::{ConnectOptions, Connection};

use super::version::{Kind, NAME};
use crate::config::Databases;

/// What there is of one read model.
#[derive(Debug)]
pub struct Stage {
    pub projection: Projection,
    /// Each database, as its server calls it, with the version that is not live.
    places: Vec<(String, Option<Kind>)>,
}

impl Stage {
    fn has(&self, kind: Kind) -> bool {
        self.places.iter().any(|(_, found)| *found == Some(kind))
    }

    /// Built and switched to, and the version before is kept.
    pub fn is_done(&self) -> bool {
        self.has(Kind::Old) && !self.has(Kind::Next)
    }

    fn is_untouched(&self) -> bool {
        !self.has(Kind::Old) && !self.has(Kind::Next)
    }
}

/// Of each of these.
pub async fn look(databases: &Databases, projections: &[Projection]) -> Result<Vec<Stage>> {
    let mut stages: Vec<_> =
        projections.iter().map(|projection| Stage { projection: *projection, places: Vec::new() }).collect();
    for place in &databases.read_models {
        let options = place.primary.as_role(OWNER).application_name(NAME);
        let mut owner = options.connect().await.context("cannot reach the read models as their owner")?;
        let schemas: Vec<String> =
            sqlx::query_scalar("SELECT nspname::text FROM pg_namespace").fetch_all(&mut owner).await?;
        owner.close().await?;
        let database = options.get_database().unwrap_or_default();
        for Stage { projection, places } in &mut stages {
            let found = [Kind::Next, Kind::Old].into_iter().find(|kind| schemas.contains(&kind.schema(*projection)));
            places.push((database.to_owned(), found));
        }
    }
    Ok(stages)
}

/// Whether these may be built, or gone on with.
pub fn may_build(stages: &[Stage]) -> Result<()> {
    let done: Vec<_> = stages.iter().filter(|stage| stage.is_done()).collect();
    let goes_on = stages.iter().any(|stage| stage.has(Kind::Next)) && !stages.iter().any(Stage::is_untouched);
    if done.is_empty() || goes_on {
        return Ok(());
    }
    let schemas: Vec<_> = done.iter().map(|stage| Kind::Old.schema(stage.projection)).collect();
    let name = match done.as_slice() {
        [one] => one.projection.name(),
        several if several.len() == stages.len() => "all",
        _ => "NAME",
    };
    bail!(
        "the database still keeps the version before in {}: once it is not needed any more, `skyriff rebuild {name} \
         --drop` makes room",
        schemas.join(", ")
    )
}

/// Whether there is a way back from all of these.
pub fn may_go_back(stages: &[Stage]) -> Result<()> {
    for Stage { projection, places } in stages {
        if let Some((database, _)) = places.iter().find(|(_, found)| found.is_none()) {
            bail!("no version of {projection} is kept in {database}: there is no way back");
        }
    }
    let names: Vec<_> = stages.iter().map(|stage| stage.projection.name()).collect();
    ensure!(
        stages.iter().any(|stage| stage.has(Kind::Old)),
        "no version of {} is kept that was live before: there is no way back, or it was gone already",
        names.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: Option<Kind> = Some(Kind::Next);
    const OLD: Option<Kind> = Some(Kind::Old);

    /// A read model for each of these, with two databases.
    fn stages(found: &[[Option<Kind>; 2]]) -> Vec<Stage> {
        let of = |(projection, [one, other]): (Projection, &[Option<Kind>; 2])| Stage {
            projection,
            places: vec![("one".to_owned(), *one), ("other".to_owned(), *other)],
        };
        Projection::ALL.into_iter().zip(found).map(of).collect()
    }

    #[test]
    fn what_is_begun_goes_on_and_what_is_kept_is_in_the_way() {
        let may: [(&[[Option<Kind>; 2]], bool); 12] = [
            (&[[None, None]], true),
            // Interrupted while making, building, and between two switches.
            (&[[NEXT, None]], true),
            (&[[NEXT, NEXT]], true),
            (&[[OLD, NEXT]], true),
            // Done; and interrupted while dropping.
            (&[[OLD, OLD]], false),
            (&[[None, OLD]], false),
            (&[[None, None], [None, None]], true),
            (&[[NEXT, NEXT], [None, None]], true),
            // Interrupted between two read models, and between two databases of one.
            (&[[OLD, OLD], [NEXT, NEXT]], true),
            (&[[OLD, OLD], [OLD, NEXT]], true),
            // All of them done; and one that was built anew by itself, some time before.
            (&[[OLD, OLD], [OLD, OLD]], false),
            (&[[OLD, OLD], [NEXT, NEXT], [None, None]], false),
        ];
        for (found, expected) in may {
            assert_eq!(may_build(&stages(found)).is_ok(), expected, "{found:?}");
        }
    }

    #[test]
    fn whoever_is_refused_is_told_what_makes_room() {
        let told = |found: &[[Option<Kind>; 2]]| may_build(&stages(found)).unwrap_err().to_string();
        assert!(told(&[[OLD, OLD]]).contains("balances_old: once"), "{}", told(&[[OLD, OLD]]));
        assert!(told(&[[OLD, OLD]]).contains("rebuild balances --drop"));
        assert!(told(&[[OLD, OLD], [OLD, OLD]]).contains("rebuild all --drop"));
        assert!(told(&[[None, None], [OLD, OLD]]).contains("rebuild ledger_entries --drop"));
    }

    #[test]
    fn there_is_a_way_back_from_what_was_switched() {
        let may: [(&[[Option<Kind>; 2]], bool); 7] = [
            (&[[OLD, OLD]], true),
            // Half of a rebuild, and half of a way back, which are the same.
            (&[[OLD, NEXT]], true),
            (&[[NEXT, OLD]], true),
            (&[[NEXT, NEXT], [OLD, OLD]], true),
            (&[[NEXT, NEXT]], false),
            (&[[OLD, None]], false),
            (&[[OLD, OLD], [None, None]], false),
        ];
        for (found, expected) in may {
            assert_eq!(may_go_back(&stages(found)).is_ok(), expected, "{found:?}");
        }
    }
}
