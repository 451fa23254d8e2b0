"""Snapshots in a bucket, where no lock keeps two processes apart."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from resumable_tasks import Snapshot
from resumable_tasks.checkpoint.store.object import ObjectStore
from resumable_tasks.errors import CheckpointUnusable, Fenced
from tests.conftest import Bucket
from tests.processes import started

pytest.importorskip("obstore")


def saved(bucket: Bucket) -> object:
    with Snapshot(bucket.url) as snapshot:
        return pickle.loads(pickle.dumps(snapshot.state))


def test_a_save_is_four_requests(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    with Snapshot(bucket.url, every=1) as snapshot:
        for n in range(4):
            snapshot.state["n"] = n
            snapshot.step()
        bucket.server.forget()
        snapshot.state["n"] = 4
        snapshot.step()
        assert bucket.server.counts() == Counter({"LIST": 2, "CREATE": 1, "DELETE-MANY": 1})
    assert saved(bucket) == {"n": 4}
    assert "temporary directory" not in caplog.text


def test_of_two_writers_the_later_one_is_fenced(bucket: Bucket) -> None:
    first = Snapshot(bucket.url, every=1).__enter__()
    first.state["by"] = "first"
    first.save()
    with Snapshot(bucket.url, every=1) as second:
        assert second.state == {"by": "first"}
        second.state["by"] = "second"
    first.state["by"] = "first again"
    with pytest.raises(Fenced, match="another process saved generation 2"):
        first.save()
    with pytest.raises(Fenced):
        first.__exit__(None, None, None)
    assert saved(bucket) == {"by": "second"}


def test_a_writer_that_sleeps_is_fenced_when_its_number_is_free_again(bucket: Bucket) -> None:
    sleeper = Snapshot(bucket.url, every=1, keep=2).__enter__()
    sleeper.state["n"] = -1
    with Snapshot(bucket.url, every=1, keep=2) as other:
        for n in range(6):
            other.state["n"] = n
            other.step()
    assert len(bucket.stored()) == 2
    with pytest.raises(Fenced):
        sleeper.save()
    with pytest.raises(Fenced):
        sleeper.__exit__(None, None, None)
    assert saved(bucket) == {"n": 5}


WRITER = """
import sys
from resumable_tasks import Fenced, Snapshot

saved = 0
try:
    with Snapshot(sys.argv[1], every=1, initial={"by": [], "n": 0}) as snapshot:
        for _ in range(20):
            snapshot.state["n"] += 1
            snapshot.state["by"].append(sys.argv[2])
            snapshot.step()
            saved += 1
except Fenced:
    pass
print(saved)
"""


def test_two_processes_that_save_at_once_lose_no_saved_step(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "writer.py").write_text(WRITER)
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                started(
                    [sys.executable, str(tmp_path / "writer.py"), bucket.url, name],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            for name in "ab"
        ]
        said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    state = saved(bucket)
    assert isinstance(state, dict)
    # Each step that was said to be saved is in what the next one went on from.
    assert state["n"] == len(state["by"])
    for name, (out, _) in zip("ab", said, strict=True):
        assert state["by"].count(name) >= int(out)


def test_whoever_opens_while_another_saves_and_clears_up_looks_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Snapshot(bucket.url, every=1, keep=1) as other:
        other.state["n"] = 0
        other.step()
        read, saved_meanwhile = ObjectStore.read, [1, 2, 3]

        def late(store: ObjectStore, name: str) -> bytes:
            if saved_meanwhile:
                other.state["n"] = saved_meanwhile.pop(0)
                other.step()
            return read(store, name)

        monkeypatch.setattr(ObjectStore, "read", late)
        with Snapshot(bucket.url, every=1, keep=1) as second:
            assert second.state == {"n": 3}


def test_a_place_of_other_things_is_refused(bucket: Bucket) -> None:
    bucket.server.put(f"{bucket.prefix}/job.json", b"{}")
    with pytest.raises(CheckpointUnusable, match="holds other things"), Snapshot(bucket.url):
        pass
    assert bucket.stored() == {"job.json": b"{}"}
