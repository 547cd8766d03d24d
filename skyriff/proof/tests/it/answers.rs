//! `vectors/answers.json`: answers that hold and answers that do not, judged by this crate and by `verify.py`.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Value, json};
use skyriff_domain::{Position, ShardId};
use skyriff_proof::{
    Checkpoint, EventRow, Frontier, Hash, Head, KnownKeys, Plan, SignedNote, SignerKey, Tile, TopCheckpoint,
    answer::{Consistency, Inclusion, Sealed},
};

use crate::{python, vectors};

const LEDGER: &str = "example.org/ledger";

fn key(name: &str, seed: u8) -> SignerKey {
    SignerKey::from_seed(name.parse().unwrap(), &[seed; 32]).unwrap()
}

/// The key of before and the one of now.
fn keys() -> [SignerKey; 2] {
    [key(LEDGER, 1), key(LEDGER, 2)]
}

fn row(shard: u16, position: i64) -> EventRow<'static> {
    EventRow {
        shard: ShardId(shard),
        position: Position(position),
        aggregate_type: Cow::from("points_account"),
        aggregate_id: Cow::from(format!("00000000-0000-0000-0000-00000000000{}", position % 10)),
        sequence: (position + 9) / 10,
        event_type: Cow::from("checked_in"),
        event_version: Cow::from("1"),
        payload: Cow::from(format!(r#"{{"checked_in": {{"points":{position},"note":"積分"}}}}"#)),
        metadata: Cow::from("{}"),
        occurred_at_us: 1_763_754_000_000_000 + position,
        recorded_at_us: 1_763_754_000_001_000 + position,
    }
}

/// A shard's log and the tiles of its tree, as they are kept at its size.
struct Log {
    rows: Vec<EventRow<'static>>,
    frontier: Frontier,
    tiles: BTreeMap<Tile, Vec<Hash>>,
}

impl Log {
    fn of(rows: Vec<EventRow<'static>>) -> Self {
        let mut frontier = Frontier::empty();
        let mut tiles: BTreeMap<_, _> = rows.iter().flat_map(|row| frontier.append(row.leaf().unwrap())).collect();
        tiles.extend(BTreeMap::from(&frontier));
        Self { rows, frontier, tiles }
    }

    fn new(shard: u16, size: i64) -> Self {
        Self::of((1..=size).map(|position| row(shard, position)).collect())
    }
}

/// Three shards at one time.
struct Ledger(Vec<Log>);

impl Ledger {
    fn new(sizes: [i64; 3]) -> Self {
        Self((0..).zip(sizes).map(|(shard, size)| Log::new(shard, size)).collect())
    }

    fn top(&self, sealed_at_us: i64, keys: &[&SignerKey]) -> SignedNote {
        let heads = self.0.iter().map(|log| log.frontier.head()).collect();
        let top = TopCheckpoint::new(LEDGER.parse().unwrap(), sealed_at_us, heads).unwrap();
        SignedNote::sign(top.to_string(), keys).unwrap()
    }

    fn of_shard(&self, shard: usize, keys: &[&SignerKey]) -> SignedNote {
        let id = ShardId(u16::try_from(shard).unwrap());
        let checkpoint = Checkpoint::of_shard(&LEDGER.parse().unwrap(), id, self.0[shard].frontier.head());
        SignedNote::sign(checkpoint.to_string(), keys).unwrap()
    }

    fn inclusion(&self, checkpoint: &SignedNote, shard: usize, position: usize) -> Inclusion {
        let Log { rows, frontier, tiles } = &self.0[shard];
        let event = rows[position - 1].clone();
        let hashes = Plan::inclusion(event.index().unwrap(), frontier.size()).unwrap().hashes(tiles).unwrap();
        Inclusion { checkpoint: checkpoint.clone(), event, hashes }
    }

    fn consistency(&self, checkpoint: &SignedNote, old: &Self) -> Consistency {
        let proof = |(log, old): (&Log, &Log)| {
            let plan = Plan::consistency(old.frontier.size(), log.frontier.size()).unwrap();
            plan.hashes(&log.tiles).unwrap()
        };
        let proofs = (0..).map(ShardId).zip(self.0.iter().zip(&old.0).map(proof)).collect();
        Consistency { checkpoint: checkpoint.clone(), proofs }
    }
}

/// An answer and whether it shows what it is asked for. For people it has a name.
fn case(name: &str, holds: bool, what: &str, answer: impl serde::Serialize, kept: Option<&SignedNote>) -> Value {
    let mut case = json!({"name": name, "holds": holds, "what": what, "answer": answer});
    if let Some(kept) = kept {
        case["kept"] = json!(Sealed { checkpoint: kept.clone() });
    }
    case
}

fn cases() -> Vec<Value> {
    let [old_key, new_key] = keys();
    cases_signed_by(&[&old_key, &new_key])
}

/// The later top checkpoint signed by these.
fn cases_signed_by(keys_of_now: &[&SignerKey]) -> Vec<Value> {
    let [old_key, new_key] = keys();
    let strange_key = key(LEDGER, 3);
    let others_key = key("example.org/other", 4);
    let (before, now) = (Ledger::new([5, 0, 256]), Ledger::new([300, 2, 256]));
    let kept = before.top(1_763_754_000_500_000, &[&old_key]);
    let top = now.top(1_763_754_001_500_000, keys_of_now);
    let shard_0 = now.of_shard(0, &[&new_key]);
    let mut of_shard_0 = now.consistency(&top, &before);
    of_shard_0.proofs.retain(|shard, _| *shard == ShardId(0));
    let seal = |checkpoint: &SignedNote| Sealed { checkpoint: checkpoint.clone() };

    let mut cases = vec![
        case("the top, signed by the key of before", true, "checkpoint", seal(&kept), None),
        case("the top, signed by both keys", true, "checkpoint", seal(&top), None),
        case("one shard, signed by the key of now", true, "checkpoint", seal(&shard_0), None),
        case("the first event", true, "inclusion", now.inclusion(&top, 0, 1), None),
        case("an event in the first tile", true, "inclusion", now.inclusion(&top, 0, 5), None),
        case("an event in the second tile", true, "inclusion", now.inclusion(&top, 0, 290), None),
        case("the last event", true, "inclusion", now.inclusion(&top, 0, 300), None),
        case("an event of a full tile", true, "inclusion", now.inclusion(&top, 2, 100), None),
        case("an event in the checkpoint of before", true, "inclusion", before.inclusion(&kept, 0, 3), None),
        case("an event in the checkpoint of its shard", true, "inclusion", now.inclusion(&shard_0, 0, 7), None),
        case("all shards go on", true, "consistency", now.consistency(&top, &before), Some(&kept)),
        case("nothing new", true, "consistency", now.consistency(&top, &now), Some(&top)),
        case("the top goes on from a shard", true, "consistency", of_shard_0, Some(&before.of_shard(0, &[&old_key]))),
    ];

    let mut refuse = |name: &str, what: &str, answer: Value, kept: Option<&SignedNote>| {
        cases.push(case(name, false, what, answer, kept));
    };
    refuse("signed by a key that nobody knows", "checkpoint", json!(seal(&now.top(0, &[&strange_key]))), None);
    refuse("signed by the key of another ledger", "checkpoint", json!(seal(&now.top(0, &[&others_key]))), None);
    let of_another = now.of_shard(0, &[&others_key]);
    refuse("a shard, signed by the key of another ledger", "checkpoint", json!(seal(&of_another)), None);
    let no_checkpoint = SignedNote::sign("a text\nof three\nlines\n".to_owned(), &[&new_key]).unwrap();
    refuse("signed, and no checkpoint", "checkpoint", json!(seal(&no_checkpoint)), None);

    // Signed by the right key, and written in another way than these texts are written.
    let (top_text, shard_text) = (text_of(&top), text_of(&shard_0));
    for (name, text) in [
        ("with a shard less than it says", top_text.replace("shards 3", "shards 4")),
        ("with a shard twice", top_text.replace("\n1 2 ", "\n0 2 ")),
        ("with a zero before a number", top_text.replace("\n1 2 ", "\n1 02 ")),
        ("with an empty line", format!("{top_text}\n")),
        ("with one more word", top_text.replace("sealed", "sealed at")),
        ("without a time", top_text.replace("sealed 1763754001500000\n", "")),
        ("a shard with a zero before its size", shard_text.replace("\n300", "\n0300")),
        ("a shard with a sign before its size", shard_text.replace("\n300", "\n+300")),
        ("a shard with a size below nothing", shard_text.replace("\n300", "\n-300")),
        ("a shard with a zero before its number", shard_text.replace("ledger/0", "ledger/00")),
        ("a shard without a number", shard_text.replace("ledger/0", "ledger/")),
        ("a shard with a line more", format!("{shard_text}more\n")),
    ] {
        let note = SignedNote::sign(text, &[&new_key]).unwrap();
        refuse(&format!("signed, {name}"), "checkpoint", json!(seal(&note)), None);
    }

    let (good, other) = (now.inclusion(&top, 0, 5), now.inclusion(&top, 0, 6));
    let edited = EventRow { payload: Cow::from(good.event.payload.replace('5', "6")), ..good.event.clone() };
    refuse("an event that was edited", "inclusion", json!(Inclusion { event: edited, ..good.clone() }), None);
    let respaced = EventRow { payload: Cow::from(good.event.payload.replace(": ", ":")), ..good.event.clone() };
    refuse("the same JSON in another text", "inclusion", json!(Inclusion { event: respaced, ..good.clone() }), None);
    refuse("the proof of another event", "inclusion", json!(Inclusion { hashes: other.hashes, ..good.clone() }), None);
    let moved = EventRow { position: Position(6), ..good.event.clone() };
    refuse("an event at another place", "inclusion", json!(Inclusion { event: moved, ..good.clone() }), None);
    let too_new = Inclusion { checkpoint: kept.clone(), ..now.inclusion(&top, 0, 300) };
    refuse("an event after the checkpoint", "inclusion", json!(too_new), None);
    let of_shard_0 = Inclusion { checkpoint: shard_0.clone(), ..now.inclusion(&top, 1, 2) };
    refuse("an event of a shard that is not in the checkpoint", "inclusion", json!(of_shard_0), None);
    let nowhere = EventRow { position: Position(0), ..good.event.clone() };
    refuse("an event before the first", "inclusion", json!(Inclusion { event: nowhere, ..good.clone() }), None);
    let mut other_base64 = json!(good);
    let hash = other_base64["hashes"][0].as_str().unwrap().to_owned();
    other_base64["hashes"][0] = json!(with_other_last_bits(&hash));
    refuse("a hash in another base64", "inclusion", other_base64, None);
    // What only who has the keys can try: an event beyond the end in the place of the last, and a leaf as a root.
    let mut odd = Ledger::new([256, 2, 256]);
    let mut rows = odd.0[0].rows.clone();
    rows[255].position = Position(512);
    odd.0[0] = Log::of(rows);
    let beyond = Inclusion {
        event: odd.0[0].rows[255].clone(),
        hashes: Plan::inclusion(255, 256).unwrap().hashes(&odd.0[0].tiles).unwrap(),
        checkpoint: odd.of_shard(0, &[&new_key]),
    };
    refuse("an event at the end that says it is beyond", "inclusion", json!(beyond), None);
    let leaf = now.0[0].rows[0].leaf().unwrap();
    let as_root = signed_head(0, Head { size: 2, root: leaf }, &new_key);
    let as_root = Inclusion { checkpoint: as_root, event: now.0[0].rows[0].clone(), hashes: Vec::new() };
    refuse("a leaf as the root of two", "inclusion", json!(as_root), None);

    // Somebody with the keys edits the past and signs it anew: who has kept a checkpoint sees it.
    let mut rows = now.0[0].rows.clone();
    rows[2].payload = Cow::from("{}");
    let mut forged = Ledger::new([300, 2, 256]);
    forged.0[0] = Log::of(rows);
    let resigned = forged.top(1_763_754_001_500_000, &[&new_key]);
    let inclusion = forged.inclusion(&resigned, 0, 3);
    refuse("the past was edited", "consistency", json!(forged.consistency(&resigned, &before)), Some(&kept));
    let alike = before.consistency(&before.top(0, &[&new_key]), &before);
    let mut rows = before.0[0].rows.clone();
    rows[4].payload = Cow::from("{}");
    let mut edited_before = Ledger::new([5, 0, 256]);
    edited_before.0[0] = Log::of(rows);
    let other_past = edited_before.top(0, &[&new_key]);
    refuse("the past was edited and is as long", "consistency", json!(alike), Some(&other_past));
    let not_empty = signed_head(1, Head { size: 0, root: Hash([7; 32]) }, &old_key);
    refuse("nothing that is something", "consistency", json!(now.consistency(&top, &before)), Some(&not_empty));
    let mut rows = now.0[0].rows.clone();
    rows[299].payload = Cow::from("{}");
    let mut other_end = Ledger::new([300, 2, 256]);
    other_end.0[0] = Log::of(rows);
    let other_end = other_end.top(1_763_754_001_500_000, &[&new_key]);
    let answer = json!(Consistency { checkpoint: other_end, ..now.consistency(&top, &before) });
    refuse("the proof of what goes on otherwise", "consistency", answer, Some(&kept));
    let shrunk = Ledger::new([4, 2, 256]);
    let resigned = shrunk.top(1_763_754_001_500_000, &[&new_key]);
    let proofs = now.consistency(&top, &before).proofs;
    let answer = json!(Consistency { checkpoint: resigned, proofs });
    refuse("events are gone", "consistency", answer, Some(&kept));
    let one_shard = Consistency { checkpoint: shard_0, ..now.consistency(&top, &before) };
    refuse("shards are gone", "consistency", json!(one_shard), Some(&kept));
    // By itself an edited event is as good as any: inclusion without consistency proves the word of whoever signs.
    cases.push(case("an edited past, alone", true, "inclusion", inclusion, None));
    cases
}

/// The text of a note, whoever signed it.
fn text_of(note: &SignedNote) -> String {
    let note = note.to_string();
    note[..=note.rfind("\n\n").unwrap()].to_owned()
}

fn signed_head(shard: u16, head: Head, key: &SignerKey) -> SignedNote {
    let checkpoint = Checkpoint::of_shard(&LEDGER.parse().unwrap(), ShardId(shard), head);
    SignedNote::sign(checkpoint.to_string(), &[key]).unwrap()
}

/// The same 32 bytes, for who does not look at the two bits that are left over.
fn with_other_last_bits(base64: &str) -> String {
    let (start, last) = base64.strip_suffix('=').unwrap().split_at(42);
    let next = char::from(last.as_bytes()[0] + 1);
    format!("{start}{next}=")
}

/// Public keys, as an auditor has them in a file.
fn known() -> Vec<String> {
    let [old, new] = keys();
    vec![
        "# one of another ledger".into(),
        key("example.org/other", 4).verifier().to_string(),
        old.verifier().to_string(),
        new.verifier().to_string(),
    ]
}

/// What this crate says of an answer.
fn holds(case: &Value, known: &KnownKeys) -> bool {
    let answer = || case["answer"].clone();
    match case["what"].as_str().unwrap() {
        "checkpoint" => serde_json::from_value(answer()).is_ok_and(|sealed: Sealed| sealed.check(known).is_ok()),
        "inclusion" => {
            serde_json::from_value(answer()).is_ok_and(|inclusion: Inclusion| inclusion.check(known).is_ok())
        }
        "consistency" => {
            let kept = serde_json::from_value(case["kept"].clone());
            let answer: Result<Consistency, _> = serde_json::from_value(answer());
            answer.is_ok_and(|answer| kept.is_ok_and(|kept: Sealed| answer.check(&kept.checkpoint, known).is_ok()))
        }
        other => panic!("{other}"),
    }
}

/// What Python says of answers.
fn hold_for_python(cases: &[Value]) -> Vec<bool> {
    let call = |case: &Value| python::call("check_all", json!([known(), case["kept"], case["what"], case["answer"]]));
    let calls: Vec<_> = cases.iter().map(call).collect();
    python::run(&calls).iter().map(|said| !said.is_null()).collect()
}

#[test]
fn both_verifiers_say_of_each_answer_what_the_vectors_say() {
    let cases = cases();
    vectors::check("answers.json", &json!({"keys": known(), "cases": cases}));
    let keys: KnownKeys = known().join("\n").parse().unwrap();
    for (case, by_python) in cases.iter().zip(hold_for_python(&cases)) {
        assert_eq!((holds(case, &keys), by_python), (case["holds"] == true, case["holds"] == true), "{}", case["name"]);
    }
}

/// Everything that a JSON value becomes with one small change.
fn changes(value: &Value) -> Vec<Value> {
    match value {
        Value::String(text) => {
            let mut changes = vec![json!(format!("{text} ")), json!(format!("{text}\n")), json!(""), Value::Null];
            let chars: Vec<char> = text.chars().collect();
            for at in (0..chars.len()).step_by(1 + chars.len() / 5) {
                let mut changed = chars.clone();
                changed[at] = if changed[at] == 'A' { 'B' } else { 'A' };
                changes.push(json!(String::from_iter(changed)));
                let mut shorter = chars.clone();
                shorter.remove(at);
                // Without one of two equal neighbours it is as it is without the other.
                changes.push(json!(String::from_iter(shorter)));
            }
            changes
        }
        Value::Number(number) => {
            let number = number.as_i64().unwrap();
            vec![json!(number + 1), json!(number - 1), json!(-number - 1), Value::Null]
        }
        Value::Array(items) => {
            let mut changes = vec![json!([items.as_slice(), &[json!(Hash::of_nothing())]].concat()), Value::Null];
            for (at, item) in items.iter().enumerate() {
                let with = |at: usize, new: &[Value]| json!([&items[..at], new, &items[at + 1..]].concat());
                changes.push(with(at, &[]));
                changes.push(with(at, &[item.clone(), item.clone()]));
                if at > 0 {
                    let mut swapped = items.clone();
                    swapped.swap(at - 1, at);
                    changes.push(json!(swapped));
                }
                if at % 3 == 0 {
                    changes.extend(self::changes(item).iter().map(|item| with(at, std::slice::from_ref(item))));
                }
            }
            changes
        }
        Value::Object(members) => {
            let mut changes = Vec::new();
            for (name, member) in members {
                let mut without = members.clone();
                without.remove(name);
                changes.push(json!(without));
                for changed in self::changes(member) {
                    let mut members = members.clone();
                    members[name] = changed;
                    changes.push(json!(members));
                }
            }
            changes
        }
        Value::Null | Value::Bool(_) => panic!("no answer has such a value"),
    }
}

#[test]
fn no_answer_holds_with_anything_changed() {
    let keys: KnownKeys = known().join("\n").parse().unwrap();
    let mut changed = Vec::new();
    // One signature each: without the second, or with that of somebody unknown, a note is as good as before.
    let [_, new_key] = self::keys();
    for case in cases_signed_by(&[&new_key]).iter().filter(|case| case["holds"] == true) {
        for member in ["answer", "kept"] {
            let mut changes = case.get(member).map(changes).unwrap_or_default();
            changes.retain(|change| *change != case[member]);
            for change in changes {
                let mut case = case.clone();
                case[member] = change;
                changed.push(case);
            }
        }
    }
    assert!(changed.len() > 1_000, "{}", changed.len());
    for (case, by_python) in changed.iter().zip(hold_for_python(&changed)) {
        assert_eq!((holds(case, &keys), by_python), (false, false), "{case:#}");
    }
}

/// The program as auditors run it.
#[test]
fn the_program_says_what_holds_and_how_it_ends() {
    use std::{fs, path::Path, process::Command};
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("verify");
    fs::create_dir_all(&folder).unwrap();
    let put = |name: &str, text: String| {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        file
    };
    let keys = put("keys", known().join("\n"));
    let cases = cases();
    let run = |name: &str| {
        let case = cases.iter().find(|case| case["name"] == name).unwrap();
        let mut program = Command::new("python3");
        program.args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/verify.py")]).arg(&keys);
        program.arg(case["what"].as_str().unwrap()).arg(put("answer.json", case["answer"].to_string()));
        if let Some(kept) = case.get("kept") {
            program.arg(put("kept.json", kept.to_string()));
        }
        let output = program.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap().trim_end().to_owned())
    };
    for (name, code, said) in [
        ("the top, signed by both keys", 0, "sealed: 0:300 1:2 2:256"),
        ("an event in the second tile", 0, "event 0:290 is one of the 300 that are sealed"),
        ("all shards go on", 0, "what was kept is the beginning of what there is: 0:300 1:2 2:256"),
        ("an event that was edited", 1, "DOES NOT HOLD: ValueError('the event is not what was sealed at its place')"),
        ("the past was edited", 1, "DOES NOT HOLD: ValueError('shard 0 has another past')"),
        ("signed by a key that nobody knows", 1, "DOES NOT HOLD: ValueError('no known key has signed the note')"),
    ] {
        assert_eq!(run(name), (Some(code), said.to_owned()), "{name}");
    }
    let help =
        Command::new("python3").args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/verify.py")]).output().unwrap();
    assert_eq!(help.status.code(), Some(1));
    assert!(String::from_utf8(help.stderr).unwrap().contains("verify.py KEYS inclusion ANSWER"));
}
