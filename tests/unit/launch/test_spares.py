"""Which host a spare one replaces, and what launchers say of the host of a fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.launch import spares
from hvdtrain.launch.hosts import Host, parse_hosts
from hvdtrain.launch.placement import place, placement_text
from hvdtrain.launch.spares import AWAY, Pool, blamed


def fault(*hosts: str) -> list[str]:
    return [f"srun: error: {host}: task 1: Killed" for host in hosts]


def pool(text: str, nodes: int | None) -> Pool:
    return Pool(place(parse_hosts(text)), nodes)


def names(pool: Pool) -> list[str]:
    return [host.name for host in pool.placement().hosts]


def nobody(_hosts: Sequence[Host]) -> list[str]:
    return []


def test_a_host_that_fails_twice_in_a_row_is_replaced_where_it_was() -> None:
    hosts = pool("a:2,b:2,c:2", 2)
    assert hosts.renew(fault("b"), nobody) == []
    assert hosts.renew([], nobody) == []
    assert hosts.renew(fault("b"), nobody) == []
    assert names(hosts) == ["a", "b"]
    assert hosts.renew(fault("b"), nobody) == [
        "b has failed 2 times in a row: it is left out, c takes its place"
    ]
    assert names(hosts) == ["a", "c"]
    assert hosts.placement().size == 4
    assert not hosts.has_spares
    assert hosts.is_part
    assert hosts.renew(fault("c"), nobody) == hosts.renew(fault("c"), nobody) == []
    assert names(hosts) == ["a", "c"]


def test_a_host_that_does_not_answer_is_replaced_at_once_by_one_that_does() -> None:
    hosts = pool("a,b,c,d", 2)
    [text] = hosts.renew([], lambda hosts: {"a", "c"} & {host.name for host in hosts})
    assert text == "a does not answer: it is left out, d takes its place"
    assert names(hosts) == ["d", "b"]
    [text] = hosts.renew([], lambda _: {"b", "c"})
    assert text == "b does not answer, and no spare host answers"
    assert names(hosts) == ["d", "b"]


def test_a_host_whose_tasks_srun_waits_for_in_vain() -> None:
    lines = [
        "srun: error: a: task 0: Exited with exit code 5",
        "srun: StepId=2.0 task 1: running",
        "srun: Job step aborted: Waiting up to 92 seconds for job step to finish.",
    ]
    [text] = pool("a,b,c", 2).renew(lines, nobody)
    assert text == "b does not answer: it is left out, c takes its place"
    assert pool("a,b,c", 2).renew(lines[:2], nobody) == []
    assert pool("a,b,c", 2).renew([*lines, *fault("b")], nobody) == []


def test_a_name_without_its_domain() -> None:
    hosts = pool("a.net,b.net,c.net", 2)
    for _ in range(2):
        told = hosts.renew(fault("b"), nobody)
    assert told[0].startswith("b.net has failed")


def test_without_spares_nothing_changes() -> None:
    hosts = pool("a:1,b:2", None)
    assert not hosts.is_part
    assert placement_text(hosts.placement()) == placement_text(place(parse_hosts("a:1,b:2")))


def test_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="--nodes 3: only 2 hosts given"):
        pool("a,b", 3)
    with pytest.raises(ConfigError, match="give all hosts the same number of slots"):
        pool("a:1,b:2", 1)


@pytest.mark.parametrize(
    ("line", "host"),
    [
        (
            "mpirun noticed that process rank 1 with PID 0 on node b exited on signal 9 (Killed).",
            "b",
        ),
        ("  Remote daemon: [[38103,0],1] on node b", "b"),
        ("srun: error: b: task 1: Killed", "b"),
        ("srun: error: b: tasks 2-3: Segmentation fault (core dumped)", "b"),
        ("srun: error: a: task 0: Exited with exit code 5", None),
        ("srun: error: Node failure on b", "b"),
        ("srun: error: Task launch for StepId=2.1 failed on node b: Communication failure", "b"),
        (
            "hvdtrain: error: rank 0 on a: no progress for 5 s (train.stall_timeout) at epoch 1: "
            "waiting for rank 1 on b, of which there is no sign; its stacks are in stalls",
            "b",
        ),
        ("hvdtrain: error: rank 1: cannot read", None),
    ],
)
def test_the_host_that_is_blamed(line: str, host: str | None) -> None:
    assert blamed(["something", line]) == ({host} if host else set())


def test_states_of_a_node() -> None:
    for state in ("down", "down*", "drain", "drng", "fail", "alloc*", "unk"):
        assert AWAY.search(state)
    for state in ("idle", "mix", "alloc", "comp", "resv"):
        assert not AWAY.search(state)


def gone(*names: str) -> Callable[[Sequence[Host]], set[str]]:
    return lambda hosts: {host.name for host in hosts} & set(names)


def shrinking(text: str, least: int, batch: int, nodes: int | None = None) -> Pool:
    return Pool(place(parse_hosts(text)), nodes, least, lambda ranks: batch % ranks == 0)


def test_a_job_goes_on_with_the_hosts_that_answer_and_with_all_when_they_are_back() -> None:
    hosts = shrinking("a:2,b:2,c:2", 1, batch=48)
    assert hosts.is_part
    assert not hosts.lacks_hosts
    assert hosts.renew([], gone("b")) == [
        "b does not answer: it is left out",
        "going on with 2 hosts and 4 ranks",
    ]
    assert names(hosts) == ["a", "c"]
    assert hosts.placement().size == 4
    assert hosts.lacks_hosts
    assert not hosts.returned(gone("b"))
    assert hosts.returned(gone())
    assert hosts.renew([], gone()) == [
        "b answers again: it takes part",
        "going on with 3 hosts and 6 ranks",
    ]
    assert names(hosts) == ["a", "c", "b"]
    assert not hosts.lacks_hosts


def test_only_as_many_hosts_as_can_share_the_global_batch() -> None:
    hosts = shrinking("a,b,c,d", 1, batch=64)
    told = hosts.renew([], gone("d"))
    assert told == ["d does not answer: it is left out", "going on with 2 hosts and 2 ranks"]
    assert names(hosts) == ["a", "b"]  # c is a spare now
    assert hosts.renew([], gone("d", "a")) == [
        "a does not answer: it is left out, c takes its place"
    ]
    assert names(hosts) == ["c", "b"]
    assert hosts.returned(gone("a")) is False  # three cannot share it
    assert hosts.returned(gone()) is True


def test_no_fewer_than_the_least() -> None:
    hosts = shrinking("a,b,c", 2, batch=64)
    assert hosts.renew([], gone("b", "c")) == [
        "b does not answer: it is left out",
        "c does not answer: it is left out",
        "of 1 host that can be used no number can go on (--min-nodes 2)",
    ]
    assert names(hosts) == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="--min-nodes 4: only 3 hosts used"):
        shrinking("a,b,c", 4, batch=64)


def test_a_host_that_fails_again_and_again_is_left_out_for_good() -> None:
    hosts = shrinking("a,b", 1, batch=64)
    assert hosts.renew(fault("b"), nobody) == []
    assert hosts.renew(fault("b"), nobody)[0] == "b has failed 2 times in a row: it is left out"
    assert names(hosts) == ["a"]
    assert not hosts.lacks_hosts


def test_a_spare_comes_before_fewer_hosts() -> None:
    hosts = shrinking("a,b,c", 1, batch=64, nodes=2)
    assert hosts.renew([], gone("b"))[0] == "b does not answer: it is left out, c takes its place"
    assert names(hosts) == ["a", "c"]
    assert hosts.renew([], gone("b", "c"))[0] == "c does not answer: it is left out"
    assert names(hosts) == ["a"]


@pytest.mark.parametrize(
    ("starts", "away"), [(("a",), {"b", "c"}), (("a", "b"), {"c"}), ((), {"c"})]
)
def test_nodes_on_which_slurm_starts_nothing(
    starts: tuple[str, ...], away: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm calls b idle. Where no node at all starts a task, it is not the nodes."""

    def ask(*words: str) -> str:
        if words[0] == "sinfo":
            return "a mix\nb idle\nc down*\n"
        node = next(word for word in words if word.startswith("--nodelist="))
        if node.removeprefix("--nodelist=") not in starts:
            raise ResourceError("srun: error")
        return ""

    monkeypatch.setattr(spares, "ask", ask)
    assert spares.away_in_slurm(parse_hosts("a,b,c")) == away
