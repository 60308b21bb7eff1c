"""Cores of a rank: binding, quotas, and cores that are left idle."""

from __future__ import annotations

from pathlib import Path

from hvdtrain.comm.cores import idle_text, quota_cores, share_of

BOUND = [frozenset({0}), frozenset({1})]


def test_cores_and_quota_are_shared() -> None:
    everywhere = [frozenset(range(8))] * 2
    assert share_of(range(8), everywhere, None) == 4
    assert share_of(range(8), everywhere, 4.0) == 2
    assert share_of([0], BOUND, 0.5) == 1


def test_quotas_of_both_versions(tmp_path: Path) -> None:
    assert quota_cores(root=tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert quota_cores(root=tmp_path) is None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert quota_cores(root=tmp_path) == 2.5
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert quota_cores(root=tmp_path) == 1.5


def test_idle_cores_are_named() -> None:
    assert "2 of 8 cores" in idle_text(set(range(8)), BOUND)
    assert "--bind-to none" in idle_text(set(range(8)), BOUND)
    assert idle_text({0, 1}, BOUND) == ""
