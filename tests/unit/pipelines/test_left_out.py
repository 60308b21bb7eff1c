"""What is left out is counted by reason, and shown in one line."""

from __future__ import annotations

import pytest

from pipelines.sources.left_out import LeftOut, left_out_of, printable


def test_counts_by_reason_with_the_first_names():
    left = LeftOut()
    assert not left
    assert left.text() == ""
    for k in range(5):
        left.add(".gif", f"a/{k}.gif")
    left.add("links", b"a/l.jpg", 2000)
    assert left
    assert left.counts == {".gif": 5, "links": 2000}
    assert left.first == {".gif": ["a/0.gif", "a/1.gif", "a/2.gif"], "links": ["a/l.jpg"]}
    assert left.text() == "left out: links 2,000, .gif 5 (first: a/l.jpg)"


def test_two_are_merged_in_order():
    one, two = LeftOut(), LeftOut()
    one.add("hidden", ".a")
    two.add("hidden", ".b", 7)
    two.add("hidden", ".c")
    two.add("hidden", ".d")
    two.add(".gif", "e.gif")
    one.merge(two)
    assert one.counts == {"hidden": 10, ".gif": 1}
    assert one.first == {"hidden": [".a", ".b", ".c"], ".gif": ["e.gif"]}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("é.jpg", "é.jpg"),
        (b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), r"caf\udce9.jpg"),
        ("a\nb\x1b[31m", r"a\nb\x1b[31m"),
    ],
)
def test_a_name_stays_on_one_line(name, shown):
    assert printable(name) == shown
    left = LeftOut()
    left.add("x", name)
    assert left.text() == f"left out: x 1 (first: {shown})"


def test_a_source_without_the_attribute_left_nothing_out():
    assert left_out_of(object()) == LeftOut()
