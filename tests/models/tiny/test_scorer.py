"""The scorer learns what it is shown, and `decode` and `exact_match` judge by the rules they state."""

import numpy as np
import pytest
import torch
from toprovar.models.tiny.render import render, take, to_tensors
from toprovar.models.tiny.scenes import Detection, sample_scenes
from toprovar.models.tiny.scorer import (
    CELL,
    GRID,
    Scorer,
    ScorerOutput,
    decode,
    exact_match,
    scorer_accuracy,
    scorer_loss,
    train_scorer,
)
from toprovar.models.tiny.vocabulary import COLOURS, SHAPES

STAR = Detection("star", "red", 60.0, 60.0)
RING = Detection("ring", "blue", 180.0, 170.0)


def moved(one: Detection, by: float) -> Detection:
    return Detection(one.shape, one.colour, one.x + by, one.y)


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        pytest.param([RING, STAR], True, id="any-order"),
        pytest.param([moved(STAR, 11.9), RING], True, id="just-near-enough"),
        pytest.param([moved(STAR, 12.1), RING], False, id="too-far"),
        pytest.param([STAR], False, id="one-missing"),
        pytest.param([STAR, RING, moved(RING, 60)], False, id="one-too-many"),
        pytest.param([STAR, STAR], False, id="the-same-twice"),
        pytest.param([Detection("star", "pink", 60, 60), RING], False, id="wrong-colour"),
        pytest.param([Detection("moon", "red", 60, 60), RING], False, id="wrong-shape"),
    ],
)
def test_exact_match(detections: list[Detection], expected: bool) -> None:
    assert exact_match(detections, [STAR, RING]) is expected


def test_exact_match_of_nothing() -> None:
    assert exact_match([], [])
    assert not exact_match([STAR], [])


def perfect_output(scenes: list[list[Detection]]) -> ScorerOutput:
    """What a perfect network would say, with the heat falling off by distance."""
    heat = torch.full((len(scenes), GRID, GRID), -9.0)
    shape, colour = (torch.zeros(len(scenes), 8, GRID, GRID) for _ in range(2))
    offset = torch.zeros(len(scenes), 2, GRID, GRID)
    for image, objects in enumerate(scenes):
        for one in objects:
            for row in range(GRID):
                for column in range(GRID):
                    apart = torch.tensor([one.x / CELL - column - 0.5, one.y / CELL - row - 0.5])
                    near = 3.0 - 2.0 * float(apart.square().sum())
                    if near > heat[image, row, column]:
                        heat[image, row, column] = near
                        offset[image, :, row, column] = apart
                        for logits, index in (
                            (shape, SHAPES.index(one.shape)),
                            (colour, COLOURS.index(one.colour)),
                        ):
                            logits[image, :, row, column] = 0
                            logits[image, index, row, column] = 5
    return ScorerOutput(heat, shape, colour, offset)


def test_decode_reads_back_a_perfect_answer() -> None:
    scenes = sample_scenes(24, np.random.default_rng(8))
    truth = [*(scenes.objects(index) for index in range(24)), []]
    found = decode(perfect_output(truth))
    for detections, objects in zip(found, truth, strict=True):
        assert exact_match(detections, objects)
        assert [one.confidence for one in detections] == sorted((one.confidence for one in detections), reverse=True)
        for one in detections:
            assert min(abs(one.x - other.x) + abs(one.y - other.y) for other in objects) < 0.01


def test_loss_prefers_the_truth() -> None:
    """Each part of a perfect answer, spoiled alone, costs more."""
    scenes = sample_scenes(12, np.random.default_rng(9))
    tensors = to_tensors(scenes)
    truth = perfect_output([scenes.objects(index) for index in range(12)])
    best = scorer_loss(truth, tensors)
    for field in ScorerOutput._fields:
        spoiled = truth._replace(**{field: -getattr(truth, field)})
        assert scorer_loss(spoiled, tensors) > best + 0.3, field


def test_unused_slots_do_not_enter_the_loss() -> None:
    scenes = to_tensors(sample_scenes(30, np.random.default_rng(10)))
    outputs = Scorer().eval()(render(take(scenes, torch.arange(4))))
    some = take(scenes, torch.arange(4))
    unused = torch.arange(4) >= some["count"][:, None]
    assert unused.any()
    other = some | {"x": torch.where(unused, 100.0, some["x"]), "shape": torch.where(unused, 3, some["shape"])}
    torch.testing.assert_close(scorer_loss(outputs, some), scorer_loss(outputs, other), rtol=0, atol=0)


def test_overfits_a_handful_of_scenes() -> None:
    scenes = sample_scenes(6, np.random.default_rng(1))
    tensors = to_tensors(scenes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scorer = Scorer()
    images = render(tensors)
    optimiser = torch.optim.AdamW(scorer.parameters(), lr=4e-3)
    losses = []
    for _ in range(60):
        loss = scorer_loss(scorer(images), tensors)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    # batch statistics, as in training: sixty steps do not settle the running ones
    with torch.no_grad():
        found = decode(scorer(images))
    assert all(exact_match(one, scenes.objects(index)) for index, one in enumerate(found))


def test_training_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    before, lines = torch.get_rng_state(), []

    def trained() -> Scorer:
        return train_scorer("cpu", steps=2, batch=3, generator=torch.Generator().manual_seed(4), log=lines.append)

    first, second = trained(), trained()
    assert torch.equal(torch.get_rng_state(), before)
    assert len(lines) == 4
    assert not first.training
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0)
    assert sum(parameter.numel() for parameter in first.parameters()) <= 250_000
    assert 0.0 <= scorer_accuracy(first, 5, 0, "cpu") <= 1.0
