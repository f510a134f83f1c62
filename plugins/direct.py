"""Kernels called past their torch op, where nothing needs the op.

An op is for graphs that are traced, and for gradients to be refused. Its first call imports torch's compiler, nine hundred
modules and seconds of a load, which an engine has no use for.
"""

from __future__ import annotations

import torch


def direct() -> bool:
    """Whether no graph is being traced and no gradient asked for."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()
