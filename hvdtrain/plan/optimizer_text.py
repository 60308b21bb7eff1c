"""What a plan says of the optimizer: rule, momentum, rates of single parameters, clipping, decay."""

from __future__ import annotations

from typing import Any

from hvdtrain.config.networks import NETWORKS
from hvdtrain.config.schema import Config
from hvdtrain.plan.epochs import Plan


def momenta(cfg: Config, first: float, last: float) -> dict[str, Any]:
    """What the optimizer has, at the first and the last step of a phase: momentum, or both betas."""
    if not has_betas(cfg):
        return {"momentum_first": first, "momentum_last": last}
    second = cfg.optimizer.betas[1]
    return {"betas_first": [first, second], "betas_last": [last, second]}


def has_betas(cfg: Config) -> bool:
    """Whether the optimizer has betas in place of a momentum."""
    return cfg.optimizer.name in ("lamb", "adamw")


def optimizer(cfg: Config) -> str:
    """The rule, and where it has the rate."""
    rule = cfg.optimizer
    nesterov = ", Nesterov" if rule.nesterov else ""
    if rule.name == "sgd":
        return (
            f"SGD{nesterov}; rate outside the momentum buffer, so no momentum correction is needed"
        )
    if rule.name == "lars" and rule.lars_rate == "outside":
        return "LARS; rate outside the momentum buffer"
    if rule.name == "muon":
        words = [f"Muon{nesterov}, {rule.newton_schulz_steps} Newton-Schulz steps"]
        words += ["filters normalized"] if rule.normalize_filters else []
        words += ["work shared by the ranks"] if rule.share_work else []
        return f"{', '.join(words)}; norms, biases, classifier: SGD{nesterov}, momentum {rule.other_momentum:g}"
    return {"lars": "LARS", "lamb": "LAMB", "adamw": "AdamW"}[rule.name]


def other_rates(cfg: Config) -> list[tuple[str, str]]:
    """Rates of single parameters, and slow weights, if there are any."""
    rule, facts = cfg.optimizer, []
    shifts = rule.other_rate * rule.shift_rate if rule.shift_rate != 1 else 1.0
    factors = {"norms and biases": rule.other_rate, "batch-norm shifts": shifts}
    factors["classifier"] = rule.classifier_rate
    words = [f"{name} × {factor:g}" for name, factor in factors.items() if factor != 1]
    if words:
        facts.append(("other rates", f"{', '.join(words)}; rate × decay stays"))
    if rule.layer_decay < 1:
        facts.append(("rates by stage", _stages(cfg)))
    if rule.lookahead.every is not None:
        share, power = rule.lookahead.share, rule.lookahead.power
        way = f"{share:g}" if isinstance(share, float) else f"{share[0]:g} → {share[1]:g}"
        way += f" by (share done)^{power:g}" if power != 1 else ""
        facts.append(("slow weights", f"every {rule.lookahead.every} updates {way} of the way"))
    return facts


def _stages(cfg: Config) -> str:
    network, by = NETWORKS.get(cfg.model.name), cfg.optimizer.layer_decay
    if network is None:
        return f"× {by:g} from each stage to the one below"
    factors = ", ".join(f"{by**depth:.3g}" for depth in range(network.depths))
    return f"× {factors}, from the classifier to the stem"


def momentum_range(cfg: Config, plan: Plan) -> tuple[float, float]:
    """Lowest and highest momentum of the run."""
    values: list[float] = []
    for phase in cfg.phases:
        if isinstance(phase.momentum, list):
            values += phase.momentum
        elif phase.momentum is not None:
            values.append(phase.momentum)
        else:
            values += cfg.lr.cycle_momentum or [plan.epochs[0].momentum_value]
    return min(values), max(values)


def momentum(cfg: Config, plan: Plan) -> tuple[str, str]:
    """Name and value: the momentum, or the betas of LAMB and AdamW, whose β1 may change like it."""
    low, high = momentum_range(cfg, plan)
    if low == high:
        value = f"{low:g}"
    elif cfg.lr.cycle_momentum:
        value = f"{low:g} at the highest rate, {high:g} at the lowest"
    else:
        value = f"{low:g}-{high:g} by phase"
    if has_betas(cfg):
        return "betas", f"{value}{',' if low == high else ';'} {cfg.optimizer.betas[1]:g}"
    return "momentum", value


def clipping(cfg: Config) -> str:
    """How gradients are clipped."""
    words = []
    if cfg.optimizer.agc is not None:
        whose = "classifier's weights" if cfg.optimizer.agc_classifier_bias else "classifier"
        words.append(f"AGC {cfg.optimizer.agc:g}, {whose} excluded")
    if cfg.optimizer.clip_norm is not None:
        words.append(f"global norm {cfg.optimizer.clip_norm:g}")
    return "; ".join(words) or "none"


def decay(cfg: Config) -> str:
    """How much, and of which parameters."""
    amount = f"{cfg.optimizer.weight_decay:.5g}"
    if cfg.optimizer.normalize_filters:
        others = ", norms and biases" if cfg.optimizer.decay_norms_and_biases else ""
        return f"{amount} on the classifier{others}; not on convolution and hidden weights, whose norm is fixed"
    if cfg.optimizer.decay_norms_and_biases:
        return f"{amount} on all parameters"
    return f"{amount} on convolution and linear weights; not on norm scales, shifts and biases"
