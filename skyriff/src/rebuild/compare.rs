//! The live version and the next one, row by row, as both were at one moment.

use std::time::Duration;

use anyhow::Result;
use skyriff_follow::ReadModel;

use super::version::Version;

/// Rows of one table that are told.
const EXAMPLES_MAX: i32 = 5;

/// Rows of the live version, rows of the other, rows that are not the same in both, and some of those.
type Compared = (i64, i64, i64, serde_json::Value);

/// Print what differs; whether nothing does.
///
/// # Errors
/// As [`Version::same_moment`].
pub async fn compare(version: &mut Version, patience: Duration) -> Result<bool> {
    let mut moment = version.same_moment(patience).await?;
    let (projection, schema, database) = (version.projection(), version.schema(), version.database());
    let mut agree = true;
    for table in projection.tables() {
        let (live, other, differences, examples): Compared =
            sqlx::query_as("SELECT live_rows, other_rows, differences, examples FROM compare_version($1, $2, $3)")
                .bind(*table)
                .bind(&schema)
                .bind(EXAMPLES_MAX)
                .fetch_one(&mut moment)
                .await?;
        if differences == 0 {
            println!("{projection}: {table} in {database} is the same: {live} rows");
            continue;
        }
        agree = false;
        println!(
            "{projection}: {table} in {database} DIFFERS in {differences} rows; live {live} rows, new {other} rows"
        );
        for example in examples.as_array().into_iter().flatten() {
            println!("  live {}\n  new  {}", example["live"], example["other"]);
        }
    }
    Ok(agree)
}
