//! Files beside the sources that say what the formats are, for whoever implements them in another language.

use std::{fs, path::Path};

use serde_json::Value;

fn place(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name)
}

pub(crate) fn read(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(place(name)).unwrap()).unwrap()
}

/// The file says what the code says. If a format was changed knowingly, the file to put there is named.
pub(crate) fn check(name: &str, made: &Value) {
    let text = format!("{made:#}\n");
    if fs::read_to_string(place(name)).is_ok_and(|checked_in| checked_in == text) {
        return;
    }
    let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&new, text).unwrap();
    panic!("{} is not what the code makes; what it makes is in {}", place(name).display(), new.display());
}
