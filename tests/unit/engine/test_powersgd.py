"""PowerSGD against the paper's algorithm in float64, on ranks that are threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hvdtrain.comm.ranks import Comm, Solo
from hvdtrain.engine.compression.low_rank import is_compressed
from hvdtrain.engine.compression.powersgd import LowRankSum, orthonormalize
from hvdtrain.engine.reducer import Reducer
from tests.low_rank import made, paper, step
from tests.thread_ranks import Meeting

STEPS = 50
ROWS, COLUMNS = 24, 40


def gradients(
    rank: int, shape: tuple[int, ...] = (ROWS, COLUMNS), steps: int = STEPS
) -> list[Tensor]:
    """Gradients of a rank that have something in common with those of others and of other steps."""
    common = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(100 + rank)
    return [
        common + torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)
    ]


def reduced(
    comm: Comm, dtype: torch.dtype, rank: int
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """First Q, then gradient, error of this rank and Q after each step."""
    [p], reducer = made(comm, [(ROWS, COLUMNS)], dtype, rank=rank, seed=3)
    memory = reducer.memory
    assert memory is not None
    first, found = memory.matrices[p].factor.T.double().clone(), []
    for gradient in gradients(comm.rank):
        step(reducer, [p], [gradient.to(dtype)])
        kept = memory.matrices[p]
        assert p.grad is not None
        found.append([t.double().clone() for t in (p.grad, kept.error, kept.factor.T)])
    return first, *map(list, zip(*found, strict=True))


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize(
    ("dtype", "steps", "tolerance"), [(torch.float64, STEPS, 1e-9), (torch.float32, 10, 1e-4)]
)
def test_the_steps_of_two_ranks_are_those_of_the_paper(
    rank: int, dtype: torch.dtype, steps: int, tolerance: float
) -> None:
    """Numbers up to 40. Their rounding grows from step to step, as these gradients are mostly noise."""
    one, two = Meeting(2).run(lambda comm: reduced(comm, dtype, rank))
    expected = paper(list(zip(gradients(0), gradients(1), strict=True)), one[0])
    for number, (gradient, errors, q) in zip(range(steps), expected, strict=False):
        for first in (one, two):
            assert (first[1][number] - gradient).abs().max() < tolerance
            scaled = first[3][number] @ first[3][number].T, q @ q.T  # without signs of columns
            assert (scaled[0] - scaled[1]).norm() < 100 * tolerance * scaled[1].norm()
        for mine, error in zip((one, two), errors, strict=True):
            assert (2 * mine[2][number] - error).abs().max() < 10 * tolerance
        assert torch.equal(one[1][number], two[1][number])
        assert torch.equal(one[3][number], two[3][number])


def test_the_error_of_the_authors_code_gives_the_same_gradients() -> None:
    steps = list(zip(gradients(0), gradients(1), strict=True))
    q = torch.randn(COLUMNS, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own, mean = list(paper(steps, q)), list(paper(steps, q, mean_error=True))
    for (one, errors, _), (two, others, _) in zip(own, mean, strict=True):
        assert (one - two).abs().max() < 1e-9
        assert (sum(errors) - sum(others)).abs().max() < 1e-9
    # Only the errors themselves differ, and those of the mean grow.
    sizes = [[float(e.norm()) for e in row[1]] for row in (own[-1], mean[-1])]
    assert max(sizes[0]) < min(sizes[1])


def test_nothing_is_lost() -> None:
    """What was applied, and the errors, are together all gradients."""

    def work(comm: Comm) -> tuple[Tensor, Tensor]:
        [p], reducer = made(comm, [(ROWS, COLUMNS)])
        applied = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
        for gradient in gradients(comm.rank):
            step(reducer, [p], [gradient])
            applied += p.grad
        assert reducer.memory is not None
        return applied, reducer.memory.matrices[p].error

    (one, mine), (two, other) = Meeting(2).run(work)
    assert torch.equal(one, two)
    whole = sum(gradients(0), torch.zeros(())) / 2 + sum(gradients(1), torch.zeros(())) / 2
    assert (one + mine + other - whole).abs().max() < 1e-9


def test_what_is_compressed() -> None:
    """By a factor above 2, and nothing of one dimension."""
    assert is_compressed(64, 64, 4)
    assert is_compressed(17, 300, 8)
    assert not is_compressed(16, 16, 4)  # 256 numbers as 128
    shapes = [(64,), (64, 64), (16, 16), (8, 3, 3, 3), (64, 32, 3, 3), (1, 4096)]
    params, reducer = made(Solo(), shapes)
    assert reducer.memory is not None
    assert [p in reducer.memory.matrices for p in params] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    sent = 64 + 2 * 64 * 4 + 256 + 8 * 27 + (64 + 288) * 4 + 4096
    assert reducer.step_bytes == 8 * sent


def test_small_tensors_are_summed_as_they_are() -> None:
    def work(comm: Comm) -> list[Tensor]:
        params, reducer = made(comm, [(5,), (ROWS, COLUMNS), (3, 3)], group_bytes=1.0)
        assert len(reducer.groups) == 3
        step(reducer, params, [torch.full_like(p, 1.0 + comm.rank) for p in params])
        return [p.grad for p in params]

    for found in Meeting(2).run(work):
        assert found[0].tolist() == [1.5] * 5
        assert found[2].tolist() == [[1.5] * 3] * 3
        assert (found[1] - 1.5).abs().max() < 1e-12  # of rank one


def test_a_network_of_vectors_needs_no_second_sum() -> None:
    params, reducer = made(Solo(), [(5,), (7,)])
    assert [group.exchange.step_calls for group in reducer.groups] == [1]
    step(reducer, params, [torch.ones(5), torch.ones(7)])
    assert params[0].grad.tolist() == [1.0] * 5


@pytest.mark.parametrize("last", [False, True])
def test_groups_change_nothing(last: bool) -> None:
    """Nor do strides: a convolution's Q is the same filter in either order of memory."""
    shapes = [(32, 16, 3, 3), (32,), (48, 32, 3, 3), (10, 192)]

    def run(group_bytes: float, last: bool) -> list[Tensor]:
        params = [nn.Parameter(torch.zeros(*shape)) for shape in shapes]
        if last:
            for p in params[::2]:
                p.data = p.data.to(memory_format=torch.channels_last)
        reducer = Reducer(params, Solo(), compression="powersgd", group_bytes=group_bytes)
        assert len(reducer.groups) == (4 if group_bytes < 1e3 else 1)
        made_ = [gradients(number, tuple(s), 10) for number, s in enumerate(shapes)]
        for each in zip(*made_, strict=True):
            step(reducer, params, [g.float() for g in each])
        return [p.grad.contiguous() for p in params]

    for one, two in zip(run(1.0, last), run(1e9, False), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reads", [True, False])
def test_a_number_that_is_not_finite_changes_neither_error_nor_q(reads: bool) -> None:
    """On a CPU, and in the way of a GPU, where no number is looked at."""

    def work(comm: Comm) -> tuple[list[Tensor], list[Tensor], Tensor]:
        params, reducer = made(comm, [(ROWS, COLUMNS), (3,)])
        for group in reducer.groups:
            assert isinstance(group.exchange, LowRankSum)
            group.exchange.reads = reads
        [p, bias] = params
        assert reducer.memory is not None
        kept = reducer.memory.matrices[p]
        rows = gradients(comm.rank)
        step(reducer, params, [rows[0], torch.ones(3)])
        before = [kept.error.clone(), kept.factor.clone()]
        bad = rows[1].clone()
        bad[3, 5] = torch.inf if comm.rank else bad[3, 5]
        step(reducer, params, [bad, torch.ones(3)])
        assert not p.grad.isfinite().any()
        after = [kept.error.clone(), kept.factor.clone()]
        step(reducer, params, [rows[2], torch.ones(3) * torch.nan])
        assert bias.grad.isnan().all()
        assert all(map(torch.equal, after, [kept.error, kept.factor]))
        step(reducer, params, [rows[2], torch.ones(3)])
        assert not torch.equal(after[0], kept.error)
        return before, after, p.grad

    (before, after, one), (others, later, two) = Meeting(2).run(work)
    assert all(map(torch.equal, before + others, after + later))
    assert one.isfinite().all()
    assert torch.equal(one, two)


def test_a_frozen_gradient_keeps_its_error() -> None:
    params, reducer = made(Solo(), [(ROWS, COLUMNS), (COLUMNS, ROWS)])
    assert reducer.memory is not None
    rows = [gradients(0), gradients(1, (COLUMNS, ROWS))]
    step(reducer, params, [rows[0][0], rows[1][0]])
    kept = reducer.memory.matrices[params[0]]
    before = [kept.error.clone(), kept.factor.clone()]
    params[0].requires_grad_(False)
    step(reducer, params, [None, rows[1][1]])
    assert not reducer.groups[0].places[params[0]].any()
    assert all(map(torch.equal, before, [kept.error, kept.factor]))
    params[0].requires_grad_(True)
    step(reducer, params, [rows[0][1], rows[1][2]])
    assert not torch.equal(before[0], kept.error)


def test_gradients_of_zeros_are_no_end() -> None:
    [p], reducer = made(Solo(), [(ROWS, COLUMNS)], rank=2)
    rows = gradients(0)
    for gradient in (rows[0], torch.zeros_like(p), torch.zeros_like(p)):
        step(reducer, [p], [gradient])
    assert reducer.memory is not None
    reducer.memory.matrices[p].error.zero_()
    for _ in range(2):
        step(reducer, [p], [torch.zeros_like(p)])
        assert not p.grad.any()
    exact = rows[0][:, :1] @ rows[1][:1]  # of rank one
    for _ in range(3):
        step(reducer, [p], [exact])
    assert (p.grad - exact).norm() < 1e-9 * exact.norm()


def test_orthonormal_columns() -> None:
    matrices = [torch.randn(n, 4, dtype=torch.float64) for n in (9, 30, 9)]
    matrices[1][:, 2] = matrices[1][:, 1]
    spans = [matrix.clone() for matrix in matrices]
    orthonormalize(matrices)
    for matrix, span in zip(matrices, spans, strict=True):
        assert (matrix.T @ matrix - torch.eye(4)).abs().max() < 1e-12
        assert (matrix @ (matrix.T @ span) - span).abs().max() < 1e-12


def test_a_step_that_fails_changes_nothing() -> None:
    class Failing(Solo):
        calls = 0

        def sum_async_(self, tensor: Tensor, name: str):  # type: ignore[no-untyped-def]
            self.calls += 1
            if self.calls == 4:
                raise RuntimeError("gone")
            return super().sum_async_(tensor, name)

    params, reducer = made(Failing(), [(ROWS, COLUMNS), (COLUMNS, ROWS)], group_bytes=1.0)
    assert reducer.memory is not None
    kept = [reducer.memory.matrices[p] for p in params]
    before = [kept[k].factor.clone() for k in range(2)]
    with pytest.raises(RuntimeError, match="gone"):
        step(reducer, params, [gradients(0)[0], gradients(1, (COLUMNS, ROWS))[0]])
    assert all(map(torch.equal, before, [one.factor for one in kept]))
    assert not any(one.error.any() for one in kept)


def test_without_an_exchange_nothing_changes() -> None:
    [p], reducer = made(Solo(), [(ROWS, COLUMNS)])
    assert reducer.memory is not None
    gradient = gradients(0)[0]
    reducer.start_step(communicate=False)
    reducer.start_backward()
    (p * gradient).sum().backward()
    reducer.end_backward()
    reducer.finish()
    assert torch.equal(p.grad, gradient)
    assert not reducer.memory.matrices[p].error.any()
