"""How the code is laid out: no module imports itself by way of others, and none is long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("hvdtrain", "pipelines")
MOST_LINES = 300


def import_graph() -> dict[str, set[str]]:
    """The modules that each module of the packages imports, also those for type checking only."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def cycles(imports: dict[str, set[str]]) -> list[set[str]]:
    """The sets of two or more modules in which each one reaches each other one."""
    reached: dict[str, set[str]] = {}
    for module, imported in imports.items():
        seen: set[str] = set()
        left = list(imported)
        while left:
            if (found := left.pop()) not in seen:
                seen.add(found)
                left += imports[found]
        reached[module] = seen
    sets = {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in imports
    }
    return sorted((set(found) for found in sets if len(found) > 1), key=sorted)


def test_no_module_imports_itself_by_way_of_others():
    imports = import_graph()
    assert "hvdtrain.train" in imports
    assert "pipelines.loader" in imports["hvdtrain.train"]
    assert cycles(imports) == []


def test_cycles_are_found():
    imports = {"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert cycles(imports) == [{"a", "b", "c"}, {"d", "e"}]


def test_no_module_is_long():
    files = [
        file
        for folder in (*PACKAGES, "tests", "benchmarks", "deploy")
        for file in sorted((ROOT / folder).rglob("*.py"))
    ]
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert len(lines) > 300
    assert {file: count for file, count in lines.items() if count > MOST_LINES} == {}


def imported_names(file: Path) -> Iterator[str]:
    """Everything that a module imports, anywhere in it, as `package.module.name`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_torch_distributed_is_imported_in_two_modules() -> None:
    """import-linter sees of other packages only the first name."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    found = {
        str(file.relative_to(ROOT))
        for file in files
        if any(f"{name}.".startswith("torch.distributed.") for name in imported_names(file))
    }
    assert found == {"hvdtrain/comm/torch_distributed.py", "hvdtrain/comm/watched_group.py"}
