"""The text encoder of Infinity: flan-t5-xl's encoder, through transformers.

Infinity was trained on features of prompts cut at 512 tokens, `</s>` included, without those of the padding. On a GPU the
official weights are fp16; on the CPU they run in fp32 whatever dtype is asked, as fp16 is slow or missing there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...profiles.errors import CheckpointError, PromptError, ToprovarError
from ..fetch import list_files
from . import TextFeatures

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_TOKENS = 512


@dataclass(frozen=True)
class T5TextEncoder:
    """A tokenizer and a T5 encoder, frozen.

    Attributes:
        tokenizer: A transformers tokenizer with padding and end tokens.
        model: `transformers.T5EncoderModel` in evaluation mode.
    """

    tokenizer: Any
    model: Any

    @classmethod
    def load(
        cls,
        source: str,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> T5TextEncoder:
        """Load from a folder or a Hugging Face id.

        Args:
            source: Folder with the files of a T5 model and its tokenizer, or an id such as "google/flan-t5-xl".
            revision: Branch, tag or commit of the id.
            dtype: fp16 (the default, as in the official code), bf16 or fp32. The CPU always gets fp32.
            device: Where the encoder runs.

        Raises:
            ToprovarError: transformers is not installed.
            CheckpointError: The source cannot be reached or read, or lacks weights of the encoder.
        """
        import torch

        wanted = torch.float32 if torch.device(device).type == "cpu" else dtype or torch.float16
        tokenizer, model = read_pretrained("T5EncoderModel", "T5 encoder", source, revision, wanted)
        return cls(tokenizer, model.to(device).eval().requires_grad_(False))

    @property
    def channels(self) -> int:
        """Width of a feature: 2048 for flan-t5-xl."""
        return int(self.model.config.d_model)

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Features of prompts, cut at 512 tokens; ask `truncated` which ones lose some.

        Args:
            prompts: B texts, at least one; an empty text has the one feature of `</s>`.

        Returns:
            Features `[B, T, channels]` fp32 on the encoder's device, T the longest of the batch, 0 behind each prompt's
            own length; and the lengths `[B]` int64 with `</s>`, on the same device.

        Raises:
            PromptError: `prompts` is empty.
        """
        import torch

        if not prompts:
            raise PromptError("no prompts to encode; pass at least one")
        tokens = self.tokenizer(
            prompts, max_length=MAX_TOKENS, truncation=True, padding=True, padding_side="right", return_tensors="pt"
        ).to(self.model.device)
        mask = tokens["attention_mask"]
        with torch.no_grad():
            hidden = self.model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        # the encoder also computes something at the padding, and it need not be finite in fp16
        features = torch.where(mask.bool().unsqueeze(-1), hidden.float(), 0.0)
        return features, mask.sum(dim=-1)

    def encode_prompts(self, prompts: Sequence[str]) -> TextFeatures:
        """Features, lengths and which prompts lost their end; see `encode`."""
        features, lengths = self.encode(list(prompts))
        return TextFeatures(features, lengths, tuple(self.truncated(list(prompts))))

    def truncated(self, prompts: list[str]) -> list[bool]:
        """Whether each prompt has more than 512 tokens, so that `encode` drops its end."""
        if not prompts:
            return []
        # one token beyond the limit is enough to know, and asking for more makes the tokenizer warn
        tokens = self.tokenizer(prompts, max_length=MAX_TOKENS + 1, truncation=True)["input_ids"]
        return [len(ids) > MAX_TOKENS for ids in tokens]


def read_pretrained(loader: str, name: str, source: str, revision: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and model of a folder or a Hugging Face id.

    Args:
        loader: Class of transformers that loads the model.
        name: What messages call the model.
        source: Folder or id.
        revision: Branch, tag or commit of the id.
        dtype: Of the weights.

    Raises:
        ToprovarError: transformers is not installed.
        CheckpointError: The source cannot be reached or read, or lacks weights.
    """
    try:
        import transformers
    except ImportError as err:
        raise ToprovarError(f"the {name} needs transformers; run `pip install toprovar[t5]`") from err
    try:
        # transformers would try for a minute to reach the hub before it looks into its cache
        local = Path(source).is_dir() or list_files(source, revision) is None
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=local)
        model, report = getattr(transformers, loader).from_pretrained(
            source, revision=revision, local_files_only=local, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, ImportError) as err:
        reason = " ".join(str(err).split())[:200]
        raise CheckpointError(
            f"{source}: no {name} can be loaded, revision {revision!r} ({reason}); check the id and the network, "
            "or download it by hand and pass its folder"
        ) from err
    # transformers gives weights that the files lack random values, and only warns
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise CheckpointError(f"{source}: lacks {len(lacking)} weights of the {name}, as {lacking[0]}; fetch it anew")
    return tokenizer, model
