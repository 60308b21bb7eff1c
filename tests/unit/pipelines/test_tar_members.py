"""All headers that tar files have are understood, and damaged ones are refused with their place."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from hvdtrain.errors import DataError
from pipelines.sources.left_out import LeftOut
from pipelines.sources.shards import ShardReader
from pipelines.sources.tar import TarShards
from pipelines.sources.tar_links import members
from tests.unit.pipelines.odd_tars import END, header, member, padded, pair, pax, record
from tests.unit.pipelines.tar_samples import contents, make, sample


def put(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


def listed(path: Path) -> list[tuple[bytes, bytes]]:
    """Name and content of all members, links too."""
    reader = ShardReader([str(path)])
    return [
        (found.name, reader.read(0, found.offset, found.size).tobytes())
        for found in members(reader, 0, LeftOut())
    ]


def by_tarfile(path: Path) -> list[tuple[bytes, bytes]]:
    """The same by Python's module, which goes on behind end marks."""
    with tarfile.open(path, "r:", ignore_zeros=True, encoding="utf-8") as archive:
        opened = [(found, archive.extractfile(found)) for found in archive]
        return [
            (found.name.encode("utf-8", "surrogateescape"), file.read())
            for found, file in opened
            if file is not None and found.type != b"V"
        ]


BINARY_SIZE = b"\x80" + (3).to_bytes(11, "big")
WELL_FORMED = {
    "v7": [member(b"a.jpg", b"old", b"\0", magic=bytes(8))],
    "v7 folder": [member(b"d/", b"", b"\0", magic=bytes(8)), member(b"d/a.jpg", b"x", b"\0")],
    "contiguous": [member(b"a.jpg", b"x", b"7")],
    "binary size": [header(b"a.jpg", BINARY_SIZE), padded(b"abc")],
    "size with blanks": [header(b"a.jpg", b"         3 \0"), padded(b"abc")],
    "empty size": [header(b"a.jpg", bytes(12))],
    "checksum ends with a blank": [header(b"a.jpg", 0, checksum=None)],
    "prefix": [member(b"a.jpg", b"x", prefix=b"folder/more")],
    "GNU has no prefix": [member(b"a.jpg", b"x", magic=b"ustar  \0")],
    "pax path": [pax((b"path", "é/ü.jpg".encode())), member(b"short", b"x")],
    "pax path not UTF-8": [pax((b"path", b"caf\xe9.jpg")), member(b"short", b"x")],
    "pax size": [pax((b"size", b"3"), (b"path", b"b.jpg")), header(b"a.jpg", 0), padded(b"abc")],
    "pax and others": [pax((b"mtime", b"1.5"), (b"path", b"b=c d.jpg")), member(b"a", b"x")],
    "global": [
        pax((b"comment", b"of git archive"), kind=b"g"),
        pax((b"path", b"b.jpg")),
        member(b"a", b"x"),
        member(b"c.jpg", b"y"),
    ],
    "Solaris": [
        member(b"p", record(b"path", b"b.jpg"), b"X"),
        member(b"a", b"x"),
    ],
    "GNU long name": [member(b"././@LongLink", b"n" * 600 + b".jpg\0", b"L"), member(b"n", b"x")],
    "GNU long link": [
        member(b"n" * 99, b"x"),
        member(b"././@LongLink", b"n" * 99 + b"\0", b"K"),
        member(b"l.jpg", b"", b"1", target=b"n" * 40),
    ],
    "hard link": [member(b"a.jpg", b"x"), member(b"b.jpg", b"", b"1", target=b"a.jpg")],
    "hard link with a size": [
        member(b"a.jpg", b"xyz"),
        header(b"b.jpg", 3, b"1", target=b"a.jpg"),
        member(b"c.jpg", b"y"),
    ],
    "hard link to the nearest before": [
        member(b"a.jpg", b"one"),
        member(b"a.jpg", b"two"),
        member(b"b.jpg", b"", b"1", target=b"a.jpg"),
        member(b"a.jpg", b"three"),
    ],
    "symbolic link": [
        member(b"d/e/a.jpg", b"", b"2", target=b"../b.jpg"),
        member(b"d/b.jpg", b"x"),
    ],
    "links to links": [
        member(b"a.jpg", b"x"),
        member(b"b.jpg", b"", b"1", target=b"a.jpg"),
        member(b"c.jpg", b"", b"2", target=b"b.jpg"),
        member(b"d.jpg", b"", b"2", target=b"c.jpg"),
    ],
    "joined": [member(b"a.jpg", b"x"), END, member(b"b.jpg", b"y")],
    "joined with records": [padded(member(b"a.jpg", b"x") + bytes(9216)), member(b"b.jpg", b"y")],
    "a label of the volume": [member(b"disk 1", b"", b"V"), member(b"a.jpg", b"x")],
}


@pytest.mark.parametrize("kind", WELL_FORMED)
def test_every_format_is_read_as_by_tarfile(tmp_path, kind):
    path = put(tmp_path / "s.tar", *WELL_FORMED[kind], END)
    found = listed(path)
    assert found == by_tarfile(path)
    assert found


def test_a_checksum_of_signed_bytes(tmp_path):
    block = bytearray(header("ä.jpg".encode(), 1))
    block[148:156] = b"        "
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % signed
    path = put(tmp_path / "s.tar", bytes(block), padded(b"x"), END)
    assert listed(path) == by_tarfile(path) == [("ä.jpg".encode(), b"x")]


def test_a_prefix_of_star_ends_before_its_times(tmp_path):
    block = bytearray(header(b"a.jpg", 1, prefix=b"p" * 131))
    block[476:500] = b"14000000000 14000000000 "
    block[508:512] = b"tar\0"
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    path = put(tmp_path / "s.tar", bytes(block), padded(b"x"), END)
    assert [name for name, _content in listed(path)] == [b"p" * 131 + b"/a.jpg"]


@pytest.mark.parametrize("record", [1, 20, 64, 2048])
@pytest.mark.parametrize("blocks", [2, 18, 19, 20])
def test_end_marks_of_all_lengths(tmp_path, record, blocks):
    """An end mark is two blocks, filled up to a whole number of records."""
    content = member(b"a.jpg", b"x" * 512 * (blocks - 1))
    zeros = 2 + -(blocks + 2) % record
    assert len(listed(put(tmp_path / "s.tar", content, bytes(512 * zeros)))) == 1


def test_an_end_mark_of_one_block_has_lost_nothing(tmp_path):
    assert len(listed(put(tmp_path / "s.tar", member(b"a.jpg", b"x"), bytes(512)))) == 1


WHOLE = pair(b"a") + pair(b"b")
DAMAGED = {
    "a digit 9": ([header(b"a.jpg", b"00000000009\0"), END], 0, "size of a member is not a number"),
    "a negative size": ([header(b"a.jpg", b"\xff" * 12), END], 0, "is not a number"),
    "a huge size": ([header(b"a.jpg", b"\x80" + b"\x7f" * 11), END], 0, "cut short within 'a.jpg'"),
    "a wrong checksum": ([WHOLE, header(b"a", checksum=b"0001234\0"), END], 4096, "or damaged"),
    "no checksum": ([header(b"a", checksum=b"zzzzzzzz"), END], 0, "not a tar file, or damaged"),
    "cut in a member": ([WHOLE, header(b"c.jpg", 900), bytes(512)], 4096, "512 of 900 bytes"),
    "cut in a header": ([WHOLE, header(b"c.jpg")[:300]], 4096, "no end mark"),
    "no end mark": ([WHOLE], 4096, "cut short: it has no end mark"),
    "an empty file": ([], 0, "an empty file"),
    "zeros at the end": ([WHOLE, bytes(20480)], 4096, "20,480 zero bytes, more than an end mark"),
    "millions of zeros": ([WHOLE, bytes(3 << 20)], 4096, "more than a million zero bytes"),
    "zeros alone": ([bytes(3 << 20)], 0, "more than a million zero bytes"),
    "zeros between": ([WHOLE, bytes(30 * 512), WHOLE, END], 4096, "15,360 zero bytes"),
    "text behind the end": ([WHOLE, END, b"more" * 200], 5120, "not a tar file, or damaged"),
    "a little behind the end": ([WHOLE, END, b"more"], 5120, "no end mark"),
    "nothing after a long name": ([member(b"@", b"n" * 300, b"L"), END], 1024, "nothing follows"),
    "nothing after pax": ([pax((b"path", b"a"))], 1024, "cut short: it has no end mark"),
    "a pax length of 5000 digits": (
        [member(b"p", b"9" * 5000 + b" path=a\n", b"x"), END],
        512,
        "not a pax record",
    ),
    "a pax length of 0": ([member(b"p", b"0 path=a\n", b"x"), END], 512, "not a pax record"),
    "a pax length beyond": ([member(b"p", b"99 path=a\n", b"x"), END], 512, "not a pax record"),
    "a pax length too short": ([member(b"p", b"4 path=a\n", b"x"), END], 512, "not a pax record"),
    "a second pax record": (
        [member(b"p", record(b"path", b"a") + b"oops", b"x"), END],
        521,
        "not a pax record",
    ),
    "a pax size of 5000 digits": (
        [pax((b"size", b"1" * 5000)), member(b"a.jpg"), END],
        5632,
        "size in a pax header is not a number",
    ),
    "a pax size below 0": (
        [pax((b"size", b"-1")), member(b"a.jpg"), END],
        1024,
        "size in a pax header is not a number",
    ),
    "a pax size beyond": (
        [pax((b"size", b"9" * 19)), member(b"a.jpg"), END],
        1024,
        "cut short within 'a.jpg'",
    ),
    "a long name of 2 MB": (
        [member(b"@", b"n" * (2 << 20), b"L"), member(b"a"), END],
        0,
        "a pax header or long name of 2,097,152 bytes",
    ),
    "pax sparse": (
        [pax((b"GNU.sparse.major", b"1")), member(b"a.jpg", b"x"), END],
        1024,
        "a.jpg: a sparse or split file",
    ),
    "GNU sparse": ([member(b"a.jpg", b"x", b"S"), END], 0, "a.jpg: a sparse or split file"),
    "many volumes": ([member(b"a.jpg", b"x", b"M"), END], 0, "a.jpg: a sparse or split file"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_damaged_is_refused_with_its_place(tmp_path, kind):
    parts, place, problem = DAMAGED[kind]
    path = put(tmp_path / "s.tar", *parts)
    with pytest.raises(DataError) as error:
        listed(path)
    assert str(error.value).startswith(f"{path}: at byte {place}: ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_many_pax_records_take_linear_memory_and_are_all_read(tmp_path):
    records = [(b"comment%d" % k, b"x" * 20) for k in range(10_000)]
    path = put(tmp_path / "s.tar", pax(*records, (b"path", b"last.jpg")), member(b"a", b"x"), END)
    tracemalloc.start()
    assert listed(path) == [(b"last.jpg", b"x")]
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "link",
    [
        member(b"b.jpg", b"", b"1", target=b"later.jpg"),
        member(b"b.jpg", b"", b"2", target=b"nowhere.jpg"),
        member(b"b.jpg", b"", b"2", target=b"/etc/passwd"),
        member(b"b.jpg", b"", b"2", target=b"b.jpg"),
        member(b"b.jpg", b"", b"2", target=b"../../a.jpg"),
        member(b"b.jpg", b"", b"2", target=b"folder"),
    ],
)
def test_links_that_lead_to_no_file_in_the_tar_are_counted(tmp_path, link):
    parts = (member(b"folder/", b"", b"5"), link, pair(b"a"), member(b"later.jpg", b"x"))
    left_out = LeftOut()
    reader = ShardReader([str(put(tmp_path / "s.tar", *parts, END))])
    names = [found.name for found in members(reader, 0, left_out)]
    assert names == [b"a.jpg", b"a.cls", b"later.jpg"]
    assert left_out.counts == {"links to no file in the tar": 1}
    assert left_out.first == {"links to no file in the tar": ["b.jpg"]}


def test_devices_are_counted_and_have_no_content(tmp_path):
    path = put(
        tmp_path / "s.tar", header(b"null.jpg", 99, b"3"), header(b"f", 0, b"6"), pair(b"a"), END
    )
    source = TarShards(str(path), "data.train")
    assert contents(source) == [(b"a", "0")]
    assert source.left_out.counts == {"devices": 2}


def test_samples_do_not_reach_across_joined_archives(tmp_path):
    one, two = make(tmp_path / "1", *sample("k", 0, b"one")), make(tmp_path / "2", *sample("k", 1))
    path = put(tmp_path / "s.tar", one.read_bytes(), two.read_bytes())
    assert contents(TarShards(str(path), "data.train")) == [(b"one", "0"), (b"k", "1")]


def test_a_hundred_joined_archives(tmp_path):
    parts = []
    for k in range(100):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in sample(f"{k:03d}", k % 3):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        parts.append(buffer.getvalue())
    path = put(tmp_path / "s.tar", *parts)
    assert [image for image, _label in contents(TarShards(str(path), "x"))] == [
        b"%03d" % k for k in range(100)
    ]
