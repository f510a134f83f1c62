"""Token selection and row moves: the ops against NumPy's stable argsort, and what callers are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from token_cases import CASES, LENGTHS, RowCase, counts, row_cases, scores_of
from toprovar.plugins.token_select import gather_rows, scatter_rows, select_tokens
from torch import Tensor, nn

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def by_argsort(scores: Tensor, k: int, largest: bool) -> Tensor:
    """A second formulation: NumPy's stable argsort of the negated or plain scores, NaN replaced by a rank of its own."""
    values = scores.double().numpy()
    nan = np.isnan(values)
    filled = np.where(nan, 0.0, values)
    # lexsort is stable and its last key leads: NaN apart, then the value, then the index
    order = np.lexsort((-filled if largest else filled, ~nan if largest else nan), axis=-1)
    return torch.from_numpy(np.sort(order[:, :k], axis=-1))


@pytest.mark.parametrize("largest", [False, True], ids=["smallest", "largest"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", LENGTHS)
def test_select_equals_a_stable_argsort(n: int, dtype: torch.dtype, largest: bool) -> None:
    scores = scores_of(n, dtype)
    before = scores.clone()
    for k in counts(n):
        chosen = select_tokens(scores, k, largest)
        assert chosen.dtype == torch.int64
        assert torch.equal(chosen, by_argsort(scores, k, largest)), f"k={k}, rows are {CASES}"
    assert torch.equal(scores.view(torch.uint8), before.view(torch.uint8))


def test_ties_go_to_the_lower_index() -> None:
    scores = torch.tensor([[2.0, 1.0, 2.0, 1.0, 2.0]])
    assert select_tokens(scores, 3).tolist() == [[0, 1, 3]]
    assert select_tokens(scores, 2, largest=True).tolist() == [[0, 2]]


def test_zeros_are_one_value_and_every_nan_is_the_greatest() -> None:
    nan = torch.tensor(float("nan"))
    scores = torch.stack(
        [nan.copysign(-torch.ones(())), torch.tensor(0.0), torch.tensor(-0.0), torch.tensor(float("inf")), nan]
    )
    assert select_tokens(scores[None], 1).tolist() == [[1]]
    assert select_tokens(scores[None], 4).tolist() == [[0, 1, 2, 3]]
    assert select_tokens(scores[None], 2, largest=True).tolist() == [[0, 4]]
    assert select_tokens(scores[None], 4, largest=True).tolist() == [[0, 1, 3, 4]]


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("case", row_cases(), ids=lambda case: case.name)
def test_rows_move_as_numpy_moves_them(case: RowCase, index_dtype: torch.dtype) -> None:
    x, indices, rows = case.tensors("cpu")
    before = x.clone()
    which = (np.arange(x.shape[0])[:, None], indices.numpy())
    expected = x.float().numpy().copy()
    assert np.array_equal(gather_rows(x, indices.to(index_dtype)).float().numpy(), expected[which])
    expected[which] = rows.float().numpy()
    result = scatter_rows(x, indices.to(index_dtype), rows)
    assert result.dtype == x.dtype
    assert np.array_equal(result.float().numpy(), expected)
    assert torch.equal(x, before)


def test_scatter_undoes_gather() -> None:
    x = torch.randn(2, 25, 6, generator=torch.Generator().manual_seed(0))
    indices = select_tokens(x.mean(dim=-1), 9)
    assert torch.equal(scatter_rows(x, indices, gather_rows(x, indices)), x)


def test_ops_are_registered_as_torch_wants_them() -> None:
    x = torch.randn(2, 9, 6)
    indices = torch.tensor([[0, 3, 8], [1, 2, 5]])
    ops = torch.ops.toprovar
    torch.library.opcheck(ops.select_tokens.default, (x[..., 0], 4, False))
    torch.library.opcheck(ops.select_tokens.default, (x[..., 0], 9, True))
    torch.library.opcheck(ops.gather_rows.default, (x.transpose(0, 1).contiguous().transpose(0, 1), indices))
    torch.library.opcheck(ops.scatter_rows.default, (x, indices.int(), torch.randn(2, 3, 6)))


class Halved(nn.Module):
    """Doubles the quieter half of the tokens."""

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        indices = select_tokens(scores, scores.shape[1] // 2)
        return scatter_rows(x, indices, 2 * gather_rows(x, indices))


def test_export_and_compile_keep_the_ops_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    x, scores = torch.randn(2, 12, 4, generator=generator), torch.randn(2, 12, generator=generator)
    length = torch.export.Dim("length", min=4, max=4096)
    program = torch.export.export(Halved(), (x, scores), dynamic_shapes=({1: length}, {1: length}))
    names = [str(node.target) for node in program.graph.nodes if "toprovar" in str(node.target)]
    assert names == [f"toprovar.{name}.default" for name in ("select_tokens", "gather_rows", "scatter_rows")]
    longer, more = torch.randn(2, 31, 4, generator=generator), torch.randn(2, 31, generator=generator)
    assert torch.equal(program.module()(longer, more), Halved()(longer, more))
    compiled = torch.compile(Halved(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, scores), Halved()(x, scores))


def test_select_names_what_came_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"scores: got torch.int64 \[2, 3\] on cpu, expected \[R, N\].*flatten"):
        select_tokens(torch.zeros(2, 3, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match=r"scores: got torch.float32 \[2, 1, 3\]"):
        select_tokens(torch.zeros(2, 1, 3), 1)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k: got {k} for rows of 3 scores, expected 1 to 3; keep"):
            select_tokens(torch.zeros(2, 3), k)


def test_row_moves_name_what_came_and_what_to_do() -> None:
    x, indices = torch.zeros(2, 5, 3), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"x: got torch.float32 \[5, 3\] on cpu, expected \[B, N, C\].*unsqueeze"):
        gather_rows(x[0], indices)
    wrong = [indices.float(), indices[:1], indices[0], indices.to("meta")]
    for bad in wrong:
        with pytest.raises(ValueError, match=r"indices: got .* expected int32 or int64 \[2, k\] on cpu; use"):
            gather_rows(x, bad)
        with pytest.raises(ValueError, match="indices: got"):
            scatter_rows(x, bad, torch.zeros(2, 1, 3))
    for rows in (torch.zeros(2, 2, 3), torch.zeros(2, 1, 3).half(), torch.zeros(2, 1, 3, device="meta")):
        with pytest.raises(ValueError, match=r"rows: got .* expected torch.float32 \[2, 1, 3\] on cpu; give"):
            scatter_rows(x, indices, rows)
