"""What is known of the links between hosts before the ranks are connected, and what Open MPI does with it.

Open MPI reads its settings when it starts, and all ranks must sum by the same algorithm. So neither what
a rank measures later nor the card of its own host may decide: only what all ranks were given alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hvdtrain.errors import ConfigError

LINK_GBIT = "HVDTRAIN_LINK_GBIT"
"""Variable by which `hvdtrain launch` gives all ranks the speed of its host's card in Gbit/s."""
SLOW_GBIT = 5.0
"""Links up to this speed are slow: the wire takes longer than the copies and additions of the ranks."""
ALGORITHM = "OMPI_MCA_coll_tuned_allreduce_algorithm"
SLOW_LINK_SETTINGS = {
    # The ring sends the fewest bytes over each link: 2 (ranks - 1) / ranks of the buffer.
    ALGORITHM: "4",
    "OMPI_MCA_coll_tuned_use_dynamic_rules": "1",  # the line above counts only with this one
}


def link_gbit(env: Mapping[str, str]) -> float | None:
    """The speed in Gbit/s that the launcher gave; None: unknown. Raises ConfigError."""
    text = env.get(LINK_GBIT)
    if text is None:
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise ConfigError(f"{LINK_GBIT}: expected the speed of a link in Gbit/s, found {text!r}")
    return speed


def slow_link_settings(env: Mapping[str, str], configured_gbit: float | None) -> dict[str, str]:
    """Open MPI's settings if the links are known to be slow, else none.

    `configured_gbit`: the config's `comm.link_gbit`; None: the launcher's variable decides.
    Raises ConfigError if that is no speed.
    """
    speed = link_gbit(env) if configured_gbit is None else configured_gbit
    return dict(SLOW_LINK_SETTINGS) if speed is not None and speed <= SLOW_GBIT else {}
