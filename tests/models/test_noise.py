"""The noise of an image: what a seed meant before parts of it were drawn side by side."""

from __future__ import annotations

import numpy as np
import pytest
from hart_model import small_profile as small_hart
from small_model import small_profile
from small_var import small_var_profile
from toprovar.models.family import noise_of
from toprovar.models.noise import CHUNK, gumbel_noise


@pytest.mark.parametrize("shape", [(1, 5, 7), (1, 3, CHUNK), (1, 41, 3001)], ids=str)
def test_parts_drawn_side_by_side_are_one_stream(shape: tuple[int, ...]) -> None:
    """One part, whole parts, and a last one that is no whole step of the counter: bit for bit."""
    stream = np.random.Generator(np.random.Philox(key=9, counter=[0, 0, 4, 1])).random(shape, dtype=np.float32)
    expected = -np.log(-np.log(np.maximum(stream, np.float32(2.0**-25))))
    assert np.array_equal(gumbel_noise(9, 4, 1, shape), expected)


@pytest.mark.parametrize("profile", [small_profile(), small_var_profile(), small_hart()], ids=lambda p: p.family)
def test_noise_of_an_image_is_its_own(profile) -> None:
    """Alone or in a batch, and whatever a caller does to what it was given."""
    first, again = noise_of(profile, [5], 3), noise_of(profile, [4, 5], 3)
    for name, value in first.items():
        assert value.shape[0] == 1
        assert np.array_equal(value[0], again[name][1])
        value.fill(0)
        assert not np.array_equal(noise_of(profile, [5], 3)[name], value)
