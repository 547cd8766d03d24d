#!/usr/bin/env python3
"""Check what the ledger's API answers, with nothing but this file and the standard library of Python 3.8 or later.

    verify.py KEYS checkpoint ANSWER         the checkpoint is signed by one of the keys
    verify.py KEYS inclusion ANSWER …        the event, every column of it, is in the log that the checkpoint seals
    verify.py KEYS consistency ANSWER KEPT   the log still begins with all that was in the checkpoint that you kept

KEYS has the ledger's public keys, old ones too, one a line: NAME+ID+BASE64. ANSWER and KEPT are files with JSON as the API
gives it; skyriff/proof/src/answer.rs describes the members. KEPT is any answer of before: what counts is its checkpoint,
and that nobody else has had it in hands since. Prints what holds and ends with 0; anything else means that it does not.

What is checked, and where it is specified: leaves (skyriff/proof/src/leaf.rs), trees and proofs (RFC 9162, section 2.1), signed
notes and checkpoints (c2sp.org/signed-note, c2sp.org/tlog-checkpoint), top checkpoints (skyriff/proof/src/top.rs), Ed25519
(RFC 8032, section 5.1). Ed25519 is written out, so that an auditor has no package to install or to trust. It would be too
slow and too talkative for signing; for checking there are no secrets.
"""
import base64, hashlib, json, sys


def check(holds, why):
    if not holds:
        raise ValueError(why)


def unbase64(text):
    data = base64.b64decode(text, validate=True)
    check(base64.b64encode(data).decode() == text, "base64 has one form")
    return data


# Ed25519 (RFC 8032, section 5.1), in extended coordinates X : Y : Z : T.
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]), (p[1] + p[0]) * (q[1] + q[0])
    c, d = 2 * p[3] * q[3] * D, 2 * p[2] * q[2]
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(number, p):
    product = (0, 1, 1, 0)
    while number:
        product, p, number = add(product, p) if number & 1 else product, add(p, p), number >> 1
    return product


def point(data):
    y, odd = int.from_bytes(data, "little") % 2**255, data[31] >> 7
    xx = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if x * x % P != xx:
        x = x * pow(2, (P - 1) // 4, P) % P
    check(len(data) == 32 and y < P and x * x % P == xx and (x or not odd), "not a point of the curve")
    x = P - x if x & 1 != odd else x
    return x, y, 1, x * y % P


BASE = point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def check_signature(key, text, signature):
    s = int.from_bytes(signature[32:], "little")
    check(len(signature) == 64 and s < L, "a signature is malformed")
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + text).digest(), "little") % L
    p, q = times(s, BASE), add(point(signature[:32]), times(h, point(key)))
    same = (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0
    check(same, "a signature is not of this text")


def read_keys(lines):
    """The public keys, by name and id."""
    keys = {}
    for line in filter(lambda line: line and not line.startswith("#"), map(str.strip, lines)):
        name, key_id, data = line.split("+", 2)
        data = unbase64(data)
        check(len(data) == 33 and data[0] == 1, f"the key {key_id} is not one of Ed25519")
        check(hashlib.sha256(name.encode() + b"\n" + data).hexdigest()[:8] == key_id, f"{key_id} is not the key's id")
        check(keys.setdefault((name, key_id), data[1:]) == data[1:], f"there are two keys {key_id}")
    return keys


def open_note(note, keys):
    """The text of a signed note, and the names of the known keys that signed it."""
    end = note.rindex("\n\n") + 1
    text, lines, names = note[:end], note[end + 1:].split("\n"), set()
    check(lines.pop() == "" and not any(c < " " and c != "\n" for c in note), "not a note")
    for line in lines:
        dash, name, signature = line.split(" ")
        check(dash == "—", "not a note")
        signature = unbase64(signature)
        key = keys.get((name, signature[:4].hex()))
        if key:
            check_signature(key, text.encode(), signature[4:])
            names.add(name)
    check(names, "no known key has signed the note")
    return text, names


def heads(note, keys):
    """Size and root of each shard that a checkpoint, or the top checkpoint, is about."""
    text, names = open_note(note, keys)
    lines = text.split("\n")
    if lines[1].startswith("shards "):
        name, found = lines[0], [(int(size), unbase64(root)) for _, size, root in map(str.split, lines[3:-1])]
        again = "".join(f"{shard} {size} {base64.b64encode(root).decode()}\n" for shard, (size, root) in enumerate(found))
        again = f"{name}\nshards {len(found)}\nsealed {int(lines[2].split(' ')[1])}\n{again}"
        found = dict(enumerate(found))
    else:
        (name, shard), size, root = lines[0].rsplit("/", 1), int(lines[1]), unbase64(lines[2])
        again = f"{name}/{int(shard)}\n{size}\n{base64.b64encode(root).decode()}\n"
        found = {int(shard): (size, root)}
    check(again == text and name in names, "not a checkpoint of the ledger whose key signed it")
    check(all(size >= 0 and len(root) == 32 for size, root in found.values()), "not a checkpoint")
    return found


def leaf(event):
    """The hash of an event: see skyriff/proof/src/leaf.rs for each byte."""
    number = lambda column: event[column].to_bytes(8, "big", signed=True)
    text = lambda column: event[column].encode()
    fields = [event["shard"].to_bytes(2, "big"), number("position"), text("aggregate_type"), text("aggregate_id"),
              number("sequence"), text("event_type"), text("event_version"), text("payload"), text("metadata"),
              number("occurred_at_us"), number("recorded_at_us")]
    entry = b"\x01" + b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return hashlib.sha256(b"\x00" + entry).digest()


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def climb(at, last, hash, proof):
    """Walk up a tree from one of its nodes: the root, and that of the tree that ended there (RFC 9162, 2.1.3.2, 2.1.4.2)."""
    old = new = hash
    for other in proof:
        check(last > 0 and len(other) == 32, "the proof does not have as many hashes as it must have")
        if at & 1 or at == last:
            old, new = node(other, old), node(other, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node(new, other)
        at, last = at >> 1, last >> 1
    check(last == 0, "the proof does not have as many hashes as it must have")
    return old, new


def check_inclusion(answer, keys):
    event = answer["event"]
    size, root = heads(answer["checkpoint"], keys)[event["shard"]]
    index = event["position"] - 1
    check(0 <= index < size, "the checkpoint does not reach the event")
    proved = climb(index, size - 1, leaf(event), map(unbase64, answer["hashes"]))[1]
    check(proved == root, "the event is not what was sealed at its place")
    return f"event {event['shard']}:{event['position']} is one of the {size} that are sealed"


def check_consistency(answer, kept, keys):
    news = heads(answer["checkpoint"], keys)
    for shard, (old_size, old_root) in heads(kept["checkpoint"], keys).items():
        size, root = news[shard]
        proof = list(map(unbase64, answer["proofs"][str(shard)]))
        check(old_size <= size, f"shard {shard} has fewer events than before")
        if old_size in (0, size):
            known = (size, root) if old_size else (0, hashlib.sha256().digest())
            check(not proof and (old_size, old_root) == known, f"shard {shard} has another past")
            continue
        # A complete old tree is a part of the new one, and known.
        first = old_root if old_size & (old_size - 1) == 0 else proof.pop(0)
        at, last = old_size - 1, size - 1
        while at & 1:
            at, last = at >> 1, last >> 1
        check(climb(at, last, first, proof) == (old_root, root), f"shard {shard} has another past")
    return "what was kept is the beginning of what there is: " + " ".join(f"{shard}:{news[shard][0]}" for shard in news)


def check_checkpoint(answer, keys):
    return "sealed: " + " ".join(f"{shard}:{size}" for shard, (size, _) in heads(answer["checkpoint"], keys).items())


def main(keys, what, *files):
    with open(keys, encoding="utf-8") as lines:
        keys = read_keys(lines)
    answers = []
    for file in files:
        with open(file, encoding="utf-8") as text:
            answers.append(json.load(text))
        if "checkpoint" not in answers[-1]:
            sys.exit(f"{file} is no proof, so nothing was checked: {str(answers[-1])[:300]}")
    if what == "inclusion":
        return "\n".join(check_inclusion(answer, keys) for answer in answers)
    return {"checkpoint": check_checkpoint, "consistency": check_consistency}[what](*answers, keys)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        print(main(*sys.argv[1:]))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        sys.exit(f"DOES NOT HOLD: {error!r}")
