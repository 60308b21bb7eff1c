"""Batch norm over all ranks equals plain batch norm over the whole batch. Ranks are threads here;
tests/parallel/test_equality.py has real ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Model
from hvdtrain.engine.global_norm import GlobalNorms, local_statistics, share_batch_norm
from hvdtrain.errors import ConfigError
from hvdtrain.models import build_model
from hvdtrain.models.freezing import freeze
from hvdtrain.plan.epochs import make_plan
from hvdtrain.plan.text import plan_text
from tests.thread_ranks import Meeting, Thread


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    model = build_model(Model(name="resnet8_cifar", zero_gamma=False), 5)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias)
    return model.to(dtype)


def batch(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images whose mean and spread depend on their place, so that ranks are unlike, and labels."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(size, 3, 16, 16, generator=generator, dtype=torch.float64)
    place = torch.arange(size, dtype=torch.float64).view(-1, 1, 1, 1)
    return images * (1 + place / 4) + place, torch.randint(0, 5, (size,), generator=generator)


def trained(model: nn.Module, rank: int, size: int, dtype: torch.dtype, begin: Any) -> list[Tensor]:
    """Logits of two passes on this rank's share, then gradients of all, summed over the passes."""
    found = []
    for step in range(2):  # gradients add up, as in accumulation
        images, labels = batch(step)
        mine = slice(rank * 16 // size, (rank + 1) * 16 // size)
        begin()
        logits = model(images[mine].to(dtype))
        loss = nn.functional.cross_entropy(logits, labels[mine], reduction="sum") / 16
        loss.backward()
        found.append(logits.detach())
    return found


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_equal_one_process(ranks: int, dtype: torch.dtype, bound: float) -> None:
    """Logits, gradients and running statistics; then the logits in evaluation."""
    whole = network(dtype)
    expected = trained(whole, 0, 1, dtype, lambda: None)
    models = [network(dtype) for _ in range(ranks)]

    def work(comm: Thread) -> list[Tensor]:
        shared = share_batch_norm(models[comm.rank], comm, "x")
        assert shared is not None
        return trained(models[comm.rank], comm.rank, ranks, dtype, shared.begin)

    found = Meeting(ranks).run(work)

    def same(one: Tensor, other: Tensor, what: object) -> None:
        worst = (one.detach() - other.detach()).abs().max()
        assert worst <= bound * (1 + other.detach().abs().max()), (what, worst)

    for step, logits in enumerate(expected):
        same(torch.cat([rank[step] for rank in found]), logits, step)
    for name, parameter in whole.named_parameters():
        shares = [dict(model.named_parameters())[name].grad for model in models]
        same(torch.stack(shares).sum(0), parameter.grad, name)
    for name, buffer in whole.named_buffers():
        for model in models:
            same(dict(model.named_buffers())[name], buffer, name)
    images = batch(9)[0].to(dtype)
    same(models[-1].eval()(images), whole.eval()(images), "evaluation")


FORMS = ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False})


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_layers_in_other_forms(form: dict[str, Any], dtype: torch.dtype, bound: float) -> None:
    """Inputs in channels_last, two ranks, two passes."""
    torch.manual_seed(0)
    x = (torch.randn(2, 6, 4, 5, 5) * 3 + 7).to(dtype)
    factors = torch.randn(6, 4, 5, 5)
    plain, *norms = (nn.BatchNorm2d(4, **form) for _ in range(3))

    def passes(norm: nn.Module, mine: slice) -> list[Tensor]:
        found = []
        for one in x:
            images = one[mine].contiguous(memory_format=torch.channels_last).requires_grad_()
            y = norm(images)
            assert y.dtype == dtype
            assert y.is_contiguous(memory_format=torch.channels_last)
            (y.float().square() * factors[mine]).sum().backward()
            assert images.grad is not None
            found += [y.detach(), images.grad]
        return found

    def work(comm: Thread) -> list[Tensor]:
        share_batch_norm(norms[comm.rank], comm, "x")
        return passes(norms[comm.rank], slice(comm.rank * 3, comm.rank * 3 + 3))

    expected = passes(plain, slice(0, 6))
    for *parts, whole in zip(*Meeting(2).run(work), expected, strict=True):
        torch.testing.assert_close(torch.cat(parts), whole, rtol=bound, atol=10 * bound)
    for a, b in zip(norms[1].buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_and_paused_layers_exchange_nothing() -> None:
    model = network(torch.float32)
    freeze(model, ["stem"])
    norms = share_batch_norm(model, Thread(0, Meeting(2)), "x")  # a sum would wait for rank 1
    assert norms is not None
    x = torch.randn(4, 3, 16, 16)
    kept = model.stem[1].running_mean.clone()
    model.stem(x)
    with local_statistics(norms):
        model(x).sum().backward()
    assert norms.active
    assert torch.equal(model.stem[1].running_mean, kept)
    model.eval()(x)


def test_one_rank_is_plain_and_networks_without_batch_norm_are_refused() -> None:
    model = network(torch.float32)
    assert share_batch_norm(model, Solo(), "x") is None
    assert all("forward" not in vars(module) for module in model.modules())
    expected = r"^model\.batch_norm: global: resnet8_gn has no batch norm"
    with pytest.raises(ConfigError, match=expected):
        share_batch_norm(build_model(Model(name="resnet8_gn"), 5), Solo(), "resnet8_gn")
    text = "model: {{name: {}, batch_norm: global}}\nphases: [{{epochs: 1, batch_per_worker: 4}}]"
    with pytest.raises(ConfigError, match=expected):
        make_plan(parse_config(text.format("resnet8_gn")), 2, 100)

    class WithActivation(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    with pytest.raises(ConfigError, match=r"of its own kind \(WithActivation\): use worker"):
        share_batch_norm(WithActivation(3), Solo(), "timm:x")
    cfg = parse_config(text.format("resnet18"))
    shown = plan_text(cfg, make_plan(cfg, 8, 100))
    assert "32 images per forward pass, of all 8 workers: two sums over workers a layer" in shown


def test_names_follow_the_order_of_a_pass() -> None:
    norms = GlobalNorms(Solo())
    for _ in range(2):
        norms.begin()
        assert [norms.next_name(), norms.next_name()] == ["batch_norm.0", "batch_norm.1"]
