"""Tries libraries on the tests' own functions, each in a forked process: one JSON job a line in, a verdict a line out."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")
TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "ops")]

import pytest  # noqa: E402
import torch  # noqa: E402
from cases import FLOATS, OPS, Backend, linear_inputs, score_cases  # noqa: E402
from simt.harness import Emulated  # noqa: E402
from simt.reserved import OuterBlocks  # noqa: E402

from sparseprune.ops import native  # noqa: E402

FAILED = "check failed:"
Check = tuple[str, Callable[[], object]]
FAMILIES = {
    "group_topk_mask": ("group_topk_mask",),
    "mask_bits": ("pack_mask", "unpack_mask", "count_mask"),
    "topk_mask": ("topk_mask",),
    "masked_linear": (
        *("masked_linear", "masked_linear_input_grad", "masked_linear_weight_grad"),
        *("packed_linear", "packed_linear_input_grad", "packed_linear_values_grad"),
    ),
    "packed_linear": ("packed_linear",),
    "packed_linear_input_grad": ("packed_linear_input_grad",),
    "packed_linear_values_grad": ("packed_linear_values_grad",),
    "packed_rows": ("packed_linear", "packed_linear_input_grad", "packed_linear_values_grad"),
    "masked_conv2d": (
        *("masked_conv2d", "masked_conv2d_input_grad", "masked_conv2d_weight_grad"),
        *("packed_conv2d", "packed_conv2d_input_grad", "packed_conv2d_values_grad"),
    ),
}


def ops_in(units: list[str]) -> list:
    names = [name for unit in units for name in FAMILIES[unit]]
    return [op for op in OPS if op.name in names]


def cpu_checks(job: dict) -> Iterator[Check]:
    """What tests/ops asks of the native library at one SIMD level."""
    contract, selection = importlib.import_module("test_contract"), importlib.import_module("test_topk_mask")
    blocks = importlib.import_module("test_native_blocks")
    os.environ["SPARSEPRUNE_CPU_ISA"] = job["level"]
    native.LIBRARIES = {"cpu": Path(job["library"]), "cuda": Path("none")}
    backend = Backend("native", job["level"])
    for op in ops_in(job["units"]):
        for dtype in (torch.float32, torch.float64):
            test = contract.test_agrees_with_the_reference_or_refuses
            yield f"{op.name} {dtype}", lambda op=op, dtype=dtype, test=test: test(op, backend, dtype, "cpu")
        yield f"{op.name} threads", lambda op=op: contract.test_native_results_do_not_depend_on_threads(op)
    if "group_topk_mask" in job["units"]:
        groups = importlib.import_module("test_group_topk_mask")
        for dtype in (torch.float32, torch.float64):
            yield "neighbours", lambda dtype=dtype: groups.test_groups_of_neighbours(dtype, backend)
        for kind in groups.HARD:
            for dtype in (torch.float32, torch.float64):
                test = groups.test_large_groups
                yield f"{kind} group", lambda kind=kind, dtype=dtype, test=test: test(kind, dtype, backend)
    if "topk_mask" in job["units"]:
        for case in score_cases():
            for dtype in FLOATS:
                yield case, lambda case=case, dtype=dtype: selection.test_known_hard_scores(case, dtype, "cpu")
        yield "many scores", selection.test_many_scores_with_ties_across_chunks
        for tensor in range(3):
            test = blocks.test_the_first_nan_of_several_threads_is_reported
            yield f"NaN in {tensor}", lambda tensor=tensor, test=test: test(tensor, job["level"])
    for dtype in (torch.float32, torch.float64):
        for values in ("normal", "few", "close") if "topk_mask" in job["units"] else ():
            yield (
                f"selection of {values}",
                lambda values=values, dtype=dtype: blocks.test_selection(values, dtype, job["level"]),
            )
        for layer in blocks.LAYERS:
            if ("masked_linear" if blocks.LAYERS[layer][0] is linear_inputs else "masked_conv2d") in job["units"]:
                for storage, kind in product(("masked", "packed"), ("forward", "input_grad", "weight_grad")):
                    test = blocks.test_layers
                    arguments = (layer, storage, kind, dtype, job["level"])
                    name = f"{storage} {layer} {kind}"
                    yield name, lambda test=test, arguments=arguments: patched(test, *arguments)
    for kind in ("", "_input_grad") if "masked_linear" in job["units"] else ():
        for density in (0.02, 0.3):
            test = partial(blocks.test_a_sample_of_five_to_eight_has_the_same_bits, kind=kind, density=density)
            yield f"five to eight {kind}", lambda test=test: patched(partial(test, level=job["level"]))
    for shape in ((700, 1003), (5, 140_001), (3000, 130)) if "mask_bits" in job["units"] else ():
        yield f"{shape} masks", lambda shape=shape: blocks.test_masks(shape, job["level"])


def cuda_checks(job: dict) -> Iterator[Check]:
    """What tests/test_simt*.py ask of the emulated kernels."""
    simt, large = importlib.import_module("test_simt"), importlib.import_module("test_simt_large")
    loader = importlib.machinery.ExtensionFileLoader("mutant.simt_kernels", job["library"])
    spec = importlib.util.spec_from_file_location("mutant.simt_kernels", job["library"], loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    machine, ops = Emulated(module), [op for op in ops_in(job["units"]) if op.on_gpu]
    many_tiles = partial(simt.test_many_tiles, machine)
    for op in ops:
        for dtype in simt.dtypes(op):
            yield (
                f"{op.name} {dtype}",
                lambda op=op, dtype=dtype: simt.test_agrees_with_the_reference(machine, op, dtype),
            )
    if "topk_mask" in job["units"]:
        yield from selection_checks(machine)
    if "mask_bits" in job["units"]:
        yield "many words", lambda: simt.test_rows_of_many_words_are_counted(machine)
    if "masked_linear" in job["units"]:
        yield "half types", lambda: simt.test_half_types_convert_as_torch_does(machine)
    for name in [op.name for op in ops if op.name.endswith("weight_grad")]:
        yield f"{name} zeros", lambda name=name: simt.test_gradients_of_pruned_weights_are_positive_zero(machine, name)
    for case in simt.LARGE:
        if ("masked_conv2d" if "conv" in case else "masked_linear") in job["units"]:
            for kind in ("forward", "input_grad", "weight_grad"):
                yield f"{case} {kind}", lambda case=case, kind=kind: patched(many_tiles, case, kind)
    for name in [op.name for op in ops if op.name.startswith("packed_linear")]:
        kind = name.removeprefix("packed_linear_").replace("packed_linear", "forward")
        for dtype in simt.FLOATS:
            many_strips = partial(simt.test_packed_weights_of_many_strips, machine, kind=kind, dtype=dtype)
            yield f"{name} {dtype} many strips", lambda test=many_strips: patched(test)
    families = {"mask_bits": ("pack_", "unpack", "count"), "topk_mask": ("topk",), "masked_linear": ("linear",)}
    families |= {"masked_conv2d": ("conv",), "packed_rows": ("packed_linear",)}
    families |= {name: (name,) for name in job["units"] if name.startswith("packed_linear")}
    for unit in job["units"]:
        for name in dir(large):
            if name.startswith(tuple(f"test_{family}" for family in families[unit])):
                yield name, lambda name=name: beyond_31_bits(large, module, name)


def selection_checks(machine: Emulated) -> Iterator[Check]:
    selection = importlib.import_module("test_simt_topk")
    for name, test in vars(selection).items():
        if name.startswith("test_") and [*inspect.signature(test).parameters] == ["machine"]:
            yield name, lambda test=test: test(machine)
    for shift in (0, 1):
        yield "any scores", lambda shift=shift: selection.test_any_scores(machine, shift)
    for case in ("equal", "two values", "zeros", "one bin"):
        for dtype in (torch.float32, torch.float64):
            yield case, lambda case=case, dtype=dtype: selection.test_more_than_can_be_collected(machine, case, dtype)


def patched(test: Callable[..., object], *arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        test(patch, *arguments)


def beyond_31_bits(large, module, name: str) -> None:
    with OuterBlocks(module) as machine:
        getattr(large, name)(machine)


def attempt(job: dict) -> None:
    """In the child: exits with 0 if every check passes; says which one did not."""
    checks, doing = cpu_checks if job["kind"] == "cpu" else cuda_checks, "loading"
    try:
        for doing, check in checks(job):  # noqa: B007 (it is for the message)
            torch.manual_seed(0)
            check()
    except BaseException as error:
        Path(job["report"]).write_text(f"{FAILED} {doing}: {type(error).__name__}: {str(error)[:160]}\n")
        os._exit(1)
    os._exit(0)


def reason_of(output: str, code: int) -> str:
    """The line that says why a child stopped: ours, or a sanitizer's."""
    for line in output.splitlines():
        if line.startswith(FAILED):
            return line.removeprefix(FAILED).strip()
        if "ERROR: AddressSanitizer" in line or "runtime error:" in line:
            return line.partition("ERROR: ")[2] or line
    return f"died with {code}"


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        report = Path(job["report"])
        report.unlink(missing_ok=True)
        start, child = time.monotonic(), os.fork()
        if child == 0:
            said = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1), os.dup2(said, 2)
            attempt(job)
        verdict, status = "", None
        while not verdict:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                verdict = "survived" if code == 0 else f"killed: {reason_of(report.read_text(), code)}"
            elif time.monotonic() - start > job["limit"]:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                verdict = f"killed: ran longer than {job['limit']} s"
            else:
                time.sleep(0.02)
        print(json.dumps({"verdict": verdict, "seconds": round(time.monotonic() - start, 1)}), flush=True)


if __name__ == "__main__":
    main()
