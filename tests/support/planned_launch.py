"""What the TensorRT plugin tells an engine builder about one launch, asked for through NVIDIA's own plugin code."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from tensorrt_link_stubs import Dim, ExprBuilder, stubbed_tensorrt
from toprovar.plugins.flash_attention_entropy.tensorrt import register

NAMES = ("B", "H", "Nq", "Nk", "D")


@dataclass(frozen=True)
class PlannedLaunch:
    """One launch of one kernel.

    Attributes:
        name: Entry point.
        ptx: PTX text, ASCII.
        grid: Programs in x, y, z.
        block: Threads in x, y, z.
        shared_bytes: Dynamic shared memory of a program.
        extra_ints: i32 arguments between the pointers of q, k, v and those of o, e.
    """

    name: str
    ptx: bytes
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    extra_ints: tuple[int, ...]


def planned_launch(
    shape: tuple[int, int, int, int, int], dtype: str, target: int, tactic_number: int, scale: float, *, dynamic: bool = True
) -> PlannedLaunch:
    """Register the plugin, walk through an engine builder's questions, and evaluate the answers for `shape`.

    Args:
        shape: B, H, Nq, Nk, D.
        dtype: "fp16" or "bf16".
        target: sm number, as 90.
        tactic_number: Counted from 1; offered or not.
        scale: The plugin's attribute.
        dynamic: Whether B, H, Nq and Nk are symbols while the plugin is asked, or constants.
    """
    sizes = dict(zip(NAMES, shape, strict=True))
    with stubbed_tensorrt() as trt:
        register(target)
        asked = Conversation(
            trt, {name: None if dynamic and name != "D" else size for name, size in sizes.items()}, dtype, scale
        )
        launch, extra, name, ptx = asked.launch(tactic_number)

    def read(symbol: Any) -> int:
        return int(symbol.expr.evaluate(sizes))

    return PlannedLaunch(
        name=name,
        ptx=ptx,
        grid=(read(launch.grid_x), read(launch.grid_y), read(launch.grid_z)),
        block=(read(launch.block_x), read(launch.block_y), read(launch.block_z)),
        shared_bytes=read(launch.shared_mem),
        extra_ints=tuple(read(extra[i]) for i in range(extra.nbSymExprs)),
    )


class _SymbolSetter(dict[int, Any]):
    """`ISymExprs` of the launch; the plugin sets how many there are, then each."""

    nbSymExprs = 0  # noqa: N815 - NVIDIA's name


class Conversation:
    """A plugin instance and the questions a builder asks, in the builder's order.

    Attributes:
        axes: Names of the dimensions of q, k, v.
        output_types: Data types of o and e.
        output_shapes: Their dimensions, as expressions.
        combinations: Supported types and formats, flat, five tensors each.
    """

    axes: tuple[tuple[str, ...], ...] = (("B", "H", "Nq", "D"), ("B", "H", "Nk", "D"), ("B", "H", "Nk", "D"))

    def __init__(self, trt: Any, sizes: dict[str, int | None], dtype: str, scale: float) -> None:
        self.trt, self.sizes = trt, sizes
        half = {"fp16": trt.float16, "bf16": trt.bfloat16}[dtype]
        field = trt.PluginField("scale", np.array([scale]), trt.PluginFieldType.FLOAT64)
        creator = trt.get_plugin_registry().get_creator("FlashAttentionEntropy", "1", "toprovar")
        self.plugin = creator.create_plugin(
            "FlashAttentionEntropy", "toprovar", trt.PluginFieldCollection([field]),
            trt.TensorRTPhase.BUILD, trt.QuickPluginCreationRequest.STRICT_AOT,
        )  # fmt: skip
        self.output_types = self.plugin.get_output_data_types([half] * 3, [4, 4, 4])
        self.output_shapes = self.plugin.get_output_shapes(self._expressions(), [], ExprBuilder())
        axes = (*self.axes, self.axes[0], self.axes[0][:3])
        types = [half] * 4 + [trt.float32]
        self.tensors = [self._described(names, kind) for names, kind in zip(axes, types, strict=True)]
        self.combinations = self.plugin.get_supported_format_combinations(self.tensors, 3)
        self.plugin.configure_plugin(self.tensors[:3], self.tensors[3:])

    def tactics(self) -> list[int]:
        return sorted(self.plugin.get_valid_tactics())

    def launch(self, tactic: int) -> tuple[SimpleNamespace, _SymbolSetter, str, bytes]:
        """Launch parameters and i32 arguments, as expressions, then name and PTX."""
        launch, extra = SimpleNamespace(), _SymbolSetter()
        self.plugin.set_tactic(tactic)
        self.plugin.get_launch_params(self._expressions(), self.tensors, 3, launch, extra, ExprBuilder())
        name, ptx = self.plugin.get_kernel([t.desc for t in self.tensors[:3]], [t.desc for t in self.tensors[3:]])
        return launch, extra, name, ptx

    def _expressions(self) -> list[list[Dim]]:
        known = {name: Dim(name=name) if size is None else Dim(value=size) for name, size in self.sizes.items()}
        return [[known[name] for name in names] for names in self.axes]

    def _described(self, names: tuple[str, ...], kind: Any) -> Any:
        found = self.trt.DynamicPluginTensorDesc()
        sizes = [self.sizes[name] for name in names]
        found.desc.dims = self.trt.Dims([-1 if size is None else size for size in sizes])
        found.desc.type, found.desc.format = kind, self.trt.TensorFormat.LINEAR
        found.min = found.opt = found.max = self.trt.Dims([1 if size is None else size for size in sizes])
        return found
