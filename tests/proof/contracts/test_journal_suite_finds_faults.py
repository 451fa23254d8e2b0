"""The suite of journals is worth something: each of these journals breaks a rule, and is found.

A fault is put into the journal's own source by exchanging a few words of it.
"""

from __future__ import annotations

import inspect
import sys
import types
from pathlib import Path

import pytest

from resumable_tasks.checkpoint.directory import journal, records, segments
from resumable_tasks.errors import ResumableTasksError
from resumable_tasks.testing import journal_suite
from resumable_tasks.testing.journal_suite import FOLDER, JournalSuite
from tests.proof.contracts.disk_stores import OnDisk

FOUND = (AssertionError, pytest.fail.Exception, ResumableTasksError, FileNotFoundError)
UNKNOWN = "an_unknown_outcome_is_settled_or_said_and_never_doubled"

_UNKNOWN_RAISED = "except CreateUnknown as error:"

FAULTS = {
    "no checksum": (
        ('if checksum != end["checksum"]:', "if False:"),
        ("no_byte_of_a_record_changes_unnoticed", "one key"),
    ),
    "no number": (
        ('if record_name(head["number"]) != name', 'if head["number"] < 0'),
        ("a_record_under_another_ones_name_is_found", 4),
    ),
    "no chain": (
        ("if commit.previous not in (self._last", "if None in (self._last"),
        ("a_record_that_was_edited_and_sealed_again_is_found", 4),
    ),
    "no anchor": (
        ("self._last_checksum = anchor", 'self._last_checksum = "the id of the manifest"'),
        ("a_record_of_another_checkpoint_is_found",),
    ),
    "no order of epochs": (
        ("if commit.epoch < epoch and", "if False and"),
        ("an_epoch_never_goes_back",),
    ),
    "gaps are skipped": (
        ("if len(whole) < len(listed):", "if False:"),
        ("a_missing_record_is_found", 0),
    ),
    "paths are not checked": (
        ("if not _SHARD_PATH.fullmatch(shard.path):", "if False:"),
        ("a_path_outside_the_shards_is_refused", "../outside.parquet"),
    ),
    "paths are checked from the left": (
        ("_SHARD_PATH.fullmatch", "_SHARD_PATH.match"),
        ("a_path_outside_the_shards_is_refused", "shards/e1-0.parquet/../../../outside"),
    ),
    "any record in the place is success": (
        ("if other.nonce == commit.nonce:", "if True:"),
        ("a_driver_that_was_overtaken_is_fenced",),
    ),
    "any record in the place is another's": (
        ("if other.nonce == commit.nonce:", "if False:"),
        (UNKNOWN, ("ours",), "commit"),
    ),
    "taken is success": (
        ("if self._store.create(name, data):", "if self._store.create(name, data) is not None:"),
        (UNKNOWN, ("false",), "commit"),
    ),
    "unknown is success": (
        (_UNKNOWN_RAISED, f"{_UNKNOWN_RAISED}\n                return"),
        (UNKNOWN, ("unknown", "ours"), "commit"),
    ),
    "unknown is raised": (
        (_UNKNOWN_RAISED, f"{_UNKNOWN_RAISED}\n                raise"),
        (UNKNOWN, ("unknown", "ours"), "commit"),
    ),
    "one try": (
        ("_SETTLE_TRIES = 3", "_SETTLE_TRIES = 1"),
        (UNKNOWN, ("false", "hidden"), "claim"),
    ),
    "a flush that failed is tried again": (
        ("if not error.readable_is_durable:", "if False:"),
        ("what_can_be_read_but_not_be_trusted_is_said_at_once", True),
    ),
    "goes on after a failure": (
        ("if not self._usable:", "if False:"),
        ("a_journal_that_was_interrupted_appends_no_more", "journal.created"),
    ),
    "goes on after an error": (
        ("if not self._usable:", "if False:"),
        ("an_error_before_anything_was_written_is_no_unknown_outcome",),
    ),
    "an overtaken driver reads on": (
        ('if mine.kind in _TRIED_AGAIN:', "if True:"),
        ("a_driver_that_was_overtaken_is_fenced",),
    ),
    "only commits are fenced": (
        ('if mine.kind in _TRIED_AGAIN:', 'if mine.kind != "commit":'),
        ("whatever_an_overtaken_driver_appends_is_fenced", "close"),
    ),
    "a claim is fenced": (
        ('if mine.kind in _TRIED_AGAIN:', "if False:"),
        ("of_two_claims_one_is_first_and_the_other_comes_after",),
    ),
    "a claim that lost is not tried again": (
        ("self._usable = True\n            raise RecordTaken", "raise RecordTaken"),
        ("a_claim_whose_place_is_taken_reads_on_and_tries_again",),
    ),
    "races are lost": (
        ("if self._store.create(name, data):", "if self._store.put(name, data) is None:"),
        ("racing_drivers_complete_each_key_once_and_lose_no_commit",),
    ),
    "records are all taken for new": (
        ("self.next_number = commit.number + 1", "self.next_number = 0"),
        ("reading_goes_on_where_it_ended",),
    ),
    "keys are cut at every line end": (
        ('return lines[len(prefix) : -1].replace(b"}\\n" + prefix, b"\\n") if lines else b""',
         'return "\\n".join(x[len(prefix) : -1] for x in lines.decode().splitlines()).encode()'),
        ("nasty_keys_are_read_as_they_were",),
    ),
    "tuples come back as lists": (
        ("key=tuple(key) if isinstance(key, list) else key", "key=key"),
        ("nasty_keys_are_read_as_they_were",),
    ),
}  # fmt: skip


HOME = "resumable_tasks.checkpoint.directory"
MODULES = (records, segments, journal)


def test_every_fault_can_be_seeded() -> None:
    """Also those that are not tried in the short form."""
    source = "".join(map(inspect.getsource, MODULES))
    assert {name: source.count(old) for name, ((old, _), _) in FAULTS.items()} == dict.fromkeys(
        FAULTS, 1
    )


def faulty(old: str, new: str) -> dict[str, types.ModuleType]:
    """The journal's modules by their names, with the fault in one of them."""
    sources = [inspect.getsource(module) for module in MODULES]
    count = sum(source.count(old) for source in sources)
    assert count == 1, f"the journal has no {old!r} any more: seed this fault again"
    found = {}
    for module, source in zip(MODULES, sources, strict=True):
        text, name = source.replace(old, new), module.__name__.rpartition(".")[2]
        for other in found:
            text = text.replace(f"from {HOME}.{other} import", f"from faulty_{other} import")
            text = text.replace(f"from {HOME} import {other}", f"import faulty_{other} as {other}")
        found[name] = types.ModuleType(f"faulty_{name}")
        sys.modules[f"faulty_{name}"] = found[name]
        exec(compile(text, f"faulty_{name}", "exec"), found[name].__dict__)
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_the_suite_finds(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (old, new), (test, *arguments) = FAULTS[fault]
    modules = faulty(old, new)
    for module, name in (
        *(("journal", "Journal"), ("journal", "RecordTaken")),
        *(("records", "decode"), ("records", "encode")),
    ):
        monkeypatch.setattr(journal_suite, name, getattr(modules[module], name))

    class Suite(OnDisk, JournalSuite):
        pass

    method = getattr(Suite(), f"test_{test}")
    if "store" in inspect.signature(method).parameters:
        store = Suite().make_store(tmp_path)
        store.prepare((FOLDER, "shards"))
        arguments = [store, *arguments]
    with pytest.raises((*FOUND, modules["journal"].RecordTaken)):
        method(*arguments)
