"""What a power loss may leave of a run, after Pillai et al., "All file systems are not created
equal" (OSDI 2014): a recorder of what the run does to files and folders, and the states that
POSIX permits at any moment of it.

The model, which is harsher than any file system in use:

* of a file, what was written since its last fsync is there, or not, or half of it, or zeros;
* of a folder, each entry that was added, removed or renamed since its last fsync is there or not,
  independently of every other; a rename within a folder is one step;
* fsync of a file says nothing of its name, and a folder whose name is lost is lost with all in it.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

_open, _write, _close = os.open, os.write, os.close
_note: list[Any] = []


def record(root: str, to: str, *, kill_at: int = 0) -> None:
    """Write down what this process does below ``root`` from here on; in a child only.

    With ``kill_at`` the process dies after so many operations.
    """
    log = _open(to, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    lock = threading.RLock()
    real = {name: getattr(os, name) for name in _RECORDED}
    opened: dict[int, int] = {}
    count = 0

    def whole(path: Any, folder: int | None) -> str:
        """The path, of which a call was given the last part and a handle of the folder."""
        above = os.readlink(f"/proc/self/fd/{folder}") if folder is not None else ""
        return os.path.abspath(os.path.join(above, os.fspath(path)))

    def name(path: Any, folder: int | None = None) -> str | None:
        text = whole(path, folder)
        return os.path.relpath(text, root) if text.startswith(root + os.sep) else None

    def note(**entry: Any) -> None:
        nonlocal count
        _write(log, json.dumps(entry).encode() + b"\n")
        count += "ack" not in entry
        if count == kill_at:
            os.kill(os.getpid(), 9)

    def do_open(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        with lock:
            full = whole(path, more.get("dir_fd"))
            there = os.path.lexists(full)
            handle: int = real["open"](path, flags, *rest, **more)
            opened.pop(handle, None)
            if (at := name(full)) is not None or full == root:
                opened[handle] = len(opened) + (os.getpid() << 20) + count
                note(op="open", handle=opened[handle], path=at or ".", new=not there)
            return handle

    def do_write(handle: int, data: Any) -> int:
        with lock:
            written: int = real["write"](handle, data)
            if handle in opened:
                text = base64.b64encode(bytes(data)[:written]).decode()
                note(op="write", handle=opened[handle], data=text)
            return written

    def do_fsync(handle: int) -> None:
        with lock:
            real["fsync"](handle)
            if handle in opened:
                note(op="fsync", handle=opened[handle])

    def do_close(handle: int) -> None:
        with lock:
            real["close"](handle)
            opened.pop(handle, None)

    def one(op: str) -> Any:
        def do(path: Any, *rest: Any, **more: Any) -> None:
            with lock:
                real[op](path, *rest, **more)
                if (at := name(path, more.get("dir_fd"))) is not None:
                    note(op=op, path=at)

        return do

    def two(op: str, as_op: str) -> Any:
        def do(source: Any, target: Any, **more: Any) -> None:
            with lock:
                real[op](source, target, **more)
                if (to := name(target, more.get("dst_dir_fd"))) is not None:
                    note(op=as_op, path=name(source, more.get("src_dir_fd")), to=to)

        return do

    os.open, os.write, os.fsync, os.close = do_open, do_write, do_fsync, do_close
    os.mkdir, os.unlink, os.rmdir = one("mkdir"), one("unlink"), one("rmdir")
    os.link, os.rename, os.replace = (
        two("link", "link"),
        two("rename", "rename"),
        two("replace", "rename"),
    )
    _note[:] = [lambda **entry: _locked(lock, note, entry)]


_RECORDED = ("open", "write", "fsync", "close", "mkdir", "unlink", "rmdir")
_RECORDED += ("link", "rename", "replace")


def _locked(lock: Any, note: Any, entry: dict[str, Any]) -> None:
    with lock:
        note(**entry)


def note_ack(number: int) -> None:
    """Write down that record ``number`` has been told to be committed."""
    _note[0](op="ack", ack=number)


@dataclass
class File:
    data: bytes = b""
    synced: int = 0


@dataclass
class Folder:
    """``durable`` are the entries on the disk, ``now`` those in memory, ``pending`` the way."""

    now: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)
    pending: list[tuple[str, str, str, int]] = field(default_factory=list)


class Disk:
    """Files and folders by number, as a run leaves them in memory and on the disk."""

    def __init__(self) -> None:
        self.nodes: dict[int, File | Folder] = {0: Folder()}
        self.handles: dict[int, int] = {}
        self.acked: set[int] = set()

    def folder(self, path: str) -> Folder:
        node = self.nodes[self.find(path)]
        assert isinstance(node, Folder), path
        return node

    def find(self, path: str) -> int:
        number = 0
        for part in Path(path).parts:
            node = self.nodes[number]
            assert isinstance(node, Folder), path
            number = node.now[part]
        return number

    def apply(self, entry: dict[str, Any]) -> bool:
        """Take one recorded operation in; whether the states after it can be others."""
        op = entry["op"]
        if op == "ack":
            self.acked.add(entry["ack"])
            return True
        if op == "open":
            if entry["new"]:
                self._enter(entry["path"], self._new(File()))
            self.handles[entry["handle"]] = self.find(entry["path"])
            return bool(entry["new"])
        if op == "write":
            node = self.nodes[self.handles[entry["handle"]]]
            assert isinstance(node, File)
            node.data += base64.b64decode(entry["data"])
            return True
        if op == "fsync":
            node = self.nodes[self.handles[entry["handle"]]]
            if isinstance(node, File):
                node.synced = len(node.data)
            else:
                node.durable, node.pending = dict(node.now), []
            return True
        parent, name = os.path.split(entry["path"])
        if op == "mkdir":
            self._enter(entry["path"], self._new(Folder()))
        elif op == "link":
            self._enter(entry["to"], self.find(entry["path"]))
        elif op in ("unlink", "rmdir"):
            folder = self.folder(parent)
            folder.pending.append(("remove", name, "", folder.now.pop(name)))
        else:
            other, to = os.path.split(entry["to"])
            assert parent == other, "a rename across folders is more than this models"
            folder = self.folder(parent)
            folder.now[to] = number = folder.now.pop(name)
            folder.pending.append(("move", name, to, number))
        return True

    def _new(self, node: File | Folder) -> int:
        self.nodes[len(self.nodes)] = node
        return len(self.nodes) - 1

    def _enter(self, path: str, number: int) -> None:
        parent, name = os.path.split(path)
        folder = self.folder(parent)
        folder.now[name] = number
        folder.pending.append(("add", name, "", number))

    def states(self, random: Random, extra: int) -> Iterator[dict[str, bytes | None]]:
        """What a power loss now may leave: path → bytes, or None for a folder."""
        every = [
            (number, at)
            for number, node in self.nodes.items()
            if isinstance(node, Folder)
            for at in range(len(node.pending))
        ]
        kept: list[set[tuple[int, int]]] = [set(every), set()]
        for number in {number for number, _ in every}:
            own = {each for each in every if each[0] == number}
            kept += [own, set(every) - own]
        recent = every[-6:]
        kept += [{each} for each in recent] + [set(every) - {each} for each in recent]
        kept += [{e for e in every if random.random() < 0.5} for _ in range(extra)]
        unsynced = any(isinstance(n, File) and n.synced < len(n.data) for n in self.nodes.values())
        for chosen in kept:
            for contents in ("whole", "none", "half", "zeros") if unsynced else ("whole",):
                yield self._tree(chosen, contents)

    def _tree(self, kept: set[tuple[int, int]], contents: str) -> dict[str, bytes | None]:
        tree: dict[str, bytes | None] = {}
        waiting = [("", 0)]
        while waiting:
            at, number = waiting.pop()
            node = self.nodes[number]
            if isinstance(node, File):
                tree[at] = _content(node, contents)
                continue
            if at:
                tree[at] = None
            for name, child in _entries(node, number, kept).items():
                waiting.append((os.path.join(at, name), child))
        return tree


def _content(file: File, how: str) -> bytes:
    durable, loose = file.data[: file.synced], file.data[file.synced :]
    if how == "none":
        return durable
    if how == "half":
        return durable + loose[: len(loose) // 2]
    if how == "zeros":
        return durable + bytes(len(loose))
    return durable + loose


def _entries(folder: Folder, number: int, kept: set[tuple[int, int]]) -> dict[str, int]:
    entries = dict(folder.durable)
    for at, (op, name, to, node) in enumerate(folder.pending):
        if (number, at) not in kept:
            continue
        if op == "add":
            entries[name] = node
            continue
        if entries.get(name) == node:
            del entries[name]
        if op == "move":
            entries[to] = node
    return entries


@dataclass
class State:
    """One state after a power loss: the tree, and the records that had been told by then."""

    tree: dict[str, bytes | None]
    acked: frozenset[int]
    after: int

    def put_down(self, place: Path) -> None:
        for name, data in sorted(self.tree.items()):
            path = place / name
            if data is None:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def all_states(trace: list[dict[str, Any]], seed: int, extra: int = 3) -> list[State]:
    """Every state that this enumerates, each once, in the order of the run."""
    disk, random = Disk(), Random(seed)
    found: dict[Any, State] = {}
    for at, entry in enumerate(trace):
        if disk.apply(deepcopy(entry)):
            acked = frozenset(disk.acked)
            for tree in disk.states(random, extra):
                key = (frozenset(tree.items()), acked)
                found.setdefault(key, State(tree, acked, at))
    return list(found.values())


def read_trace(*paths: Path) -> list[dict[str, Any]]:
    """What was recorded, one process after the other."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]
