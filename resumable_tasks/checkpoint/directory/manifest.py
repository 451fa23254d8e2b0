"""The identity of a checkpoint: ``job.json``, created once, never rewritten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import asdict, replace
from typing import Any

from resumable_tasks.base.clock import now
from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import command, shell_words
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    CheckpointUnusable,
    StoreError,
)

NAME = "job.json"
FORMAT = 1
_MOST_BYTES = 1 << 20
OPEN = ("job", "key", "results")


@frozen
class Manifest:
    """The purpose of a checkpoint. ``id``, new in each checkpoint, anchors the journal's chain.

    ``version`` is the handler's version when the checkpoint was made; a later one that was
    accepted stands in the claim of the run that brought it. ``job``, ``version``, ``key`` and
    ``results`` are empty where an import has left them open: the first run names them, in its
    claim. A key that is open is known to be no tuple of fields.
    """

    job: str
    version: str
    key: Any
    results: str
    id: str = ""
    created: str = ""
    format: int = FORMAT

    def differences(self, other: Manifest) -> dict[str, tuple[Any, Any]]:
        """The parts of the identity that differ, except the version: name → (here, other)."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in OPEN}
        found = {name: two for name, two in pairs.items() if two[0] != two[1] and "" not in two}
        if self.key == "" and isinstance(other.key, dict) and "fields" in other.key:
            found["key"] = ("of one value", other.key)
        return found

    def named(self, names: Mapping[str, Any]) -> Manifest:
        """With these names in the place of those that are open."""
        known: Any = {name: names[name] for name in self.open & names.keys()}
        if has_no_fields(self.key) and has_no_fields(names.get("key")):
            known["key"] = names["key"]
        return replace(self, **known)

    def with_moved_key(self, wanted: Manifest) -> Manifest:
        """With the key of ``wanted``, where both stand in the same column of the rows."""
        moved = has_no_fields(self.key) and has_no_fields(wanted.key)
        return replace(self, key=wanted.key) if moved else self

    @property
    def open(self) -> Set[str]:
        """The parts of the identity that the first run decides."""
        return {name for name in OPEN if not getattr(self, name)}


def claimed(
    store: Store,
    made: Manifest,
    names: Mapping[str, Any],
    wanted: Manifest,
    *,
    same_key: bool = False,
) -> tuple[Manifest, dict[str, Any]]:
    """Return the manifest from a claim on, and the claim's ``info`` that says so.

    ``names`` are those of the claims before. They are said again, since a claim may be lost.
    A moved key is not said before it has been looked at: a later record says it. Raises
    `CheckpointMismatch` if they are not what is wanted.
    """
    found = made.named(names)
    moved = {"key": found.key} if found.key != made.key else {}
    found = found.with_moved_key(wanted) if same_key else found
    check(store, found, wanted)
    found = found.named(asdict(wanted))
    told = moved | {name: getattr(found, name) for name in made.open - found.open}
    return found, {"names": told} if told else {}


def has_no_fields(key: Any) -> bool:
    """True for a described key that stands in a column of its own: of whole items or a callable."""
    return key == "item" or (isinstance(key, dict) and "callable" in key)


@frozen
class Stored:
    """A manifest as it stands in the store, byte by byte."""

    manifest: Manifest
    data: bytes


def establish(store: Store, found: Stored | None, wanted: Manifest) -> Manifest:
    """The manifest that was found in the store; this one, created, if there was none.

    Proves on the way that the store's put-if-absent refuses a name that is taken: by the bytes that
    stand there, so that nothing is lost where it does not. Raises `CheckpointUnusable`.
    """
    if found is None:
        made = replace(wanted, id=token(16), created=now(), format=FORMAT)
        found = Stored(made, _encoded(made))
        if not _create(store, found.data):
            found = _found(store)  # another run was quicker
    if _create(store, found.data):
        raise CheckpointUnusable(
            f"{store.url}: this store lets two callers create one name, so two runs could not "
            "be kept apart there; use another place"
        )
    return found.manifest


def _create(store: Store, data: bytes) -> bool:
    try:
        return store.create(NAME, data)
    except CreateUnknown as error:
        if error.readable_is_durable and NAME in store.list(""):
            return False  # whoever has made it, it is there
        raise


def read(store: Store) -> Manifest:
    """The manifest that stands in the store.

    Raises ``FileNotFoundError`` if there is none, `CheckpointDamaged` if it is unreadable, and
    `CheckpointMismatch` if it is of a format that this version does not know.
    """
    return _found(store).manifest


def find(store: Store) -> Stored | None:
    """The manifest that stands in the store, None if there is none. Raises as `read` does."""
    try:
        return _found(store)
    except FileNotFoundError:
        return None


def _found(store: Store) -> Stored:
    try:
        data = disk.read(store, NAME, _MOST_BYTES)
        found = json.loads(data)
        if (version := found["format"]) == FORMAT:
            return Stored(parsed(found), data)
        if type(version) is not int:
            raise TypeError("its format is no number")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(store, f"it cannot be read: {error!r}") from error
    except CheckpointDamaged as error:
        raise damaged(store, error.detail) from error
    raise CheckpointMismatch(
        f"{store.url} is in format {version}, and this version of resumable-tasks knows format "
        f"{FORMAT}",
        remedy="Install the version that wrote it, or name another checkpoint; if no other version "
        f"did, {NAME} was changed, and {command('repair', store.url)} restores it",
    )


def parsed(fields: dict[str, Any]) -> Manifest:
    """A manifest from its JSON. Raises ``TypeError`` or ``ValueError`` for what is none."""
    found = Manifest(**fields)
    texts = (found.job, found.version, found.results, found.id, found.created)
    if not all(isinstance(text, str) for text in texts) or not found.id or found.format is True:
        raise ValueError("a field is not the text that it has to be")
    return found


def put_back(store: Store, found: Manifest) -> None:
    """Create the manifest again. Raises `StoreError` if it is there."""
    if not _create(store, _encoded(found)):
        raise StoreError(
            f"{store.url}: {NAME} was created by another program meanwhile",
            remedy="Run the same command again",
        )


def told(found: Manifest) -> dict[str, Any]:
    """The manifest for the first record, which names its id anyway."""
    fields = asdict(found)
    del fields["id"]
    return fields


def _encoded(found: Manifest) -> bytes:
    return json.dumps(asdict(found), ensure_ascii=False, indent=1).encode() + b"\n"


def damaged(store: Store, what: str) -> CheckpointDamaged:
    """The error for an unusable manifest, with the ways out."""
    quoted = shell_words(store.url)
    return CheckpointDamaged(
        what,
        files=(NAME,),
        place=store.url,
        remedy=f"`resumable repair {quoted}` restores it from the journal where that has it; else "
        f"put it back from a copy; or `resumable reset {quoted}` archives the checkpoint, and the "
        "next run starts from the beginning",
    )


def check(store: Store, found: Manifest, wanted: Manifest) -> None:
    """Raises `CheckpointMismatch`, with both sides and the ways out, unless they are the same."""
    differences = found.differences(wanted)
    if differences:
        lines = "\n".join(
            f"  {name:8} checkpoint: {json.dumps(here)}   this run: {json.dumps(there)}"
            for name, (here, there) in differences.items()
        )
        here, there = differences.get("key", ("", ""))
        imported = (
            "; or, if the items were imported without --key, reset it and import them with it"
            if here == "item"
            else ""
        )
        moved = (
            "; or, if key= gives every item the key that it had, same_key=True, which looks at a "
            "sample and keeps what is completed"
            if has_no_fields(here) and has_no_fields(there)
            else ""
        )
        renamed = ", by name= if the function was renamed" if "job" in differences else ""
        raise CheckpointMismatch(
            f"the checkpoint {store.url} was made by a job that differs:\n{lines}",
            remedy=f"Ways out: change the job back{renamed}{moved}; or name another "
            f"checkpoint=; or `resumable reset {store.url}`, which archives it and starts from the "
            "beginning"
            f"{imported}",
        )


def check_fingerprint(store: Store, found: Any, wanted: Any) -> None:
    """Raises `CheckpointMismatch`, with the ways out, where two schemes of fingerprints meet."""
    if found is not None and wanted is not None and found != wanted:
        raise CheckpointMismatch(
            f"the checkpoint {store.url} has fingerprints of another kind, so that every item "
            "would count as changed:\n"
            f"  fingerprint  checkpoint: {json.dumps(found)}   this run: {json.dumps(wanted)}",
            remedy='Ways out: set Changes(by=…) back; on_version_change="reuse" takes what is '
            "completed for unchanged, and compares with the new fingerprints from here on; "
            'on_version_change="restart" archives the checkpoint and starts from the beginning',
        )


def check_version(store: Store, found: str, wanted: str) -> None:
    """Raises `CheckpointMismatch`, with the ways out, unless the versions are the same."""
    if found != wanted and found and wanted:
        raise CheckpointMismatch(
            f"the checkpoint {store.url} was made by another version of the handler:\n"
            f"  version  checkpoint: {found!r}   this run: {wanted!r}",
            remedy='Ways out: on_version_change="reuse" keeps what is completed and goes on with '
            'the new version; on_version_change="restart" archives the checkpoint and starts from '
            "the beginning; or name another checkpoint=",
        )
