"""Cores of a rank: binding, quotas, and cores that are left idle."""

from __future__ import annotations

from pathlib import Path

from hvdtrain.comm.cores import idle_text, quotas_of, share_of

BOUND = [frozenset({0}), frozenset({1})]


def test_cores_and_quota_are_shared() -> None:
    everywhere = [frozenset(range(8))] * 2
    assert share_of(range(8), everywhere, {}, [(), ()]) == 4
    assert share_of(range(8), everywhere, {"job": 4.0}, [["job"], ["job"]]) == 2
    assert share_of([0], BOUND, {"job": 0.5}, [["job"], ["job"]]) == 1


def test_a_quota_is_shared_only_in_its_group() -> None:
    everywhere = [frozenset(range(64))] * 4
    groups = [["node", f"task{rank}"] for rank in range(4)]
    assert share_of(range(64), everywhere, {"task0": 6.0}, groups) == 6
    assert share_of(range(64), everywhere, {"node": 32.0, "task0": 6.0}, groups) == 6
    assert share_of(range(64), everywhere, {"node": 16.0, "task0": 6.0}, groups) == 4
    groups = [["a"], ["a"], ["b"], ["b"]]
    assert share_of(range(64), everywhere, {"a": 12.0}, groups) == 6


def test_quotas_of_both_versions(tmp_path: Path) -> None:
    assert quotas_of(root=tmp_path) == {}
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert quotas_of(root=tmp_path) == {}
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert [*quotas_of(root=tmp_path).values()] == [2.5]
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert sorted(quotas_of(root=tmp_path).values()) == [1.5, 2.5]


def test_quotas_of_all_groups_on_the_way_and_of_these_alone(tmp_path: Path) -> None:
    limits = {"job": 800000, "job/step": 400000, "job/step/task0": 100000, "job/step/task1": 200000}
    for name, quota in limits.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpu.max").write_text(f"{quota} 100000\n")
    first, second = (quotas_of(f"/job/step/task{task}", tmp_path) for task in (0, 1))
    assert [*first.values()] == [8.0, 4.0, 1.0]
    assert [*second.values()] == [8.0, 4.0, 2.0]
    assert [*first][:2] == [*second][:2]
    assert [*first][2] != [*second][2]
    inside = quotas_of("/", tmp_path / "job/step/task0")  # as a container sees it
    assert inside.keys() <= first.keys()


def test_idle_cores_are_named() -> None:
    assert "2 of 8 cores" in idle_text(set(range(8)), BOUND)
    assert "--bind-to none" in idle_text(set(range(8)), BOUND)
    assert idle_text({0, 1}, BOUND) == ""
