"""How plans are built: checked where the options are made, before anything slow starts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ..profiles.errors import BundleError, ScheduleError
from ..profiles.manifest import PLAN_TARGETS, PRECISIONS
from ..profiles.model import ModelProfile
from ..profiles.plan import plan_paths
from ..profiles.schedule import Schedule

# of TensorRT 10.13 to 11.4 and TensorRT-RTX 1.7
TOPK_LIMIT = 3840
DEFAULT_PRECISION = {"onnx": "fp32", "cuda": "bf16"}
DEFAULTS: dict[str, object] = {
    "sm": [],
    "opt_level": 3,
    "workspace": None,
    "timing_cache": "",
    "resume": False,
    "max_batch": 4,
    "max_text": None,
}
"""Of the flags that only plans have."""
LIMITS = {"opt_level": (0, 5), "max_batch": (1, 64)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Options of one bundle's plans.

    Attributes:
        target: One of PLAN_TARGETS.
        precision: Of weights and state, one of PRECISIONS.
        sm: GPUs to build for, as 89; empty takes the flavour's default.
        opt_level: TensorRT's builder optimisation level, 0 to 5.
        workspace_gib: Limit of a plan's scratch memory in GiB; None is TensorRT's own, the whole GPU.
        timing_cache: `none`, or the file; empty is one in the user's cache folder, versioned by what it depends on.
        resume: Keep plans of an interrupted build or of the bundle that is replaced, where nothing of theirs changed.
        max_batch: Most images a request.
        max_text: Most text tokens a prompt.
    """

    target: str
    precision: str = "fp16"
    sm: tuple[int, ...] = ()
    opt_level: int = 3
    workspace_gib: float | None = None
    timing_cache: str = ""
    resume: bool = False
    max_batch: int = 4
    max_text: int

    def __post_init__(self) -> None:
        if self.target not in PLAN_TARGETS:
            raise BundleError(f"target {self.target!r}: expected one of {', '.join(PLAN_TARGETS)}")
        if self.precision not in PRECISIONS:
            raise BundleError(f"--precision {self.precision}: expected one of {', '.join(PRECISIONS)}")
        for name, (least, most) in {**LIMITS, "max_text": (1, 512)}.items():
            if not least <= getattr(self, name) <= most:
                flag = name.replace("_", "-")
                raise BundleError(f"--{flag} {getattr(self, name)}: expected {least} to {most}")
        if self.workspace_gib is not None and self.workspace_gib <= 0:
            raise BundleError(f"--workspace {self.workspace_gib:g}: expected GiB above 0; omit it for no limit")

    def digest_fields(self) -> dict[str, object]:
        """Options that change a plan."""
        names = ("target", "precision", "opt_level", "workspace_gib")
        return {name: getattr(self, name) for name in names}


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("plans", "for the targets tensorrt and tensorrt-rtx")
    precisions = "of weights and state (default: onnx fp32, cuda bf16, plans fp16)"
    group.add_argument("--precision", choices=PRECISIONS, help=precisions)
    group.add_argument("--sm", type=int, nargs="+", help="GPUs to build for (default: 80 86 89 120, or this one)")
    group.add_argument("--opt-level", type=int, help="0 builds fastest, 5 searches longest (default: 3)")
    group.add_argument("--workspace", type=float, help="GiB of scratch memory a plan may use (default: no limit)")
    caches = "file, or `none` (default: in the user's cache folder, one for each version, GPU and set of kernels)"
    group.add_argument("--timing-cache", help=caches)
    group.add_argument("--resume", action="store_true", help="keep plans of an interrupted build that are still right")
    group.add_argument("--max-batch", type=int, help="most images a request (default: 4)")
    group.add_argument("--max-text", type=int, help="most text tokens a prompt (default: the text encoder's)")
    parser.set_defaults(**DEFAULTS)


def chosen_precision(args: argparse.Namespace) -> str:
    """The precision asked for, or the target's own.

    Raises:
        BundleError: The target cannot run it.
    """
    if args.precision is None:
        return DEFAULT_PRECISION.get(args.target, "fp16")
    if args.target == "onnx" and args.precision == "bf16":
        raise BundleError("--precision bf16: ONNX Runtime has no bf16 kernels for the CPU; use fp32 or fp16")
    return str(args.precision)


def plan_options(args: argparse.Namespace, profile: ModelProfile) -> PlanOptions | None:
    """Options of the flags; None where the target has no plans.

    Raises:
        BundleError: A flag cannot be what it is, or was given for a target without plans.
    """
    if args.target not in PLAN_TARGETS:
        given = ["--" + name.replace("_", "-") for name, default in DEFAULTS.items() if getattr(args, name) != default]
        if given:
            remedy = f"only plans of {' and '.join(PLAN_TARGETS)} have this; leave it out for --target {args.target}"
            raise BundleError(f"{', '.join(given)}: {remedy}")
        return None
    longest = profile.text.max_length
    if args.max_text is not None and args.max_text > longest:
        raise BundleError(f"--max-text {args.max_text}: the text encoder of {profile.name} gives at most {longest} tokens")
    fixed = profile.transformer.text_tokens
    if args.max_text is not None and fixed is not None and args.max_text < fixed:
        raise BundleError(f"--max-text {args.max_text}: {profile.name} always reads {fixed} text tokens; leave it out")
    return PlanOptions(
        target=args.target,
        precision=chosen_precision(args),
        sm=tuple(args.sm),
        opt_level=args.opt_level,
        workspace_gib=args.workspace,
        timing_cache=args.timing_cache,
        resume=args.resume,
        max_batch=args.max_batch,
        max_text=longest if args.max_text is None else args.max_text,
    )


def check_limits(schedule: Schedule, profile: ModelProfile, target: str) -> None:
    """Refuse a choice of tokens or codes that TensorRT's TopK cannot make; found before hours of building.

    Raises:
        ScheduleError: All such scales, of every rung; or the likeliest codes that may be drawn are too many.
    """
    wrong = [
        f"scale {plan.scale} keeps {most} of {plan.count} tokens by {plan.tokens.score}"
        for plan in dict.fromkeys(plan for path in plan_paths(schedule) for plan in path)
        if plan.tokens is not None and plan.tokens.score != "random"
        if (most := max(n for n in plan.kept if n < plan.count)) > TOPK_LIMIT
    ]
    ranked = profile.sampling.ranked_codes(profile.transformer)
    if ranked > TOPK_LIMIT:
        wrong.append(f"{profile.name} ranks {ranked} codes a token (top_k, top_p)")
    if wrong:
        raise ScheduleError(
            f"{'; '.join(wrong)}; TopK of --target {target} takes at most {TOPK_LIMIT}, choose fewer or all of them"
        )
