"""Scores of tokens that schedules do not have, tried on a schedule that reads an entropy map: the map is replaced.

A scale pruned by `entropy` keeps the tokens where a map of the scale before is lowest; which map that is, it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..calibrate.search.trials import Fidelity, Trials
from ..models.family import build_steps, family_of
from ..models.generate import Noise, run_scales
from ..models.load import LoadedModel
from ..models.state import State
from ..profiles.baselines import dense
from ..profiles.errors import ToprovarError
from ..profiles.fidelity import squared_error, ssim
from ..profiles.model import ModelProfile
from ..profiles.plan import plan_scales
from ..profiles.schedule import Schedule, TokenRule

RANDOM = "random"
SCORES = ("entropy low", "entropy high", "uncertainty low", "uncertainty high", "change low", "change high", RANDOM)
"""What is kept first; `high` is the other end of the same map."""


def pruned(profile: ModelProfile, scale: int, share: float, fill: str, score: str) -> Schedule:
    """The dense schedule with a share of one scale's tokens in every layer."""
    base = dense(profile)
    rules = list(base.scales)
    kept = (max(1, round(share * rules[scale].count)),) * base.layers
    tokens = TokenRule(
        kept=kept,
        score=RANDOM if score == RANDOM else "entropy",
        fill=fill,
        cache_scale=scale - 1 if fill == "cache" else None,
    )
    rules[scale] = replace(rules[scale], tokens=tokens)
    return replace(base, policy=f"{share:g} of scale {scale}", scales=tuple(rules))


class ScoreTrials:
    """Fidelity of schedules that prune one scale, by any of `SCORES`.

    Args:
        model: All weights, on one device.
        prompts: Prompts and noise seeds.
    """

    def __init__(self, model: LoadedModel, prompts: Sequence[tuple[str, int]]) -> None:
        self.model, self.prompts = model, tuple(prompts)
        self.trials = Trials(model, prompts, key="")
        self.plans = plan_scales(self.trials.base)

    @torch.inference_mode()
    def measure(self, cases: Sequence[tuple[Schedule, str]]) -> list[Fidelity]:
        """Fidelity to dense of each (schedule, score), in order."""
        from tqdm import tqdm

        errors: list[list[float]] = [[] for _ in cases]
        similarities: list[list[float]] = [[] for _ in cases]
        for prompt, seed in tqdm(self.prompts, unit="prompt", desc="tokens", disable=None):
            states, noise = self.trials.dense_states(prompt, seed)
            reference = self.trials.image(states[-1]["summed"])
            maps: dict[tuple[int, str], Tensor] = {}
            for index, (schedule, score) in enumerate(cases):
                scale = next(rule.scale for rule in schedule.scales if rule.prunes_tokens)
                if (scale, score) not in maps and score != RANDOM:
                    maps[scale, score] = self.score_map(states, noise, scale, score)
                state = State(states[scale])
                if score != RANDOM:
                    state["entropy"] = maps[scale, score]
                steps = [step for step in build_steps(self.model, schedule) if step.plan.scale >= scale]
                image = self.trials.image(run_scales(steps, state, noise)["summed"])
                errors[index].append(squared_error(image, reference))
                similarities[index].append(ssim(image, reference))
        return [Fidelity(tuple(e), tuple(s)) for e, s in zip(errors, similarities, strict=True)]

    def score_map(self, states: Sequence[State], noise: Noise, scale: int, score: str) -> Tensor:
        """`[1, 1, h', w']` fp32 of the scale before; the lowest values are kept.

        Args:
            states: Dense, before every scale and after the last.
            noise: Of every scale.
            scale: That is pruned, at least 1.
            score: One of `SCORES` but random.
        """
        name, _, end = score.partition(" ")
        if name == "entropy":
            found = states[scale]["entropy"]
        elif name == "change":
            before = states[scale - 1].get("summed")
            added = states[scale]["summed"] if before is None else states[scale]["summed"] - before
            found = added.norm(dim=1, keepdim=True)
        else:
            found = self._uncertainty(states[scale - 1], noise, scale - 1)
        return -found if end == "high" else found

    def _uncertainty(self, state: State, noise: Noise, scale: int) -> Tensor:
        """Mean entropy of the bits of a scale's tokens, in nats."""
        found: dict[str, Tensor] = {}
        step = family_of(self.model.profile).step(self.model, self.plans[scale], observe=True)
        run_scales([step], state, noise, lambda _, out: found.update(out))
        if "observed.probability" not in found:
            raise ToprovarError(f"{self.model.profile.name}: its family has no bits, so there is no uncertainty of bits")
        probability = found["observed.probability"].float().clamp(1e-6, 1 - 1e-6)
        entropy = -(probability * probability.log() + (1 - probability) * (1 - probability).log())
        return entropy.mean(dim=-1).reshape(1, 1, *self.plans[scale].size)
