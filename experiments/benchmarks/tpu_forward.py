"""What Gemma's forward pass takes on TPUs, compiled ahead of time: it needs no TPU, only the extra `tpu`.

python -m experiments.benchmarks.tpu_forward
python -m experiments.benchmarks.tpu_forward --models=gemma2-27b --topologies=v5e:8x8 --dtypes=bfloat16,float32

It prints a Markdown table, a line for each model, topology, dtype and program: the mesh, memory of a chip, the
collectives, and operations. It ends with an error where a collective moves anything but sums of activations, or
where norms, softmax, RoPE or softcaps are in less than float32. The line of a program that does not fit says so.
"""

import contextlib
import time
from pathlib import Path

from absl import flags

from experiments import common, running
from experiments.benchmarks import tpu_programs
from experiments.benchmarks.tpu_hlo import Moved
from experiments.benchmarks.tpu_programs import Case, Report
from sae import topologies

GIB = 2**30

MODELS = flags.DEFINE_list("models", ["gemma2-2b", "gemma2-9b", "gemma2-27b"], "Presets. Default: all of Gemma 2.")
TOPOLOGIES = flags.DEFINE_list(
    "topologies",
    ["v5e:2x2", "v5e:4x4", "v5p:2x2x2"],
    "TPU topologies, as libtpu names them. Default: v5e:2x2,v5e:4x4,v5p:2x2x2.",
)
DTYPES = flags.DEFINE_list("dtypes", ["bfloat16"], "Of parameters and activations. Default: bfloat16.")
WHAT = flags.DEFINE_list(
    "programs",
    ["sites", "logits"],
    f"Of {', '.join(tpu_programs.PROGRAMS)}: three sites of the middle layer, computed only as deep as that; the whole "
    "model, with all logits; the whole model, with each token's loss. Default: sites,logits.",
)
BATCH = flags.DEFINE_integer(
    "batch", 8, "Sequences for each step of the mesh's axis `data`. Default: 8.", lower_bound=1
)
TOKENS = flags.DEFINE_integer("tokens", 1024, "Tokens of a sequence. Default: 1024.", lower_bound=2)
ATTENTION = flags.DEFINE_enum("attention", "plain", ["plain", "fused"], "As for gemma.Model.apply. Default: plain.")
MODEL_AXIS = flags.DEFINE_integer(
    "model_axis", 0, "Chips that share the parameters. Default: the most that divide the topology and K.", lower_bound=0
)
OUT = flags.DEFINE_string("out", None, "A file to write the table to as well.")

HEAD = (
    *("model", "dtype", "topology", "data x model", "sequences", "computed"),
    *("arguments", "temporary", "outputs", "peak", "of HBM", "collectives of a chip", "TFLOP of a chip"),
)


def cases() -> list[Case]:
    """Returns the cases that the flags name."""
    settings = (BATCH.value, TOKENS.value, ATTENTION.value, MODEL_AXIS.value)
    return [
        Case(model, topology, dtype, program, *settings)
        for model in MODELS.value
        for topology in TOPOLOGIES.value
        for dtype in DTYPES.value
        for program in WHAT.value
    ]


def described(moved: Moved, count: int) -> str:
    """Returns a collective in words, such as `53 all-reduce bf16[8,1024,2304], 1.90 GiB`."""
    shape = ",".join(map(str, moved.shape))
    return f"{count} {moved.kind} {moved.dtype}[{shape}], {count * moved.bytes / GIB:.2f} GiB"


def line(case: Case, report: Report) -> list[str]:
    """Returns the cells of a case."""
    data, model = report.mesh
    hbm = topologies.HBM[case.topology.split(":")[0]]
    sizes = (report.arguments, report.temporaries, report.outputs, report.peak)
    computed = {
        "sites": f"3 sites of layer {case.layer}",
        "logits": "3 sites, all logits",
        "loss": "3 sites, each token's loss",
    }
    return [
        *(case.model, case.dtype, case.topology, f"{data} x {model}", str(case.batch * data), computed[case.program]),
        *(f"{size / GIB:.2f}" for size in sizes),
        f"{hbm} GiB ({report.peak / GIB / hbm:.0%})",
        "; ".join(described(moved, count) for moved, count in report.collectives.items()) or "none",
        f"{report.flops / 1e12:.1f}",
    ]


def row(cells: list[str]) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main():
    for topology in TOPOLOGIES.value:
        topologies.chips(topology)  # a wrong one is an error before the others take minutes
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(Path(OUT.value).open("w", encoding="utf-8")) if OUT.value else None

        def say(text: str) -> None:
            print(text, flush=True)
            if file:
                print(text, file=file, flush=True)

        say(f"GiB of a chip; {TOKENS.value} tokens a sequence, attention {ATTENTION.value}\n")
        say(row(list(HEAD)))
        say(row(["---"] * len(HEAD)))
        problems, start = [], time.monotonic()
        for case in common.progress(cases(), desc="compile"):
            try:
                report = tpu_programs.compile_forward(case)
            except tpu_programs.DoesNotFitError as error:
                cells = [case.model, case.dtype, case.topology, "", "", case.program, f"does not fit: {error}"]
                say(row(cells + [""] * (len(HEAD) - len(cells))))
                continue
            say(row(line(case, report)))
            problems += [f"{case}: {described(moved, 1)} is no sum of activations" for moved in report.unexpected]
            problems += [f"{case}: {what} is in less than float32" for what in report.below_float32]
        print(f"\n{time.monotonic() - start:.0f} s")
        if problems:
            raise ValueError("; ".join(problems))


if __name__ == "__main__":
    running.run(main)
