"""The manifest: the identity of a checkpoint in ``job.json``, created once, never rewritten."""

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
    """The identity of a checkpoint. ``id`` is unique and anchors the journal's chain.

    ``version`` is the handler's version when the checkpoint was created; a later accepted version
    is in the claim of the run that brought it. An import may leave ``job``, ``version``, ``key``
    and ``results`` empty, that is open: the first run sets them in its claim. An open key is known
    not to be a tuple of fields.
    """

    job: str
    version: str
    key: Any
    results: str
    id: str = ""
    created: str = ""
    format: int = FORMAT

    def differences(self, other: Manifest) -> dict[str, tuple[Any, Any]]:
        """The parts of the identity that differ, without the version: name → (here, other)."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in OPEN}
        found = {name: two for name, two in pairs.items() if two[0] != two[1] and "" not in two}
        if self.key == "" and isinstance(other.key, dict) and "fields" in other.key:
            found["key"] = ("of one value", other.key)
        return found

    def named(self, names: Mapping[str, Any]) -> Manifest:
        """The manifest with these names filled in."""
        known: Any = {name: names[name] for name in self.open & names.keys()}
        if has_no_fields(self.key) and has_no_fields(names.get("key")):
            known["key"] = names["key"]
        return replace(self, **known)

    def with_moved_key(self, wanted: Manifest) -> Manifest:
        """The manifest with the key of ``wanted``, if both keys use the same column of the rows."""
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
    """Return the manifest that holds from a claim on, and the fields of the claim's ``info``.

    ``names`` were set by earlier claims; the claim repeats them, because a claim may be lost. It
    does not name a moved key, which must be verified first; a later record names it. Raises
    `CheckpointMismatch` if the manifest is not the wanted one.
    """
    found = made.named(names)
    moved = {"key": found.key} if found.key != made.key else {}
    found = found.with_moved_key(wanted) if same_key else found
    check(store, found, wanted)
    found = found.named(asdict(wanted))
    told = moved | {name: getattr(found, name) for name in made.open - found.open}
    return found, {"names": told} if told else {}


def has_no_fields(key: Any) -> bool:
    """True for a key with a column of its own: the whole item, or the result of a callable."""
    return key == "item" or (isinstance(key, dict) and "callable" in key)


@frozen
class Stored:
    """A manifest with its exact bytes in the store."""

    manifest: Manifest
    data: bytes


def establish(store: Store, found: Stored | None, wanted: Manifest) -> Manifest:
    """Return the manifest found in the store, or create ``wanted`` if there is none.

    Also proves that the store's put-if-absent refuses a taken name. It tries that with the bytes
    that are there, so nothing is lost if it does not. Raises `CheckpointUnusable`.
    """
    if found is None:
        made = replace(wanted, id=token(16), created=now(), format=FORMAT)
        found = Stored(made, _encoded(made))
        if not _create(store, found.data):
            found = _found(store)  # another run was quicker
    if _create(store, found.data):
        raise CheckpointUnusable(
            f"{store.url}: this store lets two callers create the same name, so it cannot keep two "
            "runs apart; use another place"
        )
    return found.manifest


def _create(store: Store, data: bytes) -> bool:
    try:
        return store.create(NAME, data)
    except CreateUnknown as error:
        if error.readable_is_durable and NAME in store.list(""):
            return False  # it exists, whoever created it
        raise


def read(store: Store) -> Manifest:
    """The manifest in the store.

    Raises ``FileNotFoundError`` if there is none, `CheckpointDamaged` if it is unreadable, and
    `CheckpointMismatch` if this version does not know its format.
    """
    return _found(store).manifest


def find(store: Store) -> Stored | None:
    """The manifest in the store, None if there is none. Raises as `read` does otherwise."""
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
            raise TypeError("its format is not a number")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(store, f"it cannot be read: {error!r}") from error
    except CheckpointDamaged as error:
        raise damaged(store, error.detail) from error
    raise CheckpointMismatch(
        f"{store.url} is in format {version}, but this version of resumable-tasks supports format "
        f"{FORMAT}",
        remedy="Install the version that wrote it, or name another checkpoint. If no other version "
        f"wrote it, {NAME} was edited: {command('repair', store.url)} restores it",
    )


def parsed(fields: dict[str, Any]) -> Manifest:
    """A manifest from its JSON fields. Raises ``TypeError`` or ``ValueError`` if malformed."""
    found = Manifest(**fields)
    texts = (found.job, found.version, found.results, found.id, found.created)
    if not all(isinstance(text, str) for text in texts) or not found.id or found.format is True:
        raise ValueError("a field is not a string as required")
    return found


def put_back(store: Store, found: Manifest) -> None:
    """Create the manifest again. Raises `StoreError` if there is one."""
    if not _create(store, _encoded(found)):
        raise StoreError(
            f"{store.url}: {NAME} was created by another program meanwhile",
            remedy="Run the same command again",
        )


def told(found: Manifest) -> dict[str, Any]:
    """The manifest's fields for the first record, without the id, which is its ``previous``."""
    fields = asdict(found)
    del fields["id"]
    return fields


def _encoded(found: Manifest) -> bytes:
    return json.dumps(asdict(found), ensure_ascii=False, indent=1).encode() + b"\n"


def damaged(store: Store, what: str) -> CheckpointDamaged:
    """The error for an unusable manifest, with remedies."""
    quoted = shell_words(store.url)
    return CheckpointDamaged(
        what,
        files=(NAME,),
        place=store.url,
        remedy=f"`resumable repair {quoted}` restores it from the journal if possible; otherwise "
        f"restore it from a copy; or `resumable reset {quoted}` archives the checkpoint, and the "
        "next run starts from the beginning",
    )


def check(store: Store, found: Manifest, wanted: Manifest) -> None:
    """Raise `CheckpointMismatch`, with both sides and remedies, unless they are the same."""
    differences = found.differences(wanted)
    if differences:
        lines = "\n".join(
            f"  {name:8} checkpoint: {json.dumps(here)}   this run: {json.dumps(there)}"
            for name, (here, there) in differences.items()
        )
        here, there = differences.get("key", ("", ""))
        imported = (
            "; or, if the items were imported without --key, reset the checkpoint and import them "
            "again with --key"
            if here == "item"
            else ""
        )
        moved = (
            "; or, if key= still gives every item the same key, set same_key=True, which checks a "
            "sample and keeps completed items"
            if has_no_fields(here) and has_no_fields(there)
            else ""
        )
        renamed = ", with name= if the function was renamed" if "job" in differences else ""
        raise CheckpointMismatch(
            f"the checkpoint {store.url} was made by a different job:\n{lines}",
            remedy=f"Options: change the job back{renamed}{moved}; or name another checkpoint=; or "
            f"`resumable reset {store.url}`, which archives it and starts from the "
            f"beginning{imported}",
        )


def check_fingerprint(store: Store, found: Any, wanted: Any) -> None:
    """Raise `CheckpointMismatch`, with remedies, if the fingerprint schemes differ."""
    if found is not None and wanted is not None and found != wanted:
        raise CheckpointMismatch(
            f"the checkpoint {store.url} has another kind of fingerprints, so every item would "
            f"count as changed:\n  fingerprint  checkpoint: {json.dumps(found)}   this run: "
            f"{json.dumps(wanted)}",
            remedy='Options: set Changes(by=…) back; on_version_change="reuse" treats completed '
            "items as unchanged and compares the new fingerprints from now on; "
            'on_version_change="restart" archives the checkpoint and starts from the beginning',
        )


def check_version(store: Store, found: str, wanted: str) -> None:
    """Raise `CheckpointMismatch`, with remedies, unless the versions are the same."""
    if found != wanted and found and wanted:
        raise CheckpointMismatch(
            f"the checkpoint {store.url} was made by another version of the handler:\n"
            f"  version  checkpoint: {found!r}   this run: {wanted!r}",
            remedy='Options: on_version_change="reuse" keeps completed items and continues with '
            'the new version; on_version_change="restart" archives the checkpoint and starts from '
            "the beginning; or name another checkpoint=",
        )
