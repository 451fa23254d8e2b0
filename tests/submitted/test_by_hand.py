"""`resumable submissions`: what is out is listed, and a person says what becomes of it."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from resumable_tasks import Interrupted
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.errors import Fenced, UsageError
from tests.cli.test_cli import cli, document
from tests.submitted.jobs import assert_all_paid_once, job, left_out
from tests.submitted.service import FileService, items


def tokens(place: Path) -> list[str]:
    return [each["token"] for each in document("submissions", place)["each"]]


def unknown(folder: Path, **service: object) -> tuple[Path, str]:
    """A checkpoint, and the token of a submission of which nobody knows whether it was sent."""
    made = FileService(folder / "home", without=("find",), lose=1, **service)  # type: ignore[arg-type]
    with pytest.raises(Interrupted) as stopped:
        job(made).run(items(20), checkpoint=folder / "c", on_unknown="ask")
    (token,) = tokens(folder / "c")
    assert token in str(stopped.value)
    return folder / "c", token


def test_what_is_out_is_listed(tmp_path: Path) -> None:
    left_out(tmp_path)
    found = document("submissions", tmp_path / "c")
    assert (found["items"], found["submissions"], found["strays"]) == (70, 3, [])
    assert sorted(each["items"] for each in found["each"]) == [10, 30, 30]
    assert {each["state"] for each in found["each"]} == {"submitted"}
    assert {each["handle"]["number"] for each in found["each"]} == {1, 2, 3}
    text = cli("submissions", tmp_path / "c").stdout
    assert all(token in text for token in tokens(tmp_path / "c"))
    assert "70 items out in 3 submissions (oldest " in text


def test_nothing_is_out(tmp_path: Path) -> None:
    job(FileService(tmp_path / "home")).run(items(3), checkpoint=tmp_path / "c")
    assert cli("submissions", tmp_path / "c").stdout == "no open submissions\n"


def test_the_message_names_the_commands_which_attach_and_withdraw(tmp_path: Path) -> None:
    """As they stand there, to be pasted; with a handle in the place of HANDLE."""
    made = FileService(tmp_path / "home", without=("find",), lose=1)
    with pytest.raises(Interrupted) as stopped:
        job(made).run(items(20), checkpoint=tmp_path / "c d", on_unknown="ask")
    attach, withdraw = (shlex.split(each)[1:] for each in re.findall("`(.*?)`", str(stopped.value)))
    assert withdraw == ["submissions", str(tmp_path / "c d"), "withdraw", attach[3]]
    attached = cli(*(each if each != "HANDLE" else '{"number": 1}' for each in attach))
    assert attached.exit_code == 0, attached.stderr
    job(made).run(items(20), checkpoint=tmp_path / "c d", on_unknown="ask")
    assert made.paid == Counter(range(20))


def test_what_is_attached_is_collected_by_the_next_run(tmp_path: Path) -> None:
    place, token = unknown(tmp_path)
    before = Reader.at(str(place)).state
    result = cli("submissions", place, "attach", token, '{"number": 1}')
    assert "collects its 20 items" in result.stdout
    state = Reader.at(str(place)).state
    assert state.epoch == before.epoch + 1, "it fences every run that may still be alive"
    (found,) = document("submissions", place)["each"]
    assert (found["handle"], found["by"]) == ({"number": 1}, "attached")
    assert_all_paid_once(tmp_path, 20)


def test_a_handle_may_be_a_bare_text(tmp_path: Path) -> None:
    place, token = unknown(tmp_path)
    cli("submissions", place, "attach", token, "batch_6823a1")
    assert document("submissions", place)["each"][0]["handle"] == "batch_6823a1"


def test_what_is_withdrawn_is_submitted_again(tmp_path: Path) -> None:
    place, token = unknown(tmp_path)
    assert "submits 20 items again" in cli("submissions", place, "withdraw", token).stdout
    assert tokens(place) == []
    service = FileService(tmp_path / "home")
    result = job(service).run(items(20), checkpoint=place)
    assert result.completed == 20
    assert [len(each["ids"]) for each in service.submissions] == [20, 20]


def test_what_the_service_has_is_withdrawn_only_if_that_is_said_twice(tmp_path: Path) -> None:
    service = left_out(tmp_path, 10)
    (token,) = tokens(tmp_path / "c")
    refused = cli("submissions", tmp_path / "c", "withdraw", token)
    assert refused.exit_code == 2
    assert "10 items must be paid for again; nothing was changed" in refused.stderr
    assert tokens(tmp_path / "c") == [token]
    assert cli("submissions", tmp_path / "c", "withdraw", token, "--yes").exit_code == 0
    service.end_all()
    assert job(FileService(tmp_path / "home")).run(items(10), checkpoint=tmp_path / "c").completed
    assert service.paid == dict.fromkeys(range(10), 2)


def test_a_handle_is_replaced_only_if_that_is_said_twice(tmp_path: Path) -> None:
    left_out(tmp_path, 10)
    (token,) = tokens(tmp_path / "c")
    refused = cli("submissions", tmp_path / "c", "attach", token, "x")
    assert (refused.exit_code, '{"number": 1}' in refused.stderr) == (2, True)
    assert cli("submissions", tmp_path / "c", "attach", token, "x", "--yes").exit_code == 0
    assert document("submissions", tmp_path / "c")["each"][0]["handle"] == "x"


@pytest.mark.parametrize(
    "given",
    [("attach", "nonesuch", "x"), ("withdraw", "nonesuch"), ("attach", "x"), ("withdraw",)],
)
def test_what_is_not_out_changes_nothing(tmp_path: Path, given: tuple[str, ...]) -> None:
    left_out(tmp_path, 10)
    before = Reader.at(str(tmp_path / "c")).state.records
    refused = cli("submissions", tmp_path / "c", *given)
    assert refused.exit_code == 2
    assert "`resumable submissions " in refused.stderr
    assert Reader.at(str(tmp_path / "c")).state.records == before


def test_null_is_no_handle(tmp_path: Path) -> None:
    place, token = unknown(tmp_path)
    assert "null is not a handle" in cli("submissions", place, "attach", token, "null").stderr
    assert document("submissions", place)["each"][0]["state"] == "intended"


def test_a_run_at_work_is_not_disturbed(tmp_path: Path) -> None:
    left_out(tmp_path, 10)
    (token,) = tokens(tmp_path / "c")
    seen: list[int] = []

    class Looked(FileService):
        def poll(self, handle: dict[str, int]) -> object:  # type: ignore[override]
            for given in (("attach", token, "x", "--yes"), ("withdraw", token, "--yes")):
                seen.append(cli("submissions", tmp_path / "c", *given).exit_code)
            listed = document("submissions", tmp_path / "c")["items"]
            assert listed == 10
            return super().poll(handle)

    job(Looked(tmp_path / "home")).run(items(10), checkpoint=tmp_path / "c")
    assert seen == [3, 3]
    assert tokens(tmp_path / "c") == []


@pytest.mark.parametrize("given", [("withdraw",), ("attach", '{"number": 1}')])
def test_a_run_that_has_slept_commits_nothing_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    """It has slept for so long that nobody saw it hold the checkpoint any more."""
    left_out(tmp_path, 10)
    (token,) = tokens(tmp_path / "c")

    class Slept(FileService):
        def collect(self, handle: dict[str, int]) -> list[object]:
            with monkeypatch.context() as asleep:
                asleep.setattr(Holder, "take", lambda *_, **__: None)
                action, *more = given
                done = cli("submissions", tmp_path / "c", action, token, *more, "--yes")
                assert done.exit_code == 0, done.stderr
            return super().collect(handle)

    with pytest.raises(Fenced):
        job(Slept(tmp_path / "home")).run(items(10), checkpoint=tmp_path / "c")
    assert document("status", tmp_path / "c")["completed"] == 0
    assert len(tokens(tmp_path / "c")) == (given[0] == "attach")


def test_a_submission_whose_items_are_not_known_is_listed_and_forgotten(tmp_path: Path) -> None:
    left_out(tmp_path, 10)
    place = tmp_path / "c"
    (token,) = tokens(place)
    number = document("submissions", place)["each"][0]["record"]
    (place / "journal" / f"{number:020d}.jsonl").unlink()
    cli("repair", place)
    found = document("submissions", place)
    assert (found["each"], found["strays"]) == ([], [{"token": token, "handle": {"number": 1}}])
    assert token in cli("submissions", place).stdout
    refused = cli("submissions", place, "attach", token, "x")
    assert "items of submission" in refused.stderr
    assert cli("submissions", place, "withdraw", token).exit_code == 0
    assert cli("submissions", place).stdout == "no open submissions\n"


def test_a_submit_that_gives_no_handle_leaves_a_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    class Forgetful(FileService):
        def submit(self, items: list[dict[str, int]], token: str) -> None:  # type: ignore[override]
            super().submit(items, token)

    with pytest.raises(UsageError, match="the value that submit returned is None"):
        job(Forgetful(tmp_path / "home")).run(items(10), checkpoint=tmp_path / "c")
    assert_all_paid_once(tmp_path, 10)
