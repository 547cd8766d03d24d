//! Write the schemas of the events, the AsyncAPI document and the chart of accounts below a folder: `make schemas`. Refuses to change what was
//! published in a way that would break a reader.

use std::{env, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use skyriff_kafka::schema;

fn main() -> Result<ExitCode> {
    let folder = PathBuf::from(env::args_os().nth(1).context("usage: schemas FOLDER")?);
    let mut broken = Vec::new();
    for (name, schema) in schema::files() {
        let path = folder.join(&name);
        if let Ok(before) = fs::read_to_string(&path) {
            let breaks = schema::breaks_in(&name, &serde_json::from_str(&before)?, &schema);
            if !breaks.is_empty() {
                broken.push(format!("{}: {}", path.display(), breaks.join("; ")));
                continue;
            }
        }
        fs::create_dir_all(path.parent().context("no folder")?)?;
        fs::write(&path, schema::text(&schema))?;
    }
    fs::write(folder.join("ledger.md"), skyriff_domain::ledger::chart::document())?;
    for broken in &broken {
        eprintln!("not written, because readers rely on it: {broken}");
    }
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("make a new version of the event, with an upcaster; what was published stays as it is");
    Ok(ExitCode::FAILURE)
}
