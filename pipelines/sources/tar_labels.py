"""Labels as samples of tar shards have them: in a `.cls` or a `.json`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources.classes import canonical, require_no_fractions
from pipelines.sources.left_out import printable

LABEL_KEYS = ("cls", "label", "class")
_LONGEST = {"cls": 4096, "json": 4 << 20}  # bytes
_DIGITS = 18  # of a class number that fits 64 bits
_FEW = 1_000_000  # class numbers below are taken however many of them are unused
CLASSES_BYTES = 64 << 20
_CLASS_NAME = 4000  # characters that are looked at


class LabelError(Exception):
    """What is wrong with a label; the caller knows where it is."""


def check_length(kind: str, size: int) -> None:
    """Raises LabelError if a label file of `size` bytes is too long to be read."""
    if size > _LONGEST[kind]:
        raise LabelError(f"{size:,} bytes; expected {_LONGEST[kind]:,} at most for a label")


def label_in_cls(content: bytes) -> int | str | None:
    """The class number or name; None if the file is empty. Raises LabelError."""
    try:
        word = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise LabelError(f"not UTF-8 at byte {error.start}") from None
    return _checked(word) if word else None


def label_in_json(content: bytes) -> int | str | None:
    """The first of `LABEL_KEYS`; None if there is none of them. Raises LabelError."""
    try:
        about = json.loads(content, parse_int=_integer, object_pairs_hook=_object)
    except RecursionError:
        raise LabelError("nested too deeply") from None
    except ValueError as error:
        raise LabelError(f"not JSON: {error}") from None
    if not isinstance(about, dict):
        return None
    found: dict[str, int | str] = {}
    for key in LABEL_KEYS:
        label = about.get(key)
        label = label.strip() if isinstance(label, str) else label
        if label is None or label == "":
            continue
        if isinstance(label, bool) or not isinstance(label, (int, str)):
            raise LabelError(f"{key} is {_short(label)}; expected a class number or name")
        found[key] = _checked(label)
    for kind, what in ((int, "numbers"), (str, "names")):
        keys = [key for key, label in found.items() if isinstance(label, kind)]
        if len({found[key] for key in keys}) > 1:
            raise LabelError(f"different class {what} in {' and '.join(keys)}; expected one")
    return next(iter(found.values()), None)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _value in pairs]
        if twice := [key for key in LABEL_KEYS if keys.count(key) > 1]:
            raise LabelError(f"{twice[0]} is there twice; expected one class")
    return found


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _DIGITS else float(digits)


def _checked(label: int | str) -> int | str:
    """The label, a number where it is written as one. Raises LabelError."""
    if isinstance(label, int):
        return label
    if any(ord(sign) < 32 or ord(sign) == 127 or 0xD800 <= ord(sign) < 0xE000 for sign in label):
        raise LabelError(f"expected one class number or name, found {_short(label)}")
    if not label.isascii() or not label.isdecimal():
        return label
    if len(label.lstrip("0")) > _DIGITS:
        raise LabelError(f"a class number of {len(label)} digits")
    return int(label)


def _short(value: object) -> str:
    text = ascii(value) if not isinstance(value, (dict, list)) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}…"


def numbered(labels: list[int | str]) -> tuple[np.ndarray, list[str]]:
    """Labels as numbers [len(labels)] int64, and the texts these stand for; [] if all are numbers."""
    if all(isinstance(label, int) for label in labels):
        return np.array(labels, dtype=np.int64), []
    texts = sorted({str(label) for label in labels})
    number_of = {text: number for number, text in enumerate(texts)}
    return np.array([number_of[str(label)] for label in labels], dtype=np.int64), texts


def class_names(file: Path, *, first_word: bool = False) -> list[str] | None:
    """The lines of a `classes.txt`, or the first words of a synset file's; None without the file.

    Raises DataError naming a line that is empty or has the name of another.
    """
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > CLASSES_BYTES:
            raise DataError(f"{file}: {file.stat().st_size:,} bytes; expected a name on each line")
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot read: {error.strerror}") from None
    return names_in(content, file, first_word=first_word)


def names_in(content: bytes, file: Path | str, *, first_word: bool = False) -> list[str]:
    """The same for the content of a file. Raises DataError like `class_names`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}: save it as UTF-8") from None
    names = [line.strip() for line in text.rstrip().split("\n")]
    _require_no_numbers(names, file)
    if first_word:
        names = [name.split()[0] if name else "" for name in names]
    line_of: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if not name or "\0" in name:
            raise DataError(f"{file}:{line}: {'NUL' if name else 'empty'}; expected a class name")
        if name in line_of:
            more = " (a name ends at the first blank)" if first_word else ""
            raise DataError(f"{file}:{line}: {name!r} is on line {line_of[name]} too{more}")
        line_of[name] = line
    return names


_NUMBERED = re.compile(r"(\d+)[\s,;:=]+\S.*|.*\S[\s,;:=]+(\d+)", re.ASCII)


def _require_no_numbers(names: list[str], file: Path | str) -> None:
    """Raise DataError if each line has a number of a class, which may be another than its line's."""
    found = [_NUMBERED.fullmatch(name[:_CLASS_NAME]) for name in names]
    if len(names) < 2 or not all(found):
        return
    numbers = [int(next(filter(None, match.groups()))) for match in found if match]
    first = min(numbers)
    in_order = list(range(first, first + len(names)))
    comes_first = all(match and match[1] for match in found)
    before = {match[0][: match.start(2)] for match in found if match and match[2]}
    is_numbered = (
        first < 2 and sorted(numbers) == in_order and len(before) != 1
    )  # "grade 1", "grade 10"
    if is_numbered and (comes_first or numbers != in_order):
        raise DataError(
            f"{file}: every line has a number ({printable(names[0][:40])}); expected names only, "
            "that of class 0 first"
        )


def classes_of(
    numbers: np.ndarray, texts: list[str], named: list[str] | None, where: str
) -> tuple[list[str], np.ndarray]:
    """Class names, and the class of every sample [len] int32, of what `numbered` returned.

    `named`: the names of class numbers. Raises DataError if a label is none of them, or if class
    numbers without names are so large that most would be classes without images.
    """
    if texts:
        if named is None:
            _require_one_kind(texts, where)
        classes = named or texts
        form = canonical if named else str
        number_of = {form(name): number for number, name in enumerate(classes)}
        if unknown := sorted(text for text in texts if form(text) not in number_of):
            raise DataError(f"{where}: class {unknown[0]!r} is not in classes.txt")
        return classes, np.array([number_of[form(t)] for t in texts], dtype=np.int32)[numbers]
    lowest, highest = int(numbers.min()), int(numbers.max())
    if lowest < 0 or (named is not None and highest >= len(named)):
        known = f"0 to {len(named) - 1} (classes.txt)" if named else "0 or more"
        raise DataError(f"{where}: class numbers {lowest} to {highest}; expected {known}")
    used = len(np.unique(numbers))
    if named is None and highest >= _FEW and used <= highest // 2:
        raise DataError(
            f"{where}: class numbers up to {highest}, of which {used:,} are used; expected numbers "
            "from 0 with few gaps, or names"
        )
    return named or [str(k) for k in range(highest + 1)], numbers.astype(np.int32)


def _require_one_kind(texts: list[str], where: str) -> None:
    """Raise DataError if some labels are names and others numbers, or numbers with a fraction."""
    require_no_fractions(texts, where)
    numbers = [text for text in texts if text.isascii() and text.isdecimal()]
    if numbers:
        name = next(text for text in texts if text not in numbers)
        raise DataError(
            f"{where}: class numbers ({numbers[0]}) and names ({_short(name)}) side by side; expected "
            "one of them, or a classes.txt with all names"
        )
