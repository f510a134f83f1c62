"""Does a model fit into fp16? The largest value of every tensor of an fp32 engine, over given prompts.

    python -m toprovar.benchmarks.fp16_range --engine engine --prompts profiles/tiny/demo_prompts.txt

Every graph gets a reduction behind every tensor, so that no more memory is needed than to draw. fp16 ends at 65504; a tensor
beyond it is named with its operator. Infinite values are ignored: in fp32 they are the masks'. What a model in fp16 computes
in fp32, such as its norms and its sampling, is listed as well. The last line of standard output is JSON; 1 is returned where
a tensor does not fit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..profiles.console import run_command
from ..profiles.errors import BundleError
from ..profiles.manifest import Graph
from ..profiles.tables import table
from ..runtime.cli import read_prompts
from ..runtime.engine import Engine
from ..runtime.text import TextSource

FP16_LARGEST = 65504.0
SUFFIX = ".largest"


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest finite magnitude of one tensor.

    Attributes:
        graph: File of its graph.
        tensor: Its name.
        operator: What computes it.
        value: Over all prompts.
    """

    graph: str
    tensor: str
    operator: str
    value: float


def measured(path: Path) -> tuple[bytes, dict[str, str]]:
    """A graph that also returns the largest finite magnitude of each fp32 tensor; operators by tensor."""
    import onnx
    from onnx import TensorProto, helper, inliner, shape_inference

    model = inliner.inline_local_functions(onnx.load(path, load_external_data=False))
    graph = shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    operators = {
        name: node.op_type for node in model.graph.node for name in node.output if kinds.get(name) == TensorProto.FLOAT
    }
    model.graph.initializer.append(helper.make_tensor("zero" + SUFFIX, TensorProto.FLOAT, [], [0.0]))
    for name in operators:
        parts = [f"{name}{SUFFIX}.{part}" for part in ("infinite", "finite", "magnitude")]
        model.graph.node.extend(
            [
                helper.make_node("IsInf", [name], [parts[0]]),
                helper.make_node("Where", [parts[0], "zero" + SUFFIX, name], [parts[1]]),
                helper.make_node("Abs", [parts[1]], [parts[2]]),
                helper.make_node("ReduceMax", [parts[2]], [name + SUFFIX], keepdims=0),
            ]
        )
        model.graph.output.append(helper.make_tensor_value_info(name + SUFFIX, TensorProto.FLOAT, []))
    return model.SerializeToString(), operators


class MeasuringEngine(Engine):
    """An engine on ONNX Runtime that keeps the largest magnitudes of what it computes."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        import onnxruntime as ort

        super().__init__(folder, threads)
        if self.manifest.target != "onnx" or self.manifest.precision != "fp32":
            found = f"target {self.manifest.target}, precision {self.manifest.precision}"
            raise BundleError(f"{folder}: {found}; expected an engine of --target onnx --precision fp32")
        self._options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
        self.largest: dict[tuple[str, str], Largest] = {}
        self._operators: dict[str, dict[str, str]] = {}
        for file in self._sessions:
            data, self._operators[file] = measured(folder / file)
            self._sessions[file] = ort.InferenceSession(data, self._options, providers=["CPUExecutionProvider"])

    def run_graph(self, graph: Graph, feeds: dict[str, Any]) -> dict[str, Any]:
        """As its parent, and note the magnitudes."""
        operators = self._operators[graph.file]
        outputs = (*graph.outputs, *(name + SUFFIX for name in operators))
        wide = Graph(file=graph.file, inputs=graph.inputs, outputs=outputs)
        found = super().run_graph(wide, feeds)
        for name, operator in operators.items():
            value = float(np.asarray(found.pop(name + SUFFIX).numpy()))
            key = (graph.file, name)
            known = self.largest.get(key)
            if known is None or not value <= known.value:
                self.largest[key] = Largest(graph.file, name, operator, value)
        return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", type=Path, required=True, help="engine of --target onnx --precision fp32")
    parser.add_argument("--prompts", type=Path, required=True, help="file with a prompt a line")
    parser.add_argument("--seed", type=int, default=0, help="of the first image (default: 0)")
    parser.add_argument("--threads", type=int, help="threads (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Draw, print the largest tensor of every graph and those that do not fit."""
    engine = MeasuringEngine(args.engine, args.threads)
    texts = TextSource(engine)
    for index, prompt in enumerate(read_prompts(args.prompts)):
        features = texts.encode([prompt])
        engine.generate(features.text, features.lengths, [args.seed + index])
    graphs = {graph: [one for one in engine.largest.values() if one.graph == graph] for graph, _ in engine.largest}
    rows = [["graph", "largest", "of fp16's range", "operator", "tensor"]]
    tops = {graph: max(found, key=lambda one: one.value) for graph, found in graphs.items()}
    for top in tops.values():
        rows.append([top.graph, f"{top.value:.4g}", f"{top.value / FP16_LARGEST:.2%}", top.operator, top.tensor])
    print(table(rows))
    beyond = [one for one in engine.largest.values() if not one.value <= FP16_LARGEST]
    for one in beyond:
        print(f"{one.graph}: {one.operator} {one.tensor} reaches {one.value:.4g}, fp16 ends at {FP16_LARGEST:.0f}")
    print(json.dumps({"largest": [asdict(top) for top in tops.values()], "beyond": [asdict(one) for one in beyond]}))
    return 1 if beyond else 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("fp16_range", add_arguments, run, __doc__.splitlines()[0], argv)


if __name__ == "__main__":
    sys.exit(main())
