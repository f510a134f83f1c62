"""HART's scales under schedules: what is removed is removed exactly, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hart_model import condition, draw, loaded, small_model, small_profile, with_tokens
from toprovar.models.family import build_steps
from toprovar.models.hart.noise import scale_noise
from toprovar.models.hart.transformer import Hart, text_positions
from toprovar.models.resize import resize
from toprovar.models.state import narrow_rows
from toprovar.models.vq.vae import VqVae
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.errors import ProfileError
from toprovar.profiles.hart import HartConfig, HartSampling, ramp
from toprovar.profiles.model import load_profile
from toprovar.profiles.plan import plan_scales, scale_flops
from torch.nn import functional as F

LAST = 4
# mixed codes pass rounding on, where drawn ones do not; measured 3.6e-4 on sums of about 3
SOFT_TOLERANCE = 1e-3


@pytest.mark.parametrize("more_smooth", [True, False], ids=["soft", "hard"])
def test_a_schedule_that_removes_nothing_equals_dense_bit_for_bit(more_smooth: bool) -> None:
    profile = small_profile(more_smooth=more_smooth)
    whole, _ = draw(dense(profile), profile)
    for fill, cache in (("hold", None), ("bypass", None), ("cache", 2), ("branch", 2)):
        schedule = with_tokens(kept=(64, 64), fill=fill, cache_scale=cache)
        assert schedule.removes_nothing
        assert torch.equal(draw(schedule, profile)[0], whole)


def test_requests_leave_no_state_behind() -> None:
    first, _ = draw(dense(small_profile()))
    draw(with_tokens(kept=(20, 20)), seed=9)
    draw(baseline("noguide-2", small_profile()), batch=1)
    assert torch.equal(draw(dense(small_profile()))[0], first)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_skip_is_the_sum_before_the_skipped_scales(count: int) -> None:
    """Without the last scale there is no residual of the diffusion head either."""
    _, outputs = draw(dense(small_profile()))
    summed, left = draw(baseline(f"skip-{count}", small_profile()))
    assert torch.equal(summed, outputs[LAST - count]["summed"])
    assert "k.0" not in left[LAST - count]


def test_a_scale_in_the_middle_can_be_left_out() -> None:
    base = dense(small_profile())
    rules = [replace(rule, run=rule.scale != 2) for rule in base.scales]
    summed, outputs = draw(replace(base, scales=tuple(rules)))
    assert sorted(outputs) == [0, 1, 3, 4]
    assert torch.isfinite(summed).all()
    assert outputs[3]["k.0"].shape[2] == 7 + 4 + 25


def test_dropped_guidance_uses_the_conditional_rows_alone() -> None:
    """Dropped behind scale 0, which has strength 0: the image of a model without guidance."""
    profile = small_profile(cfg=0.0)
    expected, _ = draw(dense(profile), profile)
    summed, outputs = draw(baseline("noguide-4", small_profile()))
    torch.testing.assert_close(summed, expected, rtol=0, atol=SOFT_TOLERANCE)
    assert [outputs[scale]["k.0"].shape[0] for scale in range(LAST)] == [4, 2, 2, 2]


def test_skipped_layers_are_an_identity() -> None:
    """Also at scale 0, where the text then leaves no keys in that layer."""
    base = dense(small_profile())
    rules = [replace(rule, skip_layers=(0,) if rule.scale in (0, 3) else ()) for rule in base.scales]
    summed, outputs = draw(replace(base, scales=tuple(rules), entropy_layer=1))
    assert "k.0" not in outputs[0]
    assert outputs[1]["k.0"].shape[2] == 4
    assert outputs[1]["k.1"].shape[2] == 7 + 4
    assert "k.0" not in outputs[3]
    assert torch.isfinite(summed).all()


@pytest.mark.parametrize("score", ["entropy", "random"])
def test_held_tokens_add_nothing_and_kept_ones_are_the_sharpest(score: str) -> None:
    """At the last scale, whose codes are added without a filter."""
    whole, _ = draw(dense(small_profile()))
    summed, outputs = draw(with_tokens(kept=(20, 20), score=score))
    silent = (summed == outputs[LAST - 1]["summed"]).flatten(2).all(dim=1)
    assert silent.sum(dim=1).tolist() == [44, 44]
    if score == "entropy":
        entropy = resize(outputs[LAST - 1]["entropy"], (8, 8)).flatten(1)
        for row in range(2):
            assert float(entropy[row][~silent[row]].max()) <= float(entropy[row][silent[row]].min())
    assert not torch.equal(summed, whole)


def test_held_tokens_at_an_earlier_scale_leave_only_the_smoothing() -> None:
    """A token without a code adds what the filter and the convolution make of its neighbours and of its bias."""
    summed, outputs = draw(with_tokens(scale=3, kept=(5, 5)))
    assert torch.isfinite(summed).all()
    assert outputs[3]["k.0"].shape[2] == 7 + 4 + 9 + 5


@pytest.mark.parametrize("fill", ["bypass", "cache", "branch"])
@pytest.mark.parametrize("score", ["entropy", "random"])
def test_other_fills_draw_every_token(fill: str, score: str) -> None:
    whole, before = draw(dense(small_profile()))
    cache = None if fill == "bypass" else 2
    summed, outputs = draw(with_tokens(kept=(20, 64), fill=fill, cache_scale=cache, score=score))
    assert ((summed - before[LAST - 1]["summed"]) != 0).any(dim=1).all()
    assert not torch.equal(summed, whole)
    names = {"bypass": (), "cache": ("delta.0",), "branch": ("delta_attention.0", "delta_mlp.0")}[fill]
    for name in names:
        assert outputs[2][name].shape == (4, 64, 3, 3)


def test_distance_score_runs_branch_by_branch() -> None:
    summed, outputs = draw(with_tokens(kept=(20, 20), fill="branch", cache_scale=2, score="distance"), observe=True)
    assert outputs[LAST]["observed.kept_attention.1"].shape == (4, 20)
    assert outputs[LAST]["observed.kept_mlp.0"].shape == (4, 20)
    assert torch.isfinite(summed).all()


def test_a_cache_of_the_first_scale_is_that_of_the_image_token() -> None:
    """Scale 0 runs the text as well; only the token that draws the image's first is enlarged."""
    _, outputs = draw(with_tokens(kept=(20, 20), fill="cache", cache_scale=0), observe=True)
    assert outputs[0]["delta.0"].shape == (4, 64, 1, 1)
    assert outputs[0]["observed.entropy.0"].shape == (4, 2, 1)
    assert outputs[0]["observed.update.1"].shape == (4, 1)


@pytest.mark.parametrize("cfg", [4.5, 0.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("batch", [1, 2])
def test_an_image_does_not_depend_on_its_batch(batch: int, cfg: float) -> None:
    profile = small_profile(cfg=cfg)
    together, _ = draw(dense(profile), profile, batch)
    for index in range(batch):
        alone, _ = draw(dense(profile), profile, 1, seed=index)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=SOFT_TOLERANCE)


def test_the_image_depends_on_text_padding_and_noise() -> None:
    """Padding is attended to, as released."""
    whole, _ = draw(dense(small_profile()), batch=1)
    assert not torch.equal(draw(dense(small_profile()), batch=1, seed=1)[0], whole)
    text, lengths = condition(1, 0)
    text[:, -1] += 1
    assert lengths.tolist() == [5]
    assert not torch.equal(draw(dense(small_profile()), batch=1, given=(text, lengths))[0], whole)


def test_half_precision_keeps_sums_and_positions_in_fp32() -> None:
    model, vae = (part.to(torch.bfloat16) for part in small_model(copy=True))
    summed, outputs = draw(dense(small_profile()), model=(model, vae))
    assert summed.dtype == torch.float32
    assert outputs[0]["k.0"].dtype == torch.bfloat16
    assert torch.isfinite(summed).all()
    state = model.initial_state(*condition(1, 0))
    assert state["positions"].dtype == torch.float32


def test_decoder_gives_the_image() -> None:
    profile = small_profile()
    summed, _ = draw(dense(profile))
    with torch.inference_mode():
        image = small_model()[1].image_decoder()(summed)
    assert image.shape == (2, 3, *profile.image_size)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [("right", [[0, 1, 2, 2, 2], [0, 0, 0, 0, 0]]), ("left", [[-1, -1, 0, 1, 2], [0, 0, 0, 0, 0]])],
)
def test_text_positions(padding: str, expected: list[list[int]]) -> None:
    assert text_positions(torch.tensor([3, 0]), 5, padding).tolist() == expected


def test_the_last_strength_is_that_of_the_scale_before() -> None:
    assert [ramp(scale, 5) for scale in range(5)] == [0, 0.25, 0.5, 0.75, 0.75]
    assert HartSampling(cfg=2.0).per_scale("cfg", 5) == (1, 1.5, 2, 2.5, 2.5)


def test_noise_is_a_function_of_seed_and_scale() -> None:
    profile = small_profile()
    first, again, other = (scale_noise(profile, seed, LAST) for seed in (3, 3, 4))
    assert {name: value.shape for name, value in first.items()} == {
        "noise": (1, 64, 96),
        "smooth_noise": (1, 64, 96),
        "diffusion_noise": (1, 64, 2, 8),
    }
    assert all(np.array_equal(first[name], again[name]) and not np.array_equal(first[name], other[name]) for name in first)
    assert not np.array_equal(first["noise"], first["smooth_noise"])
    assert float(np.concatenate([v.ravel() for v in (first["noise"], other["noise"])]).mean()) == pytest.approx(0.577, abs=0.03)
    assert set(scale_noise(small_profile(more_smooth=False), 3, 0)) == {"noise"}


def test_drawn_codes_follow_the_logits() -> None:
    """Over many draws the share of a code is its probability."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    noise = torch.cat([torch.from_numpy(scale_noise(small_profile(), seed, LAST)["noise"][0]) for seed in range(16)])
    drawn = (logits + noise[:, :4]).argmax(dim=-1)
    share = F.one_hot(drawn, 4).float().mean(dim=0)
    torch.testing.assert_close(share, logits.softmax(dim=0), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 66, "heads": 4}, "head width divisible by 4"),
        ({"patch_nums": (1,)}, "rise from 1 in two or more scales"),
        ({"patch_nums": (1, 3, 2)}, "rise from 1"),
        ({"diffusion_steps": 1}, "from 2 to 1000"),
        ({"text_padding": "both"}, "'right' or 'left', got 'both'"),
        ({"depth": 0}, "depth must be a whole number >= 1"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        replace(small_profile().transformer, **changes)


def test_a_vqvae_of_other_codes_is_refused() -> None:
    profile = small_profile()
    assert isinstance(profile.transformer, HartConfig)
    with pytest.raises(ProfileError, match="96 codes of 8 channels, the transformer 97 of 8"):
        replace(profile, transformer=replace(profile.transformer, vocabulary=97))


def test_flops_are_those_of_the_weights_that_run() -> None:
    """Linear layers cost two operations a weight and token; the text runs at scale 0, the diffusion head at the last."""
    profile, (model, _) = small_profile(), small_model()
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.dim() == 2}
    layers = sum(count for name, count in matrices.items() if name.startswith("blocks."))
    residual = sum(n for name, n in matrices.items() if name.startswith("diffloss.") and "time_embed" not in name)
    once = matrices["diffloss.net.cond_embed.weight"]
    ends = matrices["word_embed.weight"] + matrices["head.weight"]
    plans = plan_scales(dense(profile))
    text, keys = 7, 0
    for plan in plans:
        tokens = text if plan.scale == 0 else plan.count
        keys += tokens
        expected = 2 * tokens * layers + 2 * 4 * 64 * tokens * keys + 2 * plan.count * ends
        if plan.scale == LAST:
            expected += 2 * plan.count * (2 * (residual - once) + once)
        assert scale_flops(plan, profile) == 2 * expected, plan.scale


def test_the_released_shape_runs_at_1024_pixels_as_its_inputs_are_declared() -> None:
    """On the meta device, where tensors have shapes but no numbers: the shapes of all 14 scales fit together."""
    profile = load_profile("hart-0.7b")
    with torch.device("meta"):
        model, vae = Hart(profile.transformer), VqVae(profile.vae)
        state = dict(model.initial_state(torch.empty(2, 300, 1536), torch.empty(2, dtype=torch.int64)))
        schedule = baseline("noguide-2", profile)
        for step in build_steps(loaded(profile, model, vae), schedule):
            if step.plan.drops_guidance:
                state = narrow_rows(state, 1)
            sizes = {"B": 1, "R": step.plan.rows}
            given = {name: [sizes.get(size, size) for size in step.input_shape(name)] for name in step.input_names()}
            assert {name: [*state[name].shape] for name in given if name in state} == {
                name: shape for name, shape in given.items() if name in state
            }
            own = {name: torch.empty(shape) for name, shape in given.items() if name not in state}
            assert set(own) <= {"noise", "smooth_noise", "diffusion_noise", "cfg"}
            state |= step({**state, **own})
        assert state["summed"].shape == (1, 32, 64, 64)
        assert vae.image_decoder()(state["summed"]).shape == (1, 3, 1024, 1024)
