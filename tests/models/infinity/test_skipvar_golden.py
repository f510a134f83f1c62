"""SkipVAR as released, reproduced: the features, what they decide, and the image of every recorded branch.

Every `skipvar_*.safetensors` in TOPROVAR_GOLDEN runs. Branches are `base`, `skipN` and `uncondN`, recorded as variants or under
their own prefix; the decision features stand in the tensors or the JSON under their names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import Golden, golden_files
from toprovar.models.infinity.generate import build_steps, generate
from toprovar.models.infinity.transformer import Infinity
from toprovar.models.infinity.vae import Decoder
from toprovar.models.rungs import View
from toprovar.profiles.baselines import baseline
from toprovar.profiles.decision import detail_features
from toprovar.profiles.model import ModelProfile
from torch import Tensor

TOLERANCE = 1e-4
FEATURE_TOLERANCE = 1e-5
BRANCH = re.compile(r"(base|skip[123]|uncond[123])$")
FEATURES = (("f1", "diff_hf"), ("f2", "new_ratio"))


@dataclass(frozen=True)
class Official:
    """The official model of one file."""

    data: Golden
    profile: ModelProfile
    model: Infinity
    decoder: Decoder

    def draw(self, policy: str) -> dict[str, Any]:
        """The summed codes behind every scale, and all drawn bits `[B, N, d]`."""
        schedule, data = baseline(policy, self.profile), self.data
        text, lengths = data.text(data.tensors["in.text"], data.meta["lens"])
        drawn: dict[str, Any] = {"summed": {}, "bits": []}

        def keep(plan: Any, out: dict[str, Tensor]) -> None:
            drawn["summed"][plan.scale] = out["summed"]
            drawn["bits"].append(out["observed.bits"])

        steps = build_steps(self.model, self.profile, schedule, observe=True)
        generate(steps, text, lengths, data.tensors["noise.u"], on_scale=keep)
        return drawn


@pytest.fixture(scope="module", params=golden_files("skipvar"))
def official(request: pytest.FixtureRequest) -> Official:
    data = Golden.read(request.param)
    profile = data.profile(data.meta["call"])
    model, decoder = Infinity(profile.transformer), Decoder(profile.vae)
    model.load_state_dict(data.weights(), strict=True)
    weights = data.vae_weights()
    decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in weights.items() if k.startswith("decoder.")})
    return Official(data, profile, model.eval(), decoder.eval())


def _branches(data: Golden) -> dict[str, dict[str, Tensor]]:
    """Recorded fields by branch: `variant.skip2.bits` and `skip2.bits` are the field `bits` of branch `skip2`."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in data.tensors.items():
        parts = name.removeprefix("variant.").split(".")
        if BRANCH.match(parts[0]):
            found.setdefault(parts[0], {})[".".join(parts[1:])] = value
    return found


def _policy(branch: str) -> str:
    if branch == "base":
        return "dense"
    kind, count = branch[:-1], branch[-1]
    return f"{'skip' if kind == 'skip' else 'noguide'}-{count}"


def _recorded(content: Any, names: tuple[str, ...]) -> list[float]:
    """Numbers that stand under one of the names, at any depth of the JSON."""
    if isinstance(content, dict):
        own = [float(v) for k, v in content.items() if k in names and isinstance(v, int | float)]
        return own + [number for value in content.values() for number in _recorded(value, names)]
    return [number for item in content for number in _recorded(item, names)] if isinstance(content, list) else []


def test_features(official: Official) -> None:
    decision = baseline("skipvar", official.profile).decision
    assert decision is not None
    assert (decision.scale, decision.view) == (9, 4)
    summed = official.draw("dense")["summed"]
    view = View(official.decoder, official.profile, decision)
    with torch.inference_mode():
        ours = detail_features(*(view(summed[scale]).numpy() for scale in (8, 9)))[0]
    data, compared = official.data, 0
    for found, names in zip(ours, FEATURES, strict=True):
        fields = [t for key, t in data.tensors.items() if key.split(".")[-1] in names]
        recorded = [float(t.flatten()[0]) for t in fields] + _recorded(data.meta, names)
        compared += len(recorded)
        for value in recorded:
            np.testing.assert_allclose(found, value, rtol=0, atol=FEATURE_TOLERANCE, err_msg=str(names))
    assert compared >= 2, "the file's features were not found"


def test_every_branch(official: Official) -> None:
    """Bits equal and sums within 1e-4, as far as each branch runs."""
    branches, compared = _branches(official.data), 0
    assert branches, "the file's branches were not found"
    for branch, fields in branches.items():
        drawn = official.draw(_policy(branch))
        bits, last = torch.cat(drawn["bits"], dim=1), drawn["summed"][max(drawn["summed"])]
        for name, stored in fields.items():
            if name == "bits":
                assert int((bits[:, -stored.shape[1] :] != stored).sum()) == 0, branch
            elif name == "vae.in":
                torch.testing.assert_close(last.double(), stored.double(), rtol=0, atol=TOLERANCE, msg=branch)
            else:
                continue
            compared += 1
    assert compared >= len(branches), f"of {sorted(branches)} only {compared} fields were compared"
