"""The benchmarks' own behaviour: wrong results yield no number, ratios and crossovers are right, the GPU plan runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sparseprune as sp
from sparseprune import BitMask
from sparseprune.ops import group_topk_mask, mask_bits, masked_conv2d, masked_linear, topk_mask

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # last, so that an installed package is still found before the checkout

from benchmarks import (  # noqa: E402
    bench_criteria,
    bench_group_topk_mask,
    bench_mask_bits,
    bench_masked_conv2d,
    bench_masked_linear,
    bench_models,
    bench_prune,
    bench_topk_mask,
    bench_training,
    constants,
    cub,
    layers,
    steps,
)
from benchmarks.environment import tuned  # noqa: E402
from benchmarks.limits import bound_ms, measure_limits  # noqa: E402
from benchmarks.measure import Measure, peak_mib, warm_up  # noqa: E402
from benchmarks.report import main as report_main  # noqa: E402
from benchmarks.report import markdown  # noqa: E402
from benchmarks.reproduce import synflow_masks  # noqa: E402
from benchmarks.rows import AbsentError, Plan, Row, Timed, WrongResultError, unless_refused  # noqa: E402
from benchmarks.saved import crossover, load  # noqa: E402

TOY = Plan("cpu", quick=True)
LIMITS = {"read": 100.0, "float32": 500.0}
CHECKED = (bench_mask_bits, bench_masked_linear, bench_masked_conv2d, bench_topk_mask, bench_group_topk_mask)
DICTIONARIES = {
    bench_mask_bits: (mask_bits.PACK, mask_bits.UNPACK, mask_bits.COUNT),
    bench_masked_linear: (masked_linear.FORWARD,),
    bench_masked_conv2d: (masked_conv2d.FORWARD,),
    bench_topk_mask: (topk_mask.IMPLEMENTATIONS,),
    bench_group_topk_mask: (group_topk_mask.IMPLEMENTATIONS,),
}


@pytest.fixture(autouse=True)
def no_worker(monkeypatch):
    """A pytest that a test starts is no worker of the one that runs the test: workers refuse to measure."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


class Clockless:
    """A pytest-benchmark fixture that counts what it is asked to time."""

    def __init__(self):
        self.timed, self.extra_info, self.group = 0, {}, None
        self.stats = SimpleNamespace(stats=SimpleNamespace(median=0.002))

    def pedantic(self, run, **_):
        self.timed += 1


def take(row):
    fixture = Clockless()
    Measure(TOY, LIMITS, fixture, seconds=0.001)(row)
    return fixture


def spoilt(result):
    """What a kernel returns that got one row wrong, once for each of its results."""
    if isinstance(result, tuple):
        return [(*result[:i], wrong, *result[i + 1 :]) for i, r in enumerate(result) for wrong in spoilt(r)]
    if isinstance(result, list):
        return [[~result[0], *result[1:]], [*result[:-1], ~result[-1]]]
    if isinstance(result, BitMask):
        return [~result]
    wrong = torch.as_tensor(result).detach().clone()
    row = wrong[-1:]
    row.copy_(~row if wrong.dtype == torch.bool else row + 1)
    return [wrong]


@pytest.mark.parametrize("module", CHECKED, ids=lambda m: m.__name__)
def test_a_wrong_kernel_yields_no_number(module):
    """Every row of every side accepts what it computes and refuses each of its results with one row changed."""
    checked = set()
    for row in module.rows(TOY):
        try:
            timed = row.build()
            result = timed.run()
        except AbsentError:
            continue
        timed.check(result)
        for wrong in spoilt(result):
            with pytest.raises(WrongResultError):
                timed.check(wrong)
        checked.add(row.side)
    assert "reference" in checked and len(checked) > 1


def test_whole_models_are_checked_on_every_side():
    for row in bench_models.rows(TOY):
        timed = row.build()
        logits = timed.run()
        timed.check(logits)
        with pytest.raises(WrongResultError):
            timed.check(spoilt(logits)[0])


def test_shipped_constants_are_written_as_they_are_read(monkeypatch, tmp_path):
    shipped = json.loads(constants.SHIPPED.read_text())
    monkeypatch.setattr(constants, "SHIPPED", tmp_path / "costs.json")
    monkeypatch.setattr(constants, "_measured", lambda level, path: shipped[level])
    constants.main()
    text = (tmp_path / "costs.json").read_text()
    assert json.loads(text) == shipped and set(shipped) == set(constants.LEVELS)
    assert re.search(r'"dense": \[[-+.e0-9]+(, [-+.e0-9]+){3}\],\n', text)
    monkeypatch.setattr(constants, "_measured", lambda level, path: level)
    constants.main(["avx2"])
    assert json.loads((tmp_path / "costs.json").read_text()) == {**shipped, "avx2": "avx2"}


@pytest.mark.parametrize("side", ["eager RigL", "ours RigL"])
def test_a_method_that_loses_weights_yields_no_number(side, monkeypatch):
    row = next(row for row in bench_training.rows(TOY) if row.side == side)
    timed = row.build()
    timed.check(timed.run())
    monkeypatch.setattr(bench_training.Eager, "rewire", lambda self, weight, mask, gradient: mask.zero_())
    prune = lambda m, o: sp.training.GradualPruning(m, o, density=0.01, begin=10, end=10)  # noqa: E731
    monkeypatch.setitem(bench_training.METHODS, "RigL", prune)
    timed = row.build()
    with pytest.raises(WrongResultError, match="RigL must keep"):
        timed.check(timed.run())


@pytest.mark.parametrize("module", [bench_masked_linear, bench_masked_conv2d], ids=lambda m: m.__name__)
def test_a_gradient_at_a_pruned_slot_yields_no_number(module):
    row = next(row for row in module.rows(TOY) if row.side == "reference")
    timed = row.build()
    *others, dw = (r.detach().clone() for r in timed.run())
    dw[dw == 0] = 1e-30
    with pytest.raises(WrongResultError, match="not zero at pruned slots"):
        timed.check((*others, dw))


def test_a_red_check_ends_a_row_before_it_is_timed():
    def refuse(_):
        raise WrongResultError("no")

    fixture = Clockless()
    with pytest.raises(WrongResultError):
        Measure(TOY, LIMITS, fixture, 0.001)(Row("op", "group", "side", "ours", lambda: Timed(lambda: 1, refuse)))
    assert fixture.timed == 0 and not fixture.extra_info


def test_scores_that_differ_from_the_loops_yield_no_number():
    for row in bench_criteria.rows(TOY):
        timed = row.build()
        scores = timed.run()
        timed.check(scores)
        for name, score in scores.items():
            with pytest.raises(WrongResultError, match=name):
                timed.check({**scores, name: score * 1.1})


def test_pruning_that_differs_from_the_published_loop_yields_no_number(monkeypatch):
    row = list(bench_prune.rows(TOY))[1]
    assert take(row).timed == 1
    bench_prune._checked.cache_clear()
    flipped = bench_prune.published
    monkeypatch.setattr(bench_prune, "published", lambda *a, **k: {n: 1 - m for n, m in flipped(*a, **k).items()})
    with pytest.raises(WrongResultError, match="differs from the published masks"):
        row.build()
    bench_prune._checked.cache_clear()


def test_a_refusal_is_absence_and_any_other_error_is_not():
    def fail(message):
        raise ValueError(message)

    with pytest.raises(AbsentError, match="no GPU"):
        unless_refused(lambda: fail("backend 'triton' refuses this call of x: no GPU"))
    with pytest.raises(ValueError, match="k must be"):
        unless_refused(lambda: fail("k must be positive"))


CUB = {name: side for name, side in bench_topk_mask.PEERS.items() if "CUB" in name}


@pytest.mark.parametrize("side", CUB)
def test_selections_by_cub_are_right_and_without_it_absent(side, monkeypatch):
    rows = [row for row in bench_topk_mask.rows(TOY) if row.side == side]
    for row in rows:
        with pytest.raises(AbsentError, match="CUB computes on a GPU"):
            take(row)
    selected = []

    def at_least(scores, bound):
        selected.append(scores[scores >= bound])
        return selected[-1]

    monkeypatch.setattr(bench_topk_mask.cub, "sort_descending", lambda s: s.sort(descending=True).values)
    monkeypatch.setattr(bench_topk_mask.cub, "top_k", lambda s, k: s.topk(k, sorted=False).values)
    monkeypatch.setattr(bench_topk_mask.cub, "at_least", at_least)
    assert all(take(row).timed == 1 for row in rows)
    if selected:
        assert 2000 <= len(selected[0]) < 2200  # of 20,000: hardly more than the 2,000 that are kept
        monkeypatch.setattr(bench_topk_mask.cub, "at_least", lambda s, bound: s[s >= bound][:1600])
        assert all(take(row).timed == 1 for row in rows)


@pytest.mark.skipif(not cub.LIBRARY.exists(), reason="the library of CUB's functions was not built")
def test_the_library_of_cub_has_what_is_called():
    library = cub._library()
    assert library.sort_descending and library.select_at_least and b"device" in library.error_string(101)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cub_on_cuda_gives_what_torch_gives():
    scores = torch.randn(100_003, device="cuda").abs()
    expected = scores.sort(descending=True).values
    assert torch.equal(cub.sort_descending(scores), expected)
    assert torch.equal(cub.at_least(scores, 1.0), scores[scores >= 1])
    try:
        assert torch.equal(cub.top_k(scores, 1000).sort(descending=True).values, expected[:1000])
    except AbsentError as reason:
        pytest.skip(str(reason))


def test_two_of_four_are_kept_where_the_pattern_says_so():
    rows = [row for row in bench_masked_linear.rows(TOY) if "2:4" in row.group]
    assert {row.density for row in rows} == {None, 0.5}
    with pytest.raises(AbsentError, match="cuSPARSELt needs a GPU"):
        next(row for row in rows if row.side == "cuSPARSELt").build()
    base = layers.Shape((2, 16), (8, 16), 0.5, "float32", "cpu", layers.FORWARD, torch.nn.functional.linear, True)
    keep = layers.Problem(base).tensors["keep"].reshape(-1, 4)
    assert (keep.sum(1) == 2).all() and len(keep.unique(dim=0)) == 6


def test_pytest_alone_takes_the_rows(tmp_path):
    """What the house promises: ``pytest benchmarks --benchmark-only``, without the command that sets the environment."""
    saved = tmp_path / "saved.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", f"--benchmark-json={saved}"]
    done = subprocess.run(
        [*command, "--quick", "-q", "-k", "count and numpy"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row.side for row in load([saved]).rows] == ["numpy"]


@pytest.mark.parametrize("module", DICTIONARIES, ids=lambda m: m.__name__)
@pytest.mark.parametrize("plan", [TOY, Plan("cpu", False), Plan("cuda", False)], ids=str)
def test_every_backend_has_its_rows(module, plan):
    sides = {row.side for row in module.rows(plan)}
    assert all(set(dictionary) <= sides for dictionary in DICTIONARIES[module])


@pytest.mark.parametrize("module", [bench_masked_linear, bench_masked_conv2d], ids=lambda m: m.__name__)
def test_on_a_gpu_packed_layers_have_rows_for_what_auto_chooses_between(module):
    def packed(device):
        return {row.side for row in module.rows(Plan(device, False)) if row.side.startswith("packed")}

    assert packed("cpu") == {"packed"}
    assert packed("cuda") == {"packed", "packed, native", "packed, reference"}


def test_rows_say_what_they_did():
    row = Row("op", "group", "side", "ours", lambda: Timed(lambda: 1, lambda _: None, flops=4e8, bytes=1e8))
    info = take(row).extra_info
    assert (info["ms"], info["GF/s"], info["GB/s"]) == (2.0, pytest.approx(200), pytest.approx(50))
    assert info["percent of limit"] == pytest.approx(
        50
    )  # 1 ms of reading at 100 GB/s, which is more than 0.8 ms of sums


@pytest.mark.parametrize(
    ("module", "flops"), [(bench_masked_linear, 6 * 16 * 96 * 64), (bench_masked_conv2d, 6 * 2 * 49 * 12 * 72)]
)
def test_work_is_counted_by_hand(module, flops):
    rows = list(module.rows(TOY))
    dense = next(row for row in rows if row.side == "dense, zeros in place")
    ours = next(row for row in rows if row.side == "native" and row.density == 0.1)
    assert dense.build().flops == flops
    try:
        assert ours.build().flops == pytest.approx(0.1 * flops)
    except AbsentError as reason:
        pytest.skip(str(reason))


def test_limits_are_sane_and_bound():
    limits = measure_limits("cpu", quick=True)
    assert 0.1 < limits["read"] < 1e5 and 0.1 < limits["float32"] < 1e6
    assert bound_ms(LIMITS, 5e9, 0, "float32") == 10 and bound_ms(LIMITS, 0, 1e9, "float32") == 10
    assert bound_ms(LIMITS, 5e9, 4e9, "tf32") == 40


def test_peak_memory_counts_temporaries_and_the_result():
    peak = peak_mib(lambda: torch.ones(2**23).mul_(2)[:1].clone(), "cpu")
    if peak is None:
        pytest.skip("this kernel keeps no high-water mark that can be reset")
    assert 31 < peak < 48  # one temporary of 32 MiB


def test_a_row_is_warmed_up_until_its_calls_meet_no_new_memory():
    held, calls = [], 0

    def run(cold):
        nonlocal calls
        calls += 1
        if calls <= cold:
            held.append(torch.empty(2**25, dtype=torch.uint8).fill_(1))  # fresh memory, as nothing is freed

    warm_up(lambda: run(cold=4), 60)
    assert 6 <= calls < 20
    held.clear()
    calls = 0
    start = time.monotonic()
    warm_up(lambda: run(cold=10**9) or held.clear() or time.sleep(0.01), 0.2)
    assert calls > 1 and time.monotonic() - start < 30


def test_the_environment_of_a_run():
    assert tuned({"HOME": "x"})["HOME"] == "x" and tuned({})["MALLOC_MMAP_MAX_"] == "0"
    assert "TRITON_INTERPRET" not in tuned({"TRITON_INTERPRET": "1"})
    assert tuned({})["OMP_PROC_BIND"] == "close" and "OMP_PROC_BIND" not in tuned({}, "cuda")


def bench(side, kind, ms, density=None, group="masked_linear, training, batch 1", iqr=0.0, **notes):
    row = {"op": "masked_linear", "side": side, "kind": kind, "density": density, "dtype": "float32", "size": None}
    return {
        "group": group,
        "stats": {"median": ms / 1e3, "iqr": iqr * ms / 1e3},
        "extra_info": {**row, "ms": ms, **notes},
    }


@pytest.fixture
def saved(tmp_path):
    benches = [
        bench("eager W*M", "dense", 20.0),
        bench("oneDNN", "dense", 8.0, iqr=0.5),
        bench("sparseprop", "peer", 6.0, density=0.1),
        bench("native", "ours", 16.0, density=0.5),
        bench("auto", "ours", 16.0, density=0.5),
        bench("native", "ours", 1.0, density=0.1),
        bench("auto", "ours", 4.0, density=0.1, **{"percent of limit": 12.5}),
    ]
    benches.append({"group": "cut off", "stats": {"median": 1, "iqr": 0}, "extra_info": {}})
    machine = {
        "device": "cpu",
        "processor": "P",
        "tuned": True,
        "quick": False,
        "commit": "abc",
        "limits": {"read": 90.0},
    }
    path = tmp_path / "saved.json"
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": benches}))
    return path


def test_ratios_are_to_the_best_of_the_same_job(saved):
    run = load([saved])
    dense, slow, fast = run.rows[0], run.rows[4], run.rows[6]
    assert (run.ratio(slow, "dense"), run.ratio(fast, "dense")) == (0.5, 2.0)
    assert (run.ratio(slow, "peer"), run.ratio(fast, "peer")) == (None, 1.5)  # the peer was not taken at 0.5
    assert [(row.density, rival.side) for row, rival in run.losses()] == [(0.5, "oneDNN")]
    assert len(run.rows) == 7  # without the row that was cut off
    assert run.speedups(dense.group, "float32") == [(0.5, 0.5), (0.1, 2.0)]  # what a user gets, not the faster "native"


@pytest.mark.parametrize(
    ("points", "at"),
    [
        ([(0.4, 0.5), (0.1, 2.0)], 0.2),
        ([(0.5, 2.0), (0.1, 8.0)], None),
        ([(0.5, 0.5), (0.1, 0.8)], None),
        ([(0.5, 1.0), (0.1, 2.0)], None),
        ([(0.9, 0.5), (0.4, 2.0), (0.2, 0.5), (0.05, 2.0)], 0.1),
    ],
)
def test_crossover(points, at):
    assert crossover(points) == (None if at is None else pytest.approx(at))


def test_the_report_shows_what_loses(saved, tmp_path, capsys):
    assert report_main([str(saved), "--name", "here", "--to", str(tmp_path / "out")]) == 0
    table, figure = map(Path, capsys.readouterr().out.split())
    text = table.read_text()
    assert figure.read_bytes().startswith(b"\x89PNG") and f"![{figure.name}]({figure.name})" in text
    assert "| **auto** | 0.5 | float32 | 16 |  |  |  |  | **0.50x** |  |" in text
    assert "| **auto** | 0.1 | float32 | 4 |  |  | 12.5 |  | 2.00x | 1.50x |" in text
    assert "| oneDNN | any | float32 | ~8 |" in text and "| commit | abc |" in text
    assert "below a density of 0.22" in text  # sqrt(0.5 * 0.1): a ratio of 0.5 at one, 2 at the other
    assert text.index("where it loses") < text.index("## masked_linear")


def test_untuned_and_toy_runs_say_so(saved):
    run = load([saved])
    run.machine.update(tuned=False, quick=True)
    assert "not tuned" in markdown(run, "x", []) and "Toy sizes" in markdown(run, "x", [])


def test_a_damaged_or_foreign_file_is_named(saved, tmp_path, capsys):
    cut, foreign = tmp_path / "cut.json", tmp_path / "foreign.json"
    cut.write_text(saved.read_text()[:100])
    foreign.write_text(saved.read_text().replace('"processor": "P"', '"processor": "Q"'))
    assert report_main([str(cut)]) == 1 and "cut.json must be a saved run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="of one machine"):
        load([saved, foreign])


def test_runs_of_synflow_beside_the_published_loop(monkeypatch):
    monkeypatch.setitem(synflow_masks.NETWORKS, "toy", (bench_prune._toy, (1, 8, 8)))
    found = synflow_masks.compare("toy", 5)
    assert found["float64"] == found["published, float64"] and found["kept"] == round(0.01 * found["of"])
    monkeypatch.setattr(synflow_masks, "DENSITY", 0.3)
    monkeypatch.setattr(synflow_masks.sp, "SynFlow", lambda *_, **__: sp.Random(torch.Generator().manual_seed(0)))
    with pytest.raises(AssertionError, match="kept differ in float64"):
        synflow_masks.compare("toy", 5, ("float64",))
    saved = json.loads((ROOT / "benchmarks/reproduce/synflow_masks.json").read_text())
    assert set(saved) == {*synflow_masks.NETWORKS} - {"toy"}
    assert all(run["float64"] == run["published, float64"] and run["steps"] == 100 for run in saved.values())


def test_steps_end_in_time_and_leave_their_outcome(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "GRACE", 0.5)
    python = [sys.executable, "-c"]
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('started', flush=True); time.sleep(60)"
    plan = [
        steps.Step("good", lambda _: [*python, "print('fine')"], 20),
        steps.Step("bad", lambda _: [*python, "raise SystemExit('broken')"], 20),
        steps.Step("deaf", lambda _: [*python, deaf], 2),
        steps.Step("missing", lambda _: ["/nonexistent"], 20, absent="not installed"),
        steps.Step("late", lambda _: [*python, "1"], 20),
    ]
    told = []
    late = plan.pop()
    start = time.monotonic()
    outcomes = steps.run_steps(plan, tmp_path, start + 60, {}, told.append)
    assert [o.state for o in outcomes] == ["passed", "failed", "cut off", "absent"]
    assert time.monotonic() - start < 30
    assert [o.last_line for o in outcomes] == ["fine", "broken", "started", "not installed"]
    assert [o["state"] for o in json.loads((tmp_path / "steps.json").read_text())] == [o.state for o in told]
    assert steps.run_steps([late], tmp_path, time.monotonic(), {}, told.append)[0].state == "no time left"


@pytest.mark.slow
def test_the_plan_for_a_gpu_runs_at_toy_size(tmp_path):
    """As on a GPU machine: from the checkout, with nothing of the install in use. Takes two minutes; the limits of an
    hour's plan, so that none is met on a busy machine (what happens there: the test above)."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--minutes", "60", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads((tmp_path / "steps.json").read_text())
    assert {o["state"] for o in outcomes} == {"passed", "absent"} and all(o["last_line"] for o in outcomes)
    assert [o["name"] for o in outcomes][:2] == ["libraries", "tests of the ops"]
    found = (tmp_path / "00-libraries.txt").read_text().split("\n")[0].split()
    assert not any(path.startswith(str(ROOT)) for path in found[2:]), found
    run = load(sorted(tmp_path.glob("[mpt]*.json")))
    assert {"topk_mask", "masked_linear", "masked_conv2d", "prune"} <= set(run.ops)
    assert run.machine["tuned"] and run.machine["quick"] and run.machine["limits"]["read"] > 0
    assert "## topk_mask" in (tmp_path / "gpu.md").read_text()
