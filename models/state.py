"""The state that goes from scale to scale: a mapping of named tensors, the same names in torch, in every graph and at run time.

B images; R rows, B conditional and then B unconditional while guidance runs:

    summed                  [B, d, H, W] running sum of codes (absent before the first scale)
    sos, head, ...          what depends on the prompt alone; each family has its own, with rows in front
    k.L, v.L                [R, H, P, D] cached keys and values of layer L (absent while empty)
    entropy                 [B, 1, h, w] entropy map of the last scale that wrote one, in nats
    delta.L                 [R, C, h, w] update of layer L at the scale that a later one enlarges
    delta_attention.L, ...  [R, C, h, w] outputs of the branches of layer L, after their gates, at the scale that a later one
                            enlarges
    difference              [B, V, h, w] conditional minus unconditional logits of the last guided scale, fp32
    noise, ...              [B, N, ...] this scale's part of the image's noise
    cfg, ...                [1] numbers of this scale, such as the guidance strength (`controls` of the profile's sampling)

`summed`, `entropy`, `difference`, the noise and the numbers are fp32 whatever the model's dtype: tokens are drawn and codes
summed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..profiles.plan import ROWLESS

State = dict[str, Tensor]
Shape = tuple[int | str, ...]
"""Of a tensor of the state: `B` images, `R` rows and `T` text tokens may vary, the rest is fixed."""
Rope = tuple[Tensor, Tensor]
"""Cosines and sines of a scale's tokens, each `[N, D']`, or `[R, 1, N, D']` where each row has its own tokens; D' is the
family's: half of a head's width where pairs turn, the whole of it in HART."""
Branch = tuple[str, Callable[[Tensor], Tensor]]
Attended = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Output `[R, n, C]`, k and v with the past in front `[R, H, P + n, D]`, entropy `[R, H, n]` or None."""
Past = tuple[Tensor, Tensor] | None
"""Cached k and v `[R, H, P, D]` of earlier scales."""


def narrow_rows(state: Mapping[str, Tensor], batch: int) -> State:
    """The state with its conditional rows only: views, no copies."""
    return {name: value if name in ROWLESS else value[:batch] for name, value in state.items()}
