"""The VAR transformer: class conditioning, blocks, head. What runs when is `step.py`'s business."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ...profiles.var import VarConfig
from ..infinity.blocks import FeedForward, SelfAttention
from ..layers import HeadNorm, Linear, modulate, normal_parameter, silu_linear
from ..state import Attended, Past, State


class Block(nn.Module):
    """Cosine self-attention and MLP with adaptive normalisation.

    x += SA(LN(x) * (1 + scale1) + shift1) * gamma1;  x += MLP(LN(x) * (1 + scale2) + shift2) * gamma2. The six vectors depend
    on the class alone (`modulation`), in the order gamma1, gamma2, scale1, scale2, shift1, shift2.
    """

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.attn, self.ffn = SelfAttention(config), FeedForward(config)
        if config.shared_modulation:
            self.ada_gss = normal_parameter(1, 1, 6, config.width, std=config.width**-0.5)
        else:
            self.ada_lin = silu_linear(config.width, 6 * config.width)

    def modulation(self, sos: Tensor, shared: Tensor | None) -> Tensor:
        """`[R, C]`, and the shared vectors `[R, 1, 6, C]` where the model has them -> this block's `[R, 1, 6, C]`."""
        six: Tensor = self.ada_gss + shared if shared is not None else self.ada_lin(sos).unflatten(-1, (1, 6, -1))
        return six

    def forward(self, x: Tensor, six: Tensor, past: Past, with_entropy: bool) -> Attended:
        """One block.

        Args:
            x: Residual stream `[R, N, C]`.
            six: Of `modulation`.
            past: k, v of earlier scales, or None.
            with_entropy: Whether the entropy is read.

        Returns:
            x `[R, N, C]`, k, v `[R, H, P + N, D]`, entropy `[R, H, N]` or None.
        """
        attended, k, v, entropy = self.attention_branch(x, six, past, with_entropy)
        x = x + attended
        return x + self.mlp_branch(x, six), k, v, entropy

    def attention_branch(self, x: Tensor, six: Tensor, past: Past, with_entropy: bool) -> Attended:
        """Self-attention of the tokens given, after its gate; arguments and the other results as of `forward`."""
        gamma, scale, shift = six[:, :, 0::2].unbind(2)
        attended, k, v, entropy = self.attn(modulate(x, scale, shift), None, past, with_entropy)
        return attended * gamma, k, v, entropy

    def mlp_branch(self, x: Tensor, six: Tensor) -> Tensor:
        """The MLP of the tokens given, after its gate: `[R, n, C]` -> `[R, n, C]`."""
        gamma, scale, shift = six[:, :, 1::2].unbind(2)
        return self.ffn(modulate(x, scale, shift)) * gamma  # type: ignore[no-any-return]


class Var(nn.Module):
    """VAR's weights and the maps between classes, latent tokens, residual stream and logits over the codes."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.config = config
        width, tokens = config.width, sum(n * n for n in config.patch_nums)
        self.pos_start = normal_parameter(1, 1, width, std=0.02)
        self.pos_1LC = normal_parameter(1, tokens, width, std=0.02)
        self.word_embed = Linear(config.latent_channels, width)
        self.class_emb = nn.Embedding(config.classes + 1, width)
        self.lvl_embed = nn.Embedding(len(config.patch_nums), width)
        if config.shared_modulation:
            self.shared_ada_lin = silu_linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(width)
        self.head = Linear(width, config.vocabulary)

    def layers(self) -> Iterator[Block]:
        """The blocks in order."""
        yield from self.blocks  # type: ignore[misc]

    def initial_state(self, text: Tensor, lengths: Tensor | None = None) -> State:
        """Everything that depends on the class alone.

        Args:
            text: `[R, 1, C]`, the embedding of each row's class: a class is a text of one word.
            lengths: Not needed; every text has one word.

        Returns:
            `sos` `[R, C]`, `head` `[R, 2, C]` and `six.L` `[R, 1, 6, C]` of every layer L.
        """
        sos = text[:, 0].to(self.pos_start.dtype)
        shared = self.shared_ada_lin(sos).unflatten(-1, (1, 6, -1)) if self.config.shared_modulation else None
        state = State(sos=sos, head=self.head_nm.ada_lin(sos).unflatten(-1, (2, -1)))
        return state | {f"six.{index}": block.modulation(sos, shared) for index, block in enumerate(self.layers())}

    def unconditional(self, batch: int, length: int = 1) -> Tensor:
        """The embedding of no class, as often as asked: `[B, 1, C]`."""
        return self.class_emb.weight[-1].expand(batch, length, -1)

    def logits(self, x: Tensor, head: Tensor) -> Tensor:
        """`[R, N, C]`, head modulation `[R, 2, C]` -> logits over the codes `[R, N, V]`."""
        return self.head(modulate(x, head[:, :1], head[:, 1:]))  # type: ignore[no-any-return]
