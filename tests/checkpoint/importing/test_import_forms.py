"""What a progress file holds is taken for what it is, or refused with the place where it is not."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import InvalidItems, UsageError
from tests.checkpoint.importing.test_import import cli, file, take


def taken(place: Path) -> list[Any]:
    return [json.loads(line) for line in cli("keys", place / "checkpoint").stdout.splitlines()]


@pytest.mark.parametrize(
    ("text", "name", "options", "keys"),
    [
        ('["a","b","c"]', "done.json", {}, ["a", "b", "c"]),
        ('["a","b"]\n', "done", {"key": ()}, ["a", "b"]),
        ('\n[\n  "a",\n  7\n]\n', "done.json", {}, ["a", 7]),
        ('[{"id": "a", "v": 1},\n {"id": "b", "v": 2}]', "done.json", {}, ["a", "b"]),
        ('["x",1]\n', "done.jsonl", {"key": ("a", "b")}, [["x", 1]]),
        ('[["x",1],["y",2]]', "done.json", {"key": ("a", "b")}, [["x", 1], ["y", 2]]),
        ('["x",1]\n["y",2]\n', "done.jsonl", {"key": ("a", "b")}, [["x", 1], ["y", 2]]),
        ("[]", "done.json", {}, []),
        ('{"id":"12"}\n{"id":7}\n', "x.jsonl", {"key_type": "int"}, [12, 7]),
        ('{"id":"012"}\n{"id":7}\n', "x.jsonl", {"key_type": "string"}, ["012", "7"]),
        ('["x","1"]\n', "x.jsonl", {"key": ("a", "b"), "key_type": "string"}, [["x", "1"]]),
        ('{"key":"a"}\n', "x.jsonl", {"key": ("url",)}, ["a"]),
        ('{"id":"a","status":"failed"}\n', "x.jsonl", {"failed_too": True}, ["a"]),
        ('{"id":"a","status":"ok","error":null,"ok":true}\n', "x.jsonl", {}, ["a"]),
        ('{"id":"a","status":"200 OK","state":"Done","done":1}\n', "x.jsonl", {}, ["a"]),
        ('{"state":"NY","error":"None"}\n', "x.jsonl", {"key": ("state",)}, ["NY"]),
    ],
)
def test_what_is_there_is_taken(
    tmp_path: Path, text: str | bytes, name: str, options: dict[str, Any], keys: list[Any]
) -> None:
    assert take(file(tmp_path, text, name), **options).imported == len(keys)
    assert taken(tmp_path) == keys


@pytest.mark.parametrize(
    ("text", "name", "options", "says"),
    [
        ('["a","b",null]', "x.json", {}, "x.json: element 3: the key is None"),
        ('[{"id":1},{"n":1}]', "x.json", {}, "x.json: element 2: it has no field 'id'"),
        ('["a",{"id":1}]', "x.json", {}, "x.json: element 1: it is not a JSON object"),
        ('[\n"a",\n"b"', "x.json", {}, "x.json:3: it is not JSON, or is part of an array"),
        ('["a","b', "x.json", {}, "x.json:1: it is not JSON, or is part of an array"),
        (b'["a","\xc3', "x.json", {}, "x.json:1: it is not JSON, or is part of an array"),
        ('"a"\n["a",1]\n', "x.jsonl", {}, "x.jsonl:2: it is a list, but the key is one field"),
        ('# done\n{"id":"a"}\n', "x.jsonl", {}, "x.jsonl:1: it is not JSON"),
        ('# done\n{"id":"a"}\n', "x.ndjson", {}, "x.ndjson:1: it is not JSON"),
        ('# done\n{"id":"a"}\n', "x.txt", {}, "x.txt:1: it is a comment"),
        ('a\n{"id":"a"}\n', "x.txt", {}, "x.txt:2: it is not a plain id; if it is JSON"),
        ('a\n["a"]\n', "x.txt", {}, "x.txt:2: it is not a plain id; if it is JSON"),
        (
            "a\n b\n",
            "x.txt",
            {},
            "x.txt:2: it is a comment, contains a tab, or starts or ends with a space",
        ),
        (
            "a\nb \n",
            "x.txt",
            {},
            "x.txt:2: it is a comment, contains a tab, or starts or ends with a space",
        ),
        (
            "a\nb\tc\n",
            "x.txt",
            {},
            "x.txt:2: it is a comment, contains a tab, or starts or ends with a space",
        ),
        (b'{"id":"a"}\n{"id":"\xff"}', "x.jsonl", {}, "x.jsonl:2: it is not UTF-8"),
        (b'\xef\xbb\xbf{"id":"a"}\n{"id":"\xff"}', "x.jsonl", {}, "x.jsonl:2: it is not UTF-8"),
        (b"\xff\xfea\x00\n\x00", "x.txt", {}, "x.txt:1: it is not UTF-8"),
        ('{"id":1}\n{"id":2,"status":"Failed"}\n', "x.jsonl", {}, "x.jsonl:2: it has status"),
        ('{"id":1}\n{"id":2,"error":"no"}\n', "x.jsonl", {}, "x.jsonl:2: it has error: 'no'"),
        ('{"id":1}\n{"id":2,"ok":false}\n', "x.jsonl", {}, "x.jsonl:2: it has ok: False"),
        ('[{"id":2,"success":false}]', "x.json", {}, "element 1: it has success: False"),
        ('{"id":"a"}\n', "x.jsonl", {"key": ("url",)}, "x.jsonl:1: it has no field 'url'"),
        (
            '{"id":"a"}\n',
            "x.jsonl",
            {"key_type": "int"},
            "x.jsonl:1: its key 'a' is not an integer",
        ),
        ("1\n" + "9" * 5000 + "\n", "x.txt", {"key_type": "int"}, "x.txt:2: its key '9999"),
    ],
)
def test_what_cannot_be_told_is_refused(
    tmp_path: Path, text: str | bytes, name: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidItems) as caught:
        take(file(tmp_path, text, name), **options)
    assert says in str(caught.value)
    assert not (tmp_path / "checkpoint").exists()


def test_the_command_says_what_comes_along(tmp_path: Path) -> None:
    lines = [{"id": "a", "price": 0.5, "n": "1"}, {"id": "b", "price": 1.25, "n": "x"}]
    path = file(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "x.jsonl")
    given = ("import", path, "--checkpoint", tmp_path / "checkpoint", "--key", "id")
    for options in (("--dry-run",), ()):
        assert "columns: id string, price double, n string\n" in cli(*given, *options).stdout
    path.write_text('{"id":"c"}\n')
    text = cli(*given).stdout
    assert "without results: table() and publish() will not include them" in text
    path.write_text('{"id":"d","ok":false}\n')
    refused = cli(*given)
    assert (refused.exit_code, "--failed-too" in refused.stderr) == (2, True)
    assert cli(*given, "--failed-too", "--results", "none").exit_code == 0


@pytest.mark.parametrize(
    "said",
    [
        {"status": "fail"},
        {"status": "pending"},
        {"status": " In Progress "},
        {"status": "timed-out"},
        {"state": "running"},
        {"done": False},
        {"completed": "no"},
        {"finished": 0},
    ],
)
def test_an_item_that_is_not_done_is_not_taken_for_done(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    lines = [{"id": "a"}, {"id": "b", **said}]
    place = file(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "x.jsonl")
    with pytest.raises(InvalidItems, match=r"x\.jsonl:2: it has"):
        take(place)
    assert take(place, failed_too=True).imported == 2


BAD = [
    {"error": {"code": "rate_limit"}, "response": None},
    {"error": None, "response": {"status_code": 429, "body": {"error": {"message": "slow"}}}},
    {"error": None, "response": {"status_code": 200, "body": {"status": "incomplete"}}},
    {"result": {"type": "errored", "error": {"type": "overloaded_error"}}},
    {"result": {"type": "expired"}},
    {"result": {"type": "canceled"}},
    {"errors": ["Timeout"]},
    {"error_message": "Timeout"},
    {"errorMessage": "Timeout"},
    {"exception": "TimeoutError()"},
    {"traceback": "Traceback …"},
    {"failed": True},
    {"is_error": "true"},
    {"status_code": 503},
    {"http_status": "404"},
    {"status": 500},
    {"status": "HTTP 502 Bad Gateway"},
    {"status": "completed with errors"},
    {"exit_code": -9},
    {"returncode": "1"},
    {"success": "false"},
]
GOOD = [
    {"error": None, "response": {"status_code": 200, "body": {"error": None, "choices": []}}},
    {"result": {"type": "succeeded", "message": {"type": "message"}}},
    {"errors": [], "error_message": "", "exception": None, "failed": False, "exit_code": 0},
    {"error": float("nan"), "status_code": "201", "status": 204, "state": "No error"},
    {"result": {"type": "dog", "error": 0}, "done": "yes"},
]
UNCLEAR = [
    ("status", "shipped"),
    ("status", ""),
    ("status", None),
    ("status", 7),
    ("status_code", None),
    ("exit_code", None),
    ("completed", None),
    ("state", "NY"),
]


@pytest.mark.parametrize("bad", BAD, ids=json.dumps)
def test_the_usual_ways_to_say_failed_are_known(tmp_path: Path, bad: dict[str, Any]) -> None:
    lines = [{"id": "a", **good} for good in GOOD] + [{"id": "b", **bad}]
    path = file(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "x.jsonl")
    with pytest.raises(InvalidItems, match=r"x\.jsonl:6: it has .*--skip-failed"):
        take(path, keys_only=True)
    done = take(path, keys_only=True, skip_failed=True)
    assert (done.imported, done.failed, taken(tmp_path)) == (1, 1, ["a"])


@pytest.mark.parametrize(("field", "value"), UNCLEAR)
@pytest.mark.parametrize("inside", ["", "response"])
def test_a_sign_that_may_be_either_is_asked_about(
    tmp_path: Path, field: str, value: Any, inside: str
) -> None:
    said = {inside: {field: value}} if inside else {field: value}
    lines = [{"id": "a"}, {"id": "b", **said}]
    path = file(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "x.jsonl")
    place = ("import", path, "--key", "id", "--keys-only", "--checkpoint")
    asked = cli(*place, tmp_path / "c0", "--skip-failed")
    assert asked.exit_code == 2
    assert not (tmp_path / "c0").exists()
    answer = re.search(r"give --done-if (\S+) or --failed-if (\S+)", asked.stderr)
    assert answer is not None
    [option] = shlex.split(answer[1])
    name = f"{inside}.{field}" if inside else field
    answers = [
        (("--done-if", option), 2),
        (("--done-if", f"{name}=*"), 2),
        (("--failed-if", option, "--skip-failed"), 1),
        (("--failed-too",), 2),
    ]
    for number, (given, imported) in enumerate(answers):
        done = cli(*place, tmp_path / f"d{number}", *given, "--json")
        assert json.loads(done.stdout)["imported"] == imported


def test_fields_that_are_known_to_nobody_can_be_told(tmp_path: Path) -> None:
    text = '{"id":"a","verdict":"fine"}\n{"id":"b","verdict":"broken","status":"ok"}\n'
    path = file(tmp_path, text, "x.jsonl")
    assert take(path, failed_if=["verdict=broken"], skip_failed=True).imported == 1
    with pytest.raises(UsageError, match="'verdict' is not FIELD=VALUE"):
        take(path, failed_if=["verdict"])


@pytest.mark.parametrize("results", [None, "one", "many"])
def test_items_that_are_not_done_can_be_left_to_the_next_run(tmp_path: Path, results: Any) -> None:
    """A log of a program that notes what it begins, what fails, and what is done."""
    log = [
        *((n, "started") for n in "abcd"),
        *(("a", "done"), ("b", "failed"), ("c", "done"), ("c", "failed"), ("e", "done")),
    ]
    text = "".join(json.dumps({"id": key, "status": status}) + "\n" for key, status in log)
    path = file(tmp_path, text)
    done = take(path, skip_failed=True, results=results)
    assert (done.imported, done.failed, done.duplicates) == (2, 7, 0)
    assert taken(tmp_path) == ["a", "e"]
    with pytest.raises(UsageError, match="not both"):
        take(path, skip_failed=True, failed_too=True)
    again = cli("import", path, "--checkpoint", tmp_path / "c2", "--key", "id", "--skip-failed")
    assert "7 lines left out: items that failed or are not done" in again.stdout


def test_a_line_that_failed_before_it_had_a_key_is_left_out(tmp_path: Path) -> None:
    lines = [{"id": {"no": ["key"]}, "ok": False}, {"id": None, "ok": False}, {"id": "a"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert take(file(tmp_path, text, "x.jsonl"), skip_failed=True).failed == 2
    assert taken(tmp_path) == ["a"]


def test_a_line_that_is_torn_in_the_middle_of_the_file_says_what_to_do(tmp_path: Path) -> None:
    torn = '{"id":"a"}\n{"id":"b","n{"id":"c"}\n'
    with pytest.raises(InvalidItems, match=r"x\.jsonl:2: .*if a crash tore this line, remove it"):
        take(file(tmp_path, torn, "x.jsonl"))


@pytest.mark.parametrize("name", ["x.csv", "x.TSV"])
def test_a_table_is_refused_with_the_line_that_makes_json_lines_of_it(
    tmp_path: Path, name: str
) -> None:
    path = file(tmp_path, "url,n\n007,1\n", name)
    with pytest.raises(UsageError) as caught:
        take(path, key=("url",))
    line = (
        f"duckdb -c \"COPY (FROM read_csv('{path}', types={{'url': 'VARCHAR'}})) "
        f"TO '{tmp_path / 'x.jsonl'}' (FORMAT json)\""
    )
    assert line in str(caught.value)
    assert not (tmp_path / "checkpoint").exists()
