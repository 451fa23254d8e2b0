"""Records of the journal: what is encoded is decoded, and reads the same to any reader of JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import decode, encode, record_name, record_number
from resumable_tasks.items import keys
from resumable_tasks.runners.outcome import Failure, Shard
from tests.proof.properties import strategies

texts = st.one_of(st.text(), strategies.one_of_these(strategies.NASTY))
names = st.from_regex(
    r"e\d{1,5}-[0-9a-z-]{1,20}", fullmatch=True, alphabet=st.characters(codec="ascii")
)
shards = st.builds(
    Shard,
    path=names.map("shards/{}.parquet".format),
    rows=st.integers(0, 2**40),
    bytes=st.integers(0, 2**60),
    checksum=st.text("0123456789abcdef", min_size=32, max_size=32),
    keys=st.integers(0, 2**40),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
batches = st.sampled_from(["b1", "b2", ""])
failures = st.builds(
    Failure,
    key=strategies.keys,
    error=texts,
    message=texts,
    attempts=st.integers(1, 10**6),
    batch=batches,
    time=texts,
    traceback=texts,
)
lines = st.lists(strategies.keys, unique=True, max_size=6).map(
    lambda many: keys.join(map(keys.canonical, many))
)
prints = st.just("") | st.text("0123456789abcdef", min_size=16, max_size=16)


@st.composite
def with_prints(draw, commits) -> Commit:
    """The commit with fingerprints for all of its keys, for some, or for none."""
    commit = draw(commits)

    def of(many: bytes) -> bytes:
        each = [draw(prints) for _ in keys.split(many)]
        return "\n".join(each).encode() if any(each) else b""

    return replace(commit, fingerprints=of(commit.keys), adopted_fingerprints=of(commit.adopted))


commits = st.builds(
    Commit,
    kind=st.sampled_from(["claim", "commit", "close", "repair", "lost"]),
    epoch=st.integers(0, 10**9),
    run=texts,
    number=st.integers(0, 10**20 - 1),
    time=texts,
    nonce=texts,
    previous=texts,
    keys=lines,
    shards=st.lists(shards, max_size=3).map(tuple),
    schema=st.one_of(st.none(), st.text(min_size=1)),
    failures=st.lists(failures, max_size=4).map(tuple),
    retracted=lines,
    adopted=lines,
    info=st.dictionaries(texts, json_values, max_size=3),
).map(lambda commit: replace(commit, key_count=len(list(keys.split(commit.keys)))))


@given(with_prints(commits))
def test_a_record_is_decoded_as_it_was_encoded(commit: Commit) -> None:
    data, checksum = encode(commit)
    assert decode(data, record_name(commit.number)) == replace(commit, checksum=checksum)


@given(with_prints(commits))
def test_a_record_reads_the_same_to_whoever_reads_json_line_by_line(commit: Commit) -> None:
    data, checksum = encode(commit)
    *body, last, nothing = data.split(b"\n")
    assert nothing == b""
    head, *entries = map(json.loads, body)
    assert (head["kind"], head["number"], head["epoch"]) == (
        commit.kind,
        commit.number,
        commit.epoch,
    )
    found: dict[str, list] = {"key": [], "failed": [], "retracted": [], "adopted": []}
    for entry in entries:
        kind = next(iter(entry))
        key = entry[kind]
        found[kind].append(tuple(key) if isinstance(key, list) else key)
    assert found == {
        "key": keys.parse_lines(commit.keys),
        "failed": [failure.key for failure in commit.failures],
        "retracted": keys.parse_lines(commit.retracted),
        "adopted": keys.parse_lines(commit.adopted),
    }
    prints = [entry.get("fingerprint", "").encode() for entry in entries]
    of_keys, of_adopted = prints[: commit.key_count], prints[len(prints) - len(found["adopted"]) :]
    assert b"\n".join(of_keys).strip() == commit.fingerprints.strip()
    assert b"\n".join(of_adopted).strip() == commit.adopted_fingerprints.strip()
    assert json.loads(last) == {
        "end": commit.number,
        "keys": commit.key_count,
        "failures": len(commit.failures),
        "retracted": len(found["retracted"]),
        **({"adopted": len(found["adopted"])} if found["adopted"] else {}),
        "checksum": checksum,
    }


@given(st.integers(0, 10**20 - 1), st.integers(0, 10**20 - 1))
def test_names_of_records_sort_as_their_numbers(one: int, other: int) -> None:
    assert record_number(record_name(one)) == one
    assert (record_name(one) < record_name(other)) == (one < other)


@given(st.one_of(texts, st.from_regex(r"journal/.*", fullmatch=True)))
def test_no_other_name_is_a_record(name: str) -> None:
    number = record_number(name)
    assert (number is not None) == bool(re.fullmatch(r"journal/[0-9]{20}\.jsonl", name))
    assert number is None or record_name(number) == name


def test_digits_of_other_scripts_name_no_record() -> None:
    assert record_number(f"journal/{'٣' * 20}.jsonl") is None
