"""The token kernels against the definition: every tie, NaN and zero, awkward lengths, strides, and indices outside."""

from __future__ import annotations

import pytest
import torch
from token_cases import CASES, LENGTHS, RowCase, counts, row_cases, scores_of

pytest.importorskip("triton", reason="triton is not installed")
from toprovar.plugins.token_select import launch, reference


@pytest.mark.parametrize("largest", [False, True], ids=["smallest", "largest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", LENGTHS)
def test_selection_matches_the_definition(n: int, dtype: torch.dtype, largest: bool, device: str) -> None:
    scores = scores_of(n, dtype, device)
    for k in counts(n):
        expected = reference.select(scores.cpu(), k, largest)
        assert torch.equal(launch.select(scores, k, largest).cpu(), expected), f"k={k}, rows are {CASES}"


def test_every_bit_of_the_key_counts(device: str) -> None:
    """Scores one bit apart in each of the 32 places, so that each round of the search decides once."""
    bits = torch.tensor([(1 << place) - (1 << 32 if place == 31 else 0) for place in range(32)], dtype=torch.int32)
    scores = torch.cat([bits, bits ^ 0x3F800000, bits + 1]).view(torch.float32)[None].to(device)
    for k in range(1, 97):
        assert torch.equal(launch.select(scores, k, False).cpu(), reference.select(scores.cpu(), k, False))


@pytest.mark.parametrize("n", [1, 63, 1000])
def test_slots_are_the_places_of_the_chosen(n: int, device: str) -> None:
    scores = torch.randn(3, n, generator=torch.Generator().manual_seed(n)).to(device)
    index, slots = launch.select_with_slots(scores, max(1, n // 3), True)
    assert torch.equal(index, launch.select(scores, max(1, n // 3), True))
    assert torch.equal(slots, reference.slots(index, n))
    assert torch.equal((slots >= 0).sum(dim=1).cpu(), torch.full((3,), max(1, n // 3)))


def test_selection_reads_strided_scores(device: str) -> None:
    wide = scores_of(50, torch.float32, device)
    for scores in (wide[::2, 3:47], wide[:, ::3], wide[:1].expand(4, -1), wide.t().contiguous().t()):
        assert torch.equal(launch.select(scores, 7, True).cpu(), reference.select(scores.cpu(), 7, True))


def test_longer_rows_and_fp64_take_the_definition(device: str) -> None:
    for scores in (scores_of(launch.MAX_SCORES + 1, torch.float32, device), scores_of(40, torch.float64, device)):
        assert torch.equal(launch.select(scores, 9, False).cpu(), reference.select(scores.cpu(), 9, False))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("case", row_cases(), ids=lambda case: case.name)
def test_row_moves_match_the_definition(case: RowCase, index_dtype: torch.dtype, device: str) -> None:
    x, indices, rows = case.tensors(device)
    indices = indices.to(index_dtype)
    assert torch.equal(launch.gather_rows(x, indices), reference.gather_rows(x, indices))
    before = x.clone()
    assert torch.equal(launch.scatter_rows(x, indices, rows), reference.scatter_rows(x, indices, rows))
    assert torch.equal(x, before)


def test_one_index_list_serves_a_whole_batch(device: str) -> None:
    x, indices, rows = RowCase("", (3, 17, 64), 5, torch.float32).tensors(device)
    shared = indices[:1].expand(3, -1)
    assert torch.equal(launch.gather_rows(x, shared), reference.gather_rows(x, shared))
    assert torch.equal(launch.scatter_rows(x, shared, rows), reference.scatter_rows(x, shared, rows))


def test_a_copy_keeps_every_bit(device: str) -> None:
    """NaN payloads and signed zeros survive, because rows travel as integers."""
    words = torch.tensor([[[0x7FA00001, -0x80000000], [0x7FC00000, 1]]], dtype=torch.int32, device=device)
    indices = torch.tensor([[1, 0]], device=device)
    x = words.view(torch.float32)
    assert torch.equal(launch.gather_rows(x, indices).view(torch.int32), words.flip(1))
    assert torch.equal(launch.scatter_rows(x, indices, x).view(torch.int32), words.flip(1))


def test_an_index_outside_touches_nothing(device: str) -> None:
    x, _, rows = RowCase("", (1, 4, 8), 3, torch.float32).tensors(device)
    indices = torch.tensor([[4, -1, 2]], device=device)
    gathered = launch.gather_rows(x, indices)
    assert torch.equal(gathered, torch.stack([x[0, 0] * 0, x[0, 0] * 0, x[0, 2]])[None])
    expected = x.clone()
    expected[0, 2] = rows[0, 2]
    assert torch.equal(launch.scatter_rows(x, indices, rows), expected)


def test_empty_batches_launch_nothing(device: str) -> None:
    x, indices = torch.zeros(0, 4, 8, device=device), torch.zeros(0, 2, dtype=torch.int64, device=device)
    assert launch.select(x[..., 0], 2, False).shape == (0, 2)
    assert launch.gather_rows(x, indices).shape == (0, 2, 8)
    assert launch.scatter_rows(x, indices, torch.zeros(0, 2, 8, device=device)).shape == (0, 4, 8)


def test_graphs_capture_all_three(device: str) -> None:
    """No read-back to the host: capture fails where there is one, and the replay must follow new scores."""
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    x, _, _ = RowCase("", (2, 144, 64), 72, torch.float16).tensors(device)
    scores = scores_of(144, torch.float32, device)[:2].clone()

    def step() -> torch.Tensor:
        chosen = launch.select(scores, 72, False)
        return launch.scatter_rows(x, chosen, 2 * launch.gather_rows(x, chosen))

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    scores.copy_(scores.flip(1))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(result, step())
