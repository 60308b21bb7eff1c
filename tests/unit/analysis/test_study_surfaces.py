"""The loss around the weights of the members of a study: what is measured, kept and shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hvdtrain.analysis.study.asked import Member
from hvdtrain.analysis.study.folder import Folder
from hvdtrain.analysis.study.processes import Processes
from hvdtrain.analysis.study.surface_page import barrier, surface_sections
from hvdtrain.analysis.study.surfaces import (
    MEASURES,
    Around,
    Line,
    Plane,
    Surfaces,
    Task,
    evaluations,
)
from hvdtrain.analysis.study.table import groups_of
from hvdtrain.comm.ranks import Solo
from hvdtrain.report.study import write_study
from hvdtrain.train import train
from tests.unit.analysis.test_study_halving import result
from tests.unit.run.data_runs import COLOURS, config, write


def member(batch: int, seed: int = 0) -> Member:
    return Member(f"b{batch}-none-s{seed}", batch, "none", 0.01, seed, 1, ())


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A study with one member, which has run an epoch."""
    monkeypatch.setattr("hvdtrain.train.write_page", lambda run: None)
    write(tmp_path / "train", list(COLOURS))
    write(tmp_path / "val", list(COLOURS), 2, 10)
    folder = Folder(tmp_path / "s")
    train(config(tmp_path, 1), Solo(), run_dir=folder.run(member(4).name))
    return folder


def surfaces_of(folder: Folder, measures: Sequence[str], images: int = 8) -> Surfaces:
    return Surfaces(folder, measures, images, 0, 1)


def put(surfaces: Surfaces, task: Task, one: dict[str, object], key: str = "checkpoints") -> None:
    output = surfaces._output(task.name)
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{task.measure}.json").write_text(json.dumps({key: [one]}))


def test_a_landscape_is_measured_once(trained: Folder) -> None:
    surfaces, lines = surfaces_of(trained, ("landscape",)), list[str]()
    tasks = surfaces.tasks([member(4)], print)
    done = surfaces.measure(tasks, Processes(2), lines.append)
    assert (done.stopped, done.signalled, lines, surfaces.left(tasks)) == (False, False, [], [])
    found = surfaces.found(tasks)
    line, plane = found.lines["b4-none-s0"], found.planes["b4-none-s0"]
    middle = line.loss[20]
    assert middle is not None
    assert plane.loss[10][10] == pytest.approx(middle, rel=1e-6)
    assert plane.loss[-1][10] == pytest.approx(line.loss[-1], rel=1e-6)  # the same direction
    again = surfaces_of(trained, ("landscape",), 9)
    assert again.left(again.tasks([member(4)], print)) == again.tasks(
        [member(4)], print
    )  # of other images


def test_a_measurement_that_fails_is_one_line(trained: Folder) -> None:
    surfaces, lines = surfaces_of(trained, ("sharpness",)), list[str]()
    tasks = surfaces.tasks([member(4)], print)
    weights = next(trained.run(member(4).name).glob("checkpoints/*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not surfaces.measure(tasks, Processes(1), lines.append).stopped
    [line] = lines
    assert line.startswith("sharpness-b4-none-s0: not measured: exit code 4: ")
    assert surfaces.left(tasks) == tasks
    shutil.rmtree(weights.parents[1])
    assert surfaces.tasks([member(4)], lines.append) == []
    assert lines[1].startswith("b4-none-s0: nothing measured: ")
    assert "no checkpoint" in lines[1]


def test_what_was_found_is_read_with_care(trained: Folder) -> None:
    surfaces = surfaces_of(trained, MEASURES)
    tasks = {task.name: task for task in surfaces.tasks([member(4)], print)}
    sharpness, plane = tasks["sharpness-b4-none-s0"], tasks["landscape-plane-b4-none-s0"]
    [checkpoint] = sharpness.checkpoints
    name = f"b4-none-s0 {checkpoint.name}"
    good = {"name": name, "sharpness": [{"epsilon": 1e-3, "value": 2.5}]}
    put(surfaces, sharpness, good)
    assert surfaces.found([sharpness]).sharpness == {"b4-none-s0": {1e-3: 2.5}}
    for changed in (
        {"name": "b4-none-s0 e0000-s0000000000"},
        {"sharpness": []},
        {"sharpness": [{"epsilon": 1e-3, "value": None}]},
        {"sharpness": [{"epsilon": 1e-3, "value": "2"}]},
    ):
        put(surfaces, sharpness, {**good, **changed})
        assert surfaces.left([sharpness]) == [sharpness]
    noise = tasks["noise-scale-b4-none-s0"]
    put(surfaces, noise, {"name": name, "measured": {"scale": 12.5}}, "found")
    assert surfaces.found([noise]).noise == {"b4-none-s0": 12.5}
    put(surfaces, noise, {"name": name, "measured": None}, "found")
    assert surfaces.left([noise]) == [noise]
    put(surfaces, plane, {"name": name, "axes": [[0, 1], [0, 1]], "loss": [[1, None], [1, 2]]})
    assert surfaces.found([plane]).planes["b4-none-s0"].loss[0] == [1, None]
    put(surfaces, plane, {"name": name, "axes": [[0, 1], [0, 1]], "loss": [[1], [1, 2]]})
    assert surfaces.left([plane]) == [plane]
    put(surfaces, sharpness, good)
    output = surfaces._output(sharpness.name) / "sharpness.json"
    output.write_bytes(output.read_bytes()[:-1])
    assert surfaces.left([sharpness]) == [sharpness]


def test_what_is_measured_of_which_members() -> None:
    several = [member(4), member(8), member(4, 1), member(8, 1)]
    assert evaluations(("sharpness",), several) == 4 * 120
    assert evaluations(("interpolate",), several) == 31  # of the first seed
    assert evaluations(("landscape",), several) == 2 * (41 + 21**2)
    assert evaluations((), several) == 0


def line(*losses: float | None, to: str | None = None) -> Line:
    alphas = [-1 + 3 * i / (len(losses) - 1) for i in range(len(losses))]
    place = None if to is None else {"name": to}
    return Line.model_validate({"name": "a", "axes": [alphas], "loss": list(losses), "to": place})


def test_the_barrier_is_above_the_line_between_the_ends() -> None:
    assert barrier(line(9, 1, 2, 9)) == 0
    assert barrier(line(9, 9, 1, 4, 2, 9, 9)) == pytest.approx(2.5)  # α 0, ½, 1
    assert barrier(line(9, 9, 1, 1.2, 2, 9, 9)) == 0
    assert barrier(line(9, 9, 1, None, 2, 9, 9)) == float("inf")
    assert barrier(line(9, 9, None, 1, 2, 9, 9)) is None


def test_the_sections_of_what_was_found(tmp_path: Path) -> None:
    members = [member(4), member(8), member(4, 1)]
    values = {"b4-none-s0": 1.0, "b4-none-s1": 3.0}
    results = [
        replace(result(m, 0.5), sharpness={1e-3: values[m.name]} if m.batch == 4 else {})
        for m in members
    ]
    groups = groups_of(results)
    style = {group.label: (i, 0) for i, group in enumerate(groups)}
    assert surface_sections(groups[1:], style, Around()) == []
    between = {("b4-none-s0", "b8-none-s0"): line(9, 9, 1, 4, 2, 9, 9, to="b")}
    plane = Plane(
        name="a", axes=[[-1, 0, 1], [-1, 0, 1]], loss=[[3, 2, 3], [2, 1, 2], [3, 2, None]]
    )
    around = Around(
        between=between, lines={"b8-none-s0": line(3, 1, 2)}, planes={"b8-none-s0": plane}
    )
    sections = surface_sections(groups, style, around)
    sharp, lines, landscapes = sections
    assert sharp.table is not None
    assert sharp.table.rows == [["4, rate 0.01", "2 ± 1.4"], ["8, rate 0.01", "–"]]
    assert lines.table is not None
    assert lines.table.rows == [["4, rate 0.01", "2.500"]]
    assert [chart.stem for chart in landscapes.charts] == ["landscape-line", "landscape-1"]
    write_study(tmp_path / "page.html", tmp_path / "p", "t", "a", sections)
    assert (tmp_path / "p/landscape-1.svg").stat().st_size > 1000
    assert "first direction" in (tmp_path / "page.html").read_text()
