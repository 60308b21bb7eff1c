"""`train.compile`: the same network in compiled parts, with the same names, states and exchange.

Most tests leave out the last step, in which a C++ compiler makes the kernels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from hvdtrain.comm.ranks import Handle, Solo
from hvdtrain.config.load import parse_config
from hvdtrain.engine import compiling
from hvdtrain.engine.compiling import compile_for, compile_network, stages_of
from hvdtrain.engine.evaluate import evaluate
from hvdtrain.engine.step import State, backward, train_step
from hvdtrain.errors import ConfigError
from hvdtrain.models import MODELS
from hvdtrain.optim import optimizer_tensors
from hvdtrain.optim.ema import Ema
from tests.step_samples import images, state_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of torch stay as they were; of the C++ compiler no more is asked than is needed."""
    from torch._dynamo import config as tracing
    from torch._inductor import config as kernels

    before = {"accumulated_recompile_limit": 256, "wrap_top_frame": False}
    quick = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with tracing.patch(before), kernels.patch({"deterministic": False, **quick}):
        yield


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The number of graphs that were compiled so far, without kernels."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    return lambda: int(counters["stats"]["unique_graphs"])


def stage() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())


def trained(how: str) -> State:
    torch.manual_seed(2)
    head = nn.Sequential(nn.Flatten(), nn.Linear(192, 7))
    state = state_of(nn.Sequential(stage(), stage(), head))
    state.ema = Ema(state.model, 0.9)
    if how != "none":
        compile_network(state.model, how, CPU)  # type: ignore[arg-type]
        state.compiled = set()
    return state


def tensors(state: State) -> dict[str, torch.Tensor]:
    assert state.ema is not None
    found = {**state.model.state_dict(), **optimizer_tensors(state.model, state.optimizer)}
    return found | {f"ema.{name}": t for name, t in state.ema.tensors.items()}


@pytest.mark.parametrize("how", ["stages", "whole"])
def test_it_trains_the_same_network(how: str, graphs: Callable[[], int]) -> None:
    plain, state = trained("none"), trained(how)
    before = {name: t.clone() for name, t in tensors(state).items()}
    began = graphs()
    assert compile_for(plain, images(8)) is None
    found = compile_for(state, images(8))
    assert found is not None
    assert found.graphs == graphs() - began == {"stages": 3, "whole": 1}[how]
    assert before.keys() == tensors(plain).keys()
    assert all(torch.equal(t, before[name]) for name, t in tensors(state).items())
    began = graphs()
    for step in range(3):
        for each in (plain, state):
            assert compile_for(each, images(8, step)) is None
            train_step(each, images(8, step), 0.05, 0.9)
    for name, t in tensors(state).items():
        torch.testing.assert_close(t, tensors(plain)[name], rtol=1e-4, atol=1e-5)
    losses = [evaluate(each, [images(5, 9)], 5)["loss"] for each in (plain, state)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert graphs() == began
    assert compile_for(state, images(4)) is not None
    assert graphs() > began


class Marked(nn.Module):
    """Notes when the gradient passes between two stages; it has no children, so it is not compiled."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.register_hook(lambda _: self.events.append("between"))
        return x


@dataclass
class Two(Solo):
    """As of two ranks: notes when gradients are sent."""

    events: list[str]
    size: int = field(default=2, init=False)

    def sum_async_(self, tensor: torch.Tensor, name: str) -> Handle:
        self.events.append(name)
        return super().sum_async_(tensor, name)


def test_gradients_are_sent_before_the_backward_pass_ends(graphs: Callable[[], int]) -> None:
    events: list[str] = []
    model = nn.Sequential(stage(), Marked(events), stage(), nn.Flatten(), nn.Linear(192, 7))
    state = state_of(model, comm=Two(events))
    assert len(state.reducer.groups) > 1
    compile_network(model, "stages", CPU)
    state.compiled = set()
    began = graphs()
    compile_for(state, images(4))
    assert (graphs() - began, events) == (2, ["between"])  # nothing is sent yet
    events.clear()
    state.reducer.start_step()
    backward(state, images(4))
    assert events[0] == "grad.0"
    assert events[-1] != "grad.0"
    assert "between" in events[1:]


def test_a_network_of_which_nothing_is_compiled_is_refused(graphs: Callable[[], int]) -> None:
    class Evasive(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1].forward(self[0].forward(x))

    model = Evasive(stage(), nn.Sequential(nn.Flatten(), nn.Linear(192, 7)))
    state = state_of(model)
    compile_network(model, "stages", CPU)
    state.compiled = set()
    with pytest.raises(ConfigError, match=r"^train\.compile: nothing of this network was compiled"):
        compile_for(state, images(4))


@pytest.mark.parametrize("failures", [1, 2])
def test_a_compiler_that_a_ctrl_c_has_ended_is_called_again(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = failures

    def compiler(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError("killed")
        return graph.forward

    state = trained("none")
    monkeypatch.setattr(compiling, "require_compiler", lambda device: None)
    monkeypatch.setattr(compiling, "BACKEND", compiler)
    compile_network(state.model, "whole", CPU)
    state.compiled = set()
    if failures == 1:
        assert compile_for(state, images(4)) is not None
        return
    with pytest.raises(
        ConfigError, match=r"^train\.compile: this network cannot be compiled \(.*kill"
    ):
        compile_for(state, images(4))


def test_parts_hold_at_most_half_of_the_parameters_where_they_can_be_split() -> None:
    expected = {
        "resnet50": "stem stages.0 stages.1 stages.2 stages.3.0 stages.3.1 stages.3.2",
        "resnet8_cifar": "stem stages.0 stages.1 stages.2.0",
        "airbench94": "features.1 features.2 features.3",
        "vgg_small": "features",
    }
    for name, parts in expected.items():
        with torch.device("meta"):
            model = MODELS[name](num_classes=10)
        names = {module: key for key, module in model.named_modules()}
        assert [names[part] for part in stages_of(model)] == parts.split()


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "none such")
    with pytest.raises(
        ConfigError, match=r"^train\.compile: torch\.compile does not work here \(.*g\+\+"
    ):
        compile_network(nn.Linear(2, 2), "whole", CPU)
    monkeypatch.setattr(torch, "compile", lambda model: model)  # as of an older torch
    with pytest.raises(ConfigError, match=r"^train\.compile: needs torch 2\.13, found 2\."):
        compile_network(nn.Linear(2, 2), "whole", CPU)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_compiled_kernels_give_the_same_gradients() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(192, 7), nn.Tanh()))
    state = state_of(model)
    before = [p.detach().clone() for p in model.parameters()]
    gradients = []
    for compiled in (False, True):
        if compiled:
            compile_network(model, "stages", CPU)
        state.reducer.start_step()
        backward(state, images(4))
        gradients.append([flat.clone() for flat in state.reducer.flats()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
    assert [*model.state_dict()] == ["1.0.weight", "1.0.bias"]
    assert all(map(torch.equal, before, model.parameters()))


def test_statistics_of_all_ranks_are_refused() -> None:
    both = ["train.compile=stages", "model.batch_norm=global"]
    with pytest.raises(ConfigError, match=r"cannot be had with model\.batch_norm: global"):
        parse_config("phases: [{epochs: 1}]", overrides=both)
