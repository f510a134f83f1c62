"""One exported graph to one plan: parse, set the ranges of the free dimensions, build, write.

Deserialising a plan needs a driver, so what goes in and out is read from the parsed network, which the plan is made from.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..profiles.errors import BundleError
from .attention import let_decompose
from .plan_inputs import PlanModel, free_names, plan_model, sizes
from .plan_options import PlanOptions
from .plan_record import Limits, PlanRecord
from .tensorrt_flavours import Toolkit, target_sm
from .tensorrt_log import interruptible, make_logger, make_monitor
from .timing_cache import TimingCache, timing_cache_path, write_whole
from .weight_store import Exported

TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}
Detail = Callable[[str], None]


class PlanBuilder:
    """Builds plans of one flavour with one set of options.

    Args:
        kit: The library.
        options: How.
        detail: Called with the phase that TensorRT is in.

    Raises:
        BundleError: The options do not fit the library or this machine.
    """

    def __init__(self, kit: Toolkit, options: PlanOptions, detail: Detail = lambda _: None) -> None:
        self.kit, self.options, self.trt = kit, options, kit.trt
        self.sm = target_sm(kit.flavour, options.sm)
        # the plugin takes fp16 and bf16; fp32 is for comparison and runs the function's body
        self.plugins = kit.flavour.plugins and options.precision != "fp32"
        self.kernel_hash = _register(self.sm[0]) if self.plugins else ""
        self.logger = make_logger(self.trt)
        self.monitor = make_monitor(self.trt, detail)
        self.builder = _builder(kit, self.logger)

    def build(self, file: Path, exported: Exported, limits: Limits, kept: dict[str, Path]) -> PlanRecord:
        """Write the plan of one graph.

        Args:
            file: The plan.
            exported: The graph.
            limits: Of its free dimensions.
            kept: Plans of earlier builds by key, each with its record beside it (`.json`).

        Raises:
            BundleError: TensorRT refuses the graph, with its words.
        """
        model = plan_model(exported, self.plugins, self.kit.attention)
        key = self._key(model, limits)
        if key in kept:
            file.write_bytes(kept[key].read_bytes())
            return PlanRecord(**json.loads(kept[key].with_suffix(".json").read_text()))
        start = time.perf_counter()
        network = self._parse(file.name, model)
        config = self._config(model, limits)
        cache = self._cache(config)
        with interruptible(self.monitor):
            data = self.builder.build_serialized_network(network, config)
        if data is None:
            raise BundleError(f"{file.name}: {self.kit.flavour.name} builds no plan ({self.logger.last()}); try --opt-level 3")
        cache.save(config)
        write_whole(file, bytes(data))
        seconds = time.perf_counter() - start
        return self._record(file, key, seconds, network, model, exported)

    def _record(self, file: Path, key: str, seconds: float, network: Any, model: PlanModel, exported: Exported) -> PlanRecord:
        inputs = _tensors(network.num_inputs, network.get_input)
        outputs = _tensors(network.num_outputs, network.get_output)
        assert inputs.keys() == model.inputs.keys() | model.weights.keys(), sorted(inputs)
        assert outputs.keys() == set(exported.outputs), sorted(outputs)
        return PlanRecord(
            key=key,
            bytes=file.stat().st_size,
            seconds=round(seconds, 2),
            layers=network.num_layers,
            plugins=_plugin_layers(network),
            inputs={name: inputs[name] for name in model.inputs},
            outputs=outputs,
            weights=model.weights,
        )

    def _cache(self, config: Any) -> TimingCache:
        asked = self.options.timing_cache if self.kit.flavour.timing_cache else "none"
        cache = TimingCache(timing_cache_path(asked, self.kit.flavour.name, self.kit.version, self.sm[0], self.kernel_hash))
        cache.load(config)
        return cache

    def _key(self, model: PlanModel, limits: Limits) -> str:
        flavour = {"version": self.kit.version, "sm": self.sm, "kernels": self.kernel_hash}
        fields = {**self.options.digest_fields(), **flavour, "limits": asdict(limits), "weights": model.weights}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
        digest.update(model.serialized)
        return digest.hexdigest()

    def _parse(self, name: str, model: PlanModel) -> Any:
        network = self.builder.create_network(self.kit.network_flags())
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse(model.serialized):
            first = parser.get_error(0) if parser.num_errors else None
            reason = f"{first.desc()} at {first.node_operator()} {first.node_name()}" if first else self.logger.last()
            raise BundleError(f"{name}: {self.kit.flavour.name} {self.kit.version} cannot read the graph: {reason}")
        let_decompose(self.trt, network)
        return network

    def _config(self, model: PlanModel, limits: Limits) -> Any:
        trt, options = self.trt, self.options
        config = self.builder.create_builder_config()
        config.builder_optimization_level = options.opt_level
        # a second stream would keep a plan out of a simple CUDA graph capture
        config.max_aux_streams = 0
        if options.workspace_gib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30))
        if options.precision == "fp32":
            config.clear_flag(trt.BuilderFlag.TF32)
        if self.kit.flavour.targets:
            config.num_compute_capabilities = len(self.sm)
            for index, sm in enumerate(self.sm):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
        config.progress_monitor = self.monitor
        free = {name: shape for name, shape in model.inputs.items() if free_names(shape)}
        if free:
            config.add_optimization_profile(self._ranges(free, limits))
        return config

    def _ranges(self, free: dict[str, tuple[int | str, ...]], limits: Limits) -> Any:
        profile = self.builder.create_optimization_profile()
        for name, shape in free.items():
            least = sizes(shape, {"batch": 1, "text": 1})
            profile.set_shape(name, least, sizes(shape, limits.usual()), sizes(shape, limits.most()))
        return profile


def _register(sm: int) -> str:
    """Make the attention plugin known; returns the hash of its kernels."""
    from ..plugins.flash_attention_entropy.ahead_of_time import kernel_hash
    from ..plugins.flash_attention_entropy.tensorrt import register

    try:
        register(sm)
        return kernel_hash()
    except (ImportError, RuntimeError, ValueError) as problem:
        raise BundleError(f"--target tensorrt: the attention plugin cannot be built: {problem}") from problem


def _plugin_layers(network: Any) -> int:
    return sum("PLUGIN" in network.get_layer(index).type.name for index in range(network.num_layers))


def _tensors(count: int, get: Callable[[int], Any]) -> dict[str, list[Any]]:
    """Type and shape by name."""
    found = (get(index) for index in range(count))
    return {t.name: [TYPES.get(t.dtype.name, t.dtype.name.lower()), list(t.shape)] for t in found}


def _builder(kit: Toolkit, logger: Any) -> Any:
    try:
        return kit.trt.Builder(logger)
    except TypeError as problem:
        name = f"{kit.flavour.name} {kit.version}"
        raise BundleError(
            f"{name}: makes no builder ({logger.last()}); is there a GPU and a driver? see `nvidia-smi`"
        ) from problem
