"""Whether all ranks sum by the same algorithm of Open MPI, and by the one for their links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hvdtrain import errors
from hvdtrain.launch.links import ALGORITHM, SLOW_GBIT
from hvdtrain.preflight.facts import Facts
from hvdtrain.preflight.finding import Finding, Names, differ, speed_text

COLLECTIVES = "OMPI_MCA_coll_"
"""How the names of the variables begin that choose the algorithms of Open MPI's collectives."""
BY_OPEN_MPI = "OMPI_COMM_WORLD_SIZE"
MOST_HOSTS = 2
"""With so many hosts Open MPI's own choice uses the links as well as a ring does."""


def collectives_of(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of a rank that choose the algorithms of Open MPI's collectives."""
    return {name: value for name, value in env.items() if name.startswith(COLLECTIVES)}


def check_collectives(facts: Sequence[Facts], names: Names) -> Iterator[Finding]:
    """Ranks that would wait for each other without end, and a slow link that nothing is set for."""
    for name in sorted({name for one in facts for name in one.collectives}):
        text = differ(((one, one.collectives.get(name, "unset")) for one in facts), names)
        if text is not None:
            yield Finding(
                "collectives",
                name,
                f"{text}: ranks that sum by different algorithms wait for each other without end",
                "give all ranks the same: mpirun -x NAME, or -mca",
                errors.CommError,
            )
    speeds = [one.link.mbit for one in facts if one.link is not None and one.link.error is None]
    by_mpi = all(BY_OPEN_MPI in one.launcher and not one.visible_gpus for one in facts)
    several = len({one.machine for one in facts}) > MOST_HOSTS
    unset = not any(ALGORITHM in one.collectives for one in facts)
    if speeds and by_mpi and several and unset and min(speeds) <= SLOW_GBIT * 1000:
        yield Finding(
            "algorithm",
            "the slowest link between the hosts",
            f"{speed_text(min(speeds))}, and Open MPI's own choice of algorithm may use only half of it",
            "if that is its speed, say so with comm.link_gbit: sums then go round in a ring",
        )
