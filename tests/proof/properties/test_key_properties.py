"""Keys: one byte string for each, and back; what is ambiguous is refused."""

from __future__ import annotations

import enum
import json

import pyarrow as pa
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from resumable_tasks.errors import InvalidKey
from resumable_tasks.items import keys
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.keytable import KeyTable
from resumable_tasks.items.plan import Planner, Planning
from resumable_tasks.runners.values.tables import array
from tests.proof.properties import strategies


@given(strategies.keys)
def test_a_key_comes_back_from_its_canonical_form(key) -> None:
    line = keys.canonical(key)
    back = keys.parse(line)
    assert back == key
    assert type(back) is type(key)
    assert keys.canonical(back) == line


@given(strategies.keys)
def test_a_canonical_form_is_a_line_of_json_that_can_be_joined(key) -> None:
    line = keys.canonical(key)
    assert b"\n" not in line
    assert b"\t" not in line
    assert not line.startswith(b"#")
    found = json.loads(line)
    assert (tuple(found) if isinstance(found, list) else found) == key


@given(strategies.keys, strategies.keys)
@example(1, "1")
@example(1, (1,))
@example("1", ("1",))
@example((1,), ("1",))
@example("a,b", ("a", "b"))
@example(("a,b",), ("a", "b"))
@example("[1]", (1,))
@example('["a"]', ("a",))
@example("é", "e\u0301")
def test_different_keys_have_different_forms(one, other) -> None:
    same = one == other and type(one) is type(other)
    assert (keys.canonical(one) == keys.canonical(other)) == same


@given(st.lists(strategies.keys))
def test_many_are_as_each(many) -> None:
    given_types = [type(key) for key in many]
    found, lines = keys.canonical_all(list(many))
    assert lines == [keys.canonical(key) for key in many]
    assert found == many
    assert [type(key) for key in found] == given_types
    joined = keys.join(lines)
    assert keys.parse_lines(joined) == many
    assert list(keys.split(joined)) == lines


@given(st.lists(st.text(), min_size=1))
def test_many_strings_are_as_each_and_none_may_be_empty(many) -> None:
    if "" in many:
        with pytest.raises(InvalidKey):
            keys.canonical_all(many)
    else:
        assert keys.canonical_all(many)[1] == [keys.canonical(key) for key in many]


@given(st.lists(st.text('ab"\\\n\t\x7f\u2028é', min_size=1, max_size=5), max_size=5))
def test_many_strings_that_need_escapes_are_as_each(many) -> None:
    assert keys.canonical_all(many) == (many, [keys.canonical(key) for key in many])


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Name(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        (Colour.RED, "red"),
        (Number.ONE, 1),
        (Name("a"), "a"),
        ((Colour.RED, Number.ONE), ("red", 1)),
    ],
)
def test_look_alikes_are_taken_for_what_they_look_like(key, plain) -> None:
    assert keys.canonical(key) == keys.canonical(plain)
    (found,), (line,) = keys.canonical_all([key])
    assert found == plain
    assert type(found) is type(plain)
    assert line == keys.canonical(plain)


class Indexless:
    """As an array of numpy: it has the method, and refuses."""

    def __index__(self) -> int:
        raise TypeError("only integer scalar arrays can be converted to a scalar index")


class Unhashable(list):
    __hash__ = None


surrogates = st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"])
wide = st.one_of(st.integers(max_value=-(2**63) - 1), st.integers(min_value=2**64))
refused = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.just(""),
    st.just(()),
    st.binary(),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.text()),
    st.sets(st.integers()),
    st.complex_numbers(),
    st.decimals(),
    st.dates(),
    st.uuids(),
    wide,
    st.builds("{}{}{}".format, st.text(), surrogates, st.text()),
    strategies.one_of_these([10**5_000, -(10**5_000), "x" * 70_000, "é" * 40_000]),
    strategies.one_of_these(
        [("x" * 40_000,) * 2, object(), object, len, Unhashable(), Indexless(), ..., range(3)]
    ),
    st.tuples(strategies.tuples),
    st.tuples(strategies.parts, strategies.tuples),
)


@given(refused)
def test_what_is_ambiguous_is_refused(key) -> None:
    for bad in (key, ("a", key)):
        with pytest.raises(InvalidKey) as caught:
            keys.canonical(bad)
        message = str(caught.value)
        assert len(message) < 600
        message.encode()
    with pytest.raises(InvalidKey):
        keys.canonical_all(["a", key])
    with pytest.raises(InvalidKey):
        keys.canonical_all([key])


@given(st.one_of(strategies.keys, refused))
def test_a_value_is_shown_short_and_in_ascii(value) -> None:
    text = keys.shorten(value)
    assert len(text) <= 80
    assert text.isprintable()


FIELDS = ["a", "b", "c"]


@given(
    st.one_of(st.none(), st.sampled_from(FIELDS), st.permutations(FIELDS).map(tuple)),
    st.lists(st.fixed_dictionaries(dict.fromkeys(FIELDS, strategies.parts)), max_size=5),
)
def test_all_keys_are_extracted_as_each_is(spec, items) -> None:
    scheme = KeyScheme(spec)
    if spec is None:
        items = [item["a"] for item in items]
    extract = scheme.extractor()
    each = [extract(item) for item in items]
    assert scheme.extract_all(items) == each
    for key, item in zip(each, items, strict=True):
        assert key == (
            item
            if spec is None
            else tuple(item[n] for n in spec)
            if scheme.composite
            else item[spec]
        )
        assert scheme.values(key) == (key if scheme.composite else (key,))


@given(st.lists(st.fixed_dictionaries({"a": strategies.parts}), min_size=1, max_size=5))
def test_a_tuple_of_one_field_is_a_composite_key(items) -> None:
    assert KeyScheme(("a",)).extract_all(items) == [(item["a"],) for item in items]


def as_json(key) -> str:
    return keys.canonical(key).decode()


# Tuples and texts, of which some are the text of one of the tuples, or of another one.
alike = st.one_of(
    strategies.tuples,
    strategies.texts,
    strategies.tuples.map(as_json),
    st.sampled_from([("a", 1), '["a",1]', '["a", 1]', '"[\\"a\\",1]"', "[1]", (1,), "[1", "[[1]]"]),
)
narrow = st.integers(-(2**63), 2**63 - 1)  # that Arrow finds a type for by itself
schemes = st.one_of(
    st.tuples(st.just(KeyScheme("id")), st.lists(narrow, unique=True)),
    st.tuples(
        st.sampled_from([KeyScheme("id"), KeyScheme(None), KeyScheme(lambda item: item["id"])]),
        st.lists(alike, unique=True),
    ),
    st.tuples(
        st.just(KeyScheme(("one", "two"))),
        st.lists(st.tuples(strategies.texts, narrow), unique=True),
    ),
)


def admitted(scheme: KeyScheme, many: list) -> list:
    """Those of these keys that a run admits, which takes each by itself, in one batch a key."""
    known, taken = KeyTable(), []
    for key in many:
        planner = Planner(Planning(lambda item: item[0], 1), known)
        if scheme.composite:
            planner = Planner(Planning(("one", "two"), 1), known)
        item = dict(zip(("one", "two"), key, strict=True)) if scheme.composite else (key,)
        try:
            (batch,) = planner.batches([item])
        except InvalidKey:
            continue
        known.add(batch.lines, 0)
        taken.append(key)
    return taken


@given(schemes)
@example((KeyScheme(None), [("a", 1), '["a",1]']))
@example((KeyScheme(None), ['["a",1]', ("a", 1)]))
def test_the_keys_of_rows_are_had_from_their_columns(case) -> None:
    """For all keys that may stand in one checkpoint."""
    scheme, many = case
    many = admitted(scheme, many)
    lines = [keys.canonical(key) for key in many]
    columns = zip(*map(scheme.values, many), strict=True) if many else ((),) * len(scheme.columns)
    rows = pa.table(
        [array(name, list(each)) for name, each in zip(scheme.columns, columns, strict=True)],
        names=list(scheme.columns),
    )
    again = KeyScheme.of(json.loads(json.dumps(scheme.describe())))
    for each in (scheme, again):
        assert each.columns == scheme.columns
        assert each.lines_of(rows, set(lines)) == lines
    if not any(line.startswith(b'"[') for line in lines):  # then nobody has to say which there are
        assert again.lines_of(rows) == lines


@given(alike)
def test_a_twin_is_the_other_key_of_the_same_text(key) -> None:
    line = keys.canonical(key)
    other = keys.twin(line)
    assume(other is not None)
    (here,), (there,) = (KeyScheme(None).values(each) for each in (key, keys.parse(other)))
    assert here == there
    assert (other != line, keys.twin(other)) == (True, line)


def test_a_tuple_that_a_row_holds_as_it_is_is_known_again() -> None:
    rows = pa.table({"key": [["a", "b"], ["c", "d"]]})
    assert KeyScheme(None).lines_of(rows) == [b'["a","b"]', b'["c","d"]']
