//! `verify.py`, run many times in one process: starting Python takes longer than checking.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

/// Reads `[{"call": function, "with": [arguments]}]`, says for each what the function gives, or null for an exception that
/// the program tells its user as a refusal. Any other exception is a fault of the program, and ends this one.
const HARNESS: &str = r#"
import functools, json, sys, verify
def answer(case):
    try:
        return getattr(verify, case["call"])(*case["with"])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return None
def check_all(keys, kept, case, answer):
    keys = verify.read_keys(keys)
    if case == "consistency":
        return verify.check_consistency(answer, kept, keys)
    return {"checkpoint": verify.check_checkpoint, "inclusion": verify.check_inclusion}[case](answer, keys)
verify.check_all = check_all
# Most of many changed answers have the same checkpoint.
verify.check_signature = functools.cache(verify.check_signature)
verify.leaf_hex = lambda event: verify.leaf(event).hex()
verify.keys_are_good = lambda lines: verify.read_keys(lines) is not None
verify.signature_is_good = lambda *hex: verify.check_signature(*map(bytes.fromhex, hex)) is None
print(json.dumps([answer(case) for case in json.load(sys.stdin)]))
"#;

pub(crate) fn call(function: &str, with: Value) -> Value {
    json!({"call": function, "with": with})
}

/// What each call gives; null for what is refused.
pub(crate) fn run(calls: &[Value]) -> Vec<Value> {
    let mut python = Command::new("python3")
        .args(["-B", "-c", HARNESS])
        .env("PYTHONPATH", env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is needed, as for the tests of exports");
    python.stdin.take().unwrap().write_all(json!(calls).to_string().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answers.len(), calls.len());
    answers
}

/// RFC 8032, section 7.1, and what must not pass.
#[test]
fn signatures_are_checked_as_the_rfc_says() {
    let vectors = [
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ];
    let mut calls = Vec::new();
    let mut expected = Vec::new();
    for (key, text, signature) in vectors {
        let mut case = |key: &str, text: &str, signature: &str, good: bool| {
            calls.push(call("signature_is_good", json!([key, text, signature])));
            expected.push(if good { json!(true) } else { Value::Null });
        };
        case(key, text, signature, true);
        case(key, &format!("{text}00"), signature, false);
        case(&key.replace('a', "b"), text, signature, false);
        case(key, text, &signature[2..], false);
        case(key, text, &format!("{signature}00"), false);
        for digit in (0..signature.len()).step_by(7) {
            let other = if &signature[digit..=digit] == "0" { "1" } else { "0" };
            case(key, text, &format!("{}{other}{}", &signature[..digit], &signature[digit + 1..]), false);
        }
    }
    // The same signature of the second text with the order of the group added to its second half: another form of it.
    let (key, text, _) = vectors[1];
    let with_order = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69daf52db7415978abc61b2c2eb6aeebfca0387b2eaeb4302aeeb00d291612bb0c10";
    calls.push(call("signature_is_good", json!([key, text, with_order])));
    expected.push(Value::Null);
    // The neutral point as a key, with a coordinate above the prime and with the sign of a zero: two forms that it does not
    // have. If it had, the base point and 1 would sign for it, whatever the text.
    let by_anybody = format!("58{}01{}", "66".repeat(31), "00".repeat(31));
    for neutral in [format!("ee{}7f", "ff".repeat(30)), format!("01{}80", "00".repeat(30))] {
        calls.push(call("signature_is_good", json!([neutral, text, by_anybody])));
        expected.push(Value::Null);
    }
    // Coordinates that are not below the prime, or are of no point.
    for no_point in ["ff".repeat(32), format!("ed{}7f", "ff".repeat(30)), format!("02{}", "00".repeat(31))] {
        calls.push(call("signature_is_good", json!([no_point, text, vectors[1].2])));
        expected.push(Value::Null);
        calls.push(call("signature_is_good", json!([key, text, format!("{no_point}{}", &vectors[1].2[64..])])));
        expected.push(Value::Null);
    }
    assert_eq!(run(&calls), expected);
}

#[test]
fn keys_are_read_as_they_are_here() {
    let good = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    let cases = [
        (vec![good], true),
        (vec!["# theirs", "", good, "  ", good], true),
        (vec![], true),
        (vec!["x"], false),
        (vec!["example.com/foo+530d903b+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"], false),
        (vec!["example.com/bar+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"], false),
        // Of another algorithm, and too long, each with the id that it would have.
        (vec!["PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"], false),
        (vec!["x+05132769+AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fIA=="], false),
        // Two with one id, found by trying.
        (
            vec![
                "x+6170f12a+AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEPC",
                "x+6170f12a+AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAASh6",
            ],
            false,
        ),
    ];
    let calls: Vec<_> = cases.iter().map(|(lines, _)| call("keys_are_good", json!([lines]))).collect();
    let expected: Vec<_> = cases.iter().map(|(_, good)| if *good { json!(true) } else { Value::Null }).collect();
    assert_eq!(run(&calls), expected);
}
