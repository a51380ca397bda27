"""The choice: closed forms of when sparse pays, where constants come from, and a fit that finds what it is given."""

from __future__ import annotations

import json

import pytest
import torch

from sparseprune import BitMask, calibrate, masked_conv2d, masked_linear
from sparseprune.ops import calibration, choice, costs
from sparseprune.ops import masked_conv2d as conv
from sparseprune.ops import masked_linear as linear
from sparseprune.ops.costs import Work


@pytest.fixture(autouse=True)
def forget():
    costs.reload()
    yield
    costs.reload()


def constants(dense, native, margin=1.0, onednn=(1, 0, 0, 0)):
    """The same constants for every op and kind."""
    native = [*native, 0][:5]
    fit = {"dense": list(dense), "onednn": list(onednn), "native": native, "margin": margin}
    shipped = json.loads(costs.SHIPPED.read_text())["portable"]["ops"]
    return {"ops": {op: dict.fromkeys(kinds, fit) for op, kinds in shipped.items()}}


@pytest.fixture
def use(tmp_path, monkeypatch):
    def use(*args, **options):
        path = tmp_path / "costs.json"
        path.write_text(json.dumps(constants(*args, **options)))
        monkeypatch.setenv(costs.VARIABLE, str(path))
        costs.reload()

    return use


def work(kept, slots=100, vectors=10, dtype=torch.float32):
    return Work("masked_linear", "batch > 8", slots, kept, vectors, 7, dtype)


def test_crossover_in_closed_form(use):
    """A sparse multiply-add that costs 4 dense ones pays below a density of a quarter, and by the margin's share of it."""
    use((0, 0, 1e-6, 0), (0, 0, 4e-6, 0))
    assert [costs.choose(work(kept)).name for kept in (0, 24, 26, 100)] == ["native", "native", "dense", "dense"]
    use((0, 0, 1e-6, 0), (0, 0, 4e-6, 0), margin=2.0)
    assert [costs.choose(work(kept)).name for kept in (12, 13)] == ["native", "dense"]


def test_all_terms_count(use):
    use((1e-3, 2e-5, 3e-7, 4e-6), (5e-3, 6e-5, 7e-7, 8e-6, 9e-5))
    predicted = costs.choose(work(kept=20)).predicted
    assert predicted["dense"] == pytest.approx(1e-3 + 100 * 2e-5 + 1000 * 3e-7 + 7 * 4e-6)
    assert predicted["native"] == pytest.approx(5e-3 + 100 * 6e-5 + 200 * 7e-7 + 7 * 8e-6 + 20 * 9e-5)


def test_the_best_dense_product_is_what_sparse_has_to_beat(use):
    use((1, 0, 0, 0), (1e-3, 0, 0, 0), onednn=(1e-6, 0, 0, 0))
    assert costs.choose(work(1)).name == "onednn"
    assert costs.choose(work(1, dtype=torch.float64)).name == "native"  # which oneDNN does not take
    assert costs.choose(work(1, dtype=torch.bfloat16)).name == "dense"


@pytest.mark.parametrize("name", ["native", "dense", "onednn"])
def test_auto_runs_what_was_chosen(use, name, monkeypatch):
    cheap, dear = (1e-9, 0, 0, 0), (1, 0, 0, 0)
    use(*(cheap if name == n else dear for n in ("dense", "native")), onednn=cheap if name == "onednn" else dear)
    ran = []
    for implementations in (linear.FORWARD, linear.INPUT_GRAD, linear.WEIGHT_GRAD):
        entry = implementations[name]
        spy = entry._replace(run=lambda *args, run=entry.run: ran.append(name) or run(*args))
        monkeypatch.setitem(implementations, name, spy)
    keep = torch.rand(9, 12) < 0.5
    weight = (torch.randn(9, 12) * keep).requires_grad_()
    masked_linear(torch.randn(10, 12, requires_grad=True), weight, keep, backend="auto").sum().backward()
    assert ran == [name] * 3


def test_shipped_constants_know_large_from_small():
    """But for kinds where dense products are so slow, or so bound by memory, that the number kept hardly matters."""
    exempt = ("batch 1", "batch <= 8", "grouped", "few channels", "1x1, few positions, channels_last")
    for op, kinds in costs.constants().items():
        for kind in kinds:
            few, all_ = (Work(op, kind, 1 << 20, kept, 1024, 1 << 18, torch.float32) for kept in (1 << 13, 1 << 20))
            if not kind.startswith(exempt):
                assert costs.choose(all_).name != "native", (op, kind)
                assert costs.choose(few).name == "native", (op, kind)


@pytest.mark.parametrize("module", [linear, conv], ids=["linear", "conv"])
def test_a_gpu_and_nothing_at_all_take_the_vendors_product(module):
    keep = torch.zeros(4, 8, 1, 1, dtype=torch.bool) if module is conv else torch.zeros(4, 8, dtype=torch.bool)
    words = BitMask.from_bool(keep).words
    rest = ([1, 1], [0, 0], [1, 1], 1) if module is conv else ()
    x = torch.randn(3, 8, 2, 2) if module is conv else torch.randn(3, 8)
    for t in (x[:0], x.to("meta")):
        args = [t, torch.randn(keep.shape, device=t.device), words.to(t.device), None, *rest]
        assert choice.choose("masked_" + ("conv2d" if module is conv else "linear"))(*args) == "dense"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "kind, channels, out, size, kernel, groups",
    [
        ("larger kernel, few positions", 32, 32, 8, 3, 1),
        ("larger kernel, many positions", 32, 32, 9, 3, 1),
        ("1x1, few positions", 32, 32, 6, 1, 1),
        ("1x1, few positions, large", 1024, 512, 6, 1, 1),
        ("larger kernel, few positions, large", 256, 256, 8, 3, 1),
        ("larger kernel, many positions", 256, 256, 9, 3, 1),
        ("few channels, few positions", 32, 16, 6, 3, 1),
        ("few channels, many positions", 3, 32, 9, 1, 1),
        ("grouped", 32, 32, 6, 3, 2),
    ],
)
def test_kinds_of_convolutions(kind, channels, out, size, kernel, groups, layout):
    x, keep = torch.randn(2, channels, size, size), torch.rand(out, channels // groups, kernel, kernel) < 0.5
    rest = (None, [1, 1], [kernel // 2] * 2, [1, 1], groups)
    words = BitMask.from_bool(keep).words
    work = choice.describe("masked_conv2d", x.contiguous(memory_format=layout), torch.randn(keep.shape), words, *rest)
    assert work.kind == kind + (", channels_last" if layout == torch.channels_last else "")


@pytest.mark.parametrize(
    "kind, batch, features",
    [("batch 1", 1, 64), ("batch 1, large", 1, 2048), ("batch <= 8", 2, 64), ("batch <= 8, large", 8, 2048)]
    + [("batch > 8", 9, 64), ("batch > 8", 9, 2048)],
)
def test_kinds_of_linear_layers(kind, batch, features):
    assert choice.linear_work("masked_linear", torch.empty(batch, features), (features, features), 1).kind == kind


def test_conv_work_counts_positions():
    x, keep = torch.randn(2, 8, 9, 7), torch.rand(4, 8, 3, 3) < 0.5
    for call in conv.products(x, torch.randn(4, 8, 3, 3), BitMask.from_bool(keep).words, None, (2, 1), (1, 0), 1, 1):
        found = choice.describe(call.op, *call.args)
        assert (found.slots, found.kept, found.vectors) == (288, int(keep.sum()), 2 * 5 * 5)
        assert found.moved == x.numel() + 2 * 4 * 25 and found.op == call.op


def test_a_damaged_cache_warns_and_a_named_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "cache_file", lambda: tmp_path / "costs.json")
    monkeypatch.delenv(costs.VARIABLE)
    assert costs.source()[0] == costs.SHIPPED
    (tmp_path / "costs.json").write_text('{"ops": {}}')
    costs.reload()
    with pytest.warns(UserWarning, match="must be a file that calibrate.. wrote, .*package are used; delete it"):
        assert costs.source()[0] == costs.SHIPPED
    monkeypatch.setenv(costs.VARIABLE, str(tmp_path / "costs.json"))
    costs.reload()
    with pytest.raises(ValueError, match="SPARSEPRUNE_COSTS must be a file that calibrate"):
        costs.choose(work(1))
    monkeypatch.setenv(costs.VARIABLE, "shipped")
    costs.reload()
    assert costs.choose(work(1)).predicted


@pytest.mark.parametrize("level", ["avx512", "avx2", "portable"])
def test_the_shipped_constants_are_those_of_the_simd_level(monkeypatch, level):
    monkeypatch.setenv("SPARSEPRUNE_CPU_ISA", level)
    monkeypatch.setenv(costs.VARIABLE, "shipped")
    assert costs.constants() == json.loads(costs.SHIPPED.read_text())[level]["ops"]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(costs.sys, "platform", "linux")
    monkeypatch.setattr(costs, "cpu_name", lambda: "AMD EPYC(TM) 7xx3 @ 2.4GHz")
    assert costs.cache_file() == tmp_path / "sparseprune" / "costs-amd-epyc-tm-7xx3-2-4ghz.json"


def test_the_fit_finds_the_constants():
    truth = {"dense": (2e-5, 1e-10, 3e-11, 4e-10), "native": (1e-5, 5e-10, 9e-11, 7e-10, 6e-10)}
    samples = []
    for batch, side, density in [(16, 64, 0.1), (64, 256, 0.1), (128, 128, 0.5), (256, 512, 0.02), (32, 1024, 0.3)]:
        for moved in (1 << 12, 1 << 18):
            sample = Work("masked_linear", "", side**2, int(density * side**2), batch, moved, torch.float32)
            samples.append((sample, {n: sample.seconds(n, c) for n, c in truth.items()}))
    found = calibration.fit(samples)
    for name, expected in truth.items():
        assert found[name] == pytest.approx(expected, rel=1e-5)
    assert found["margin"] == pytest.approx(calibration.CAUTION)


def test_the_margin_is_above_every_gain_that_was_promised_and_missed():
    """Two works that differ in nothing the model sees: sparse won in one and lost in the other."""
    same = work(50)
    samples = [(same, {"dense": 2.0, "native": 1.0}), (same, {"dense": 1.0, "native": 2.0})]
    found = calibration.fit(samples)
    dense, native = (same.seconds(n, found[n]) for n in ("dense", "native"))
    assert dense / native == pytest.approx(1.0) and found["margin"] == pytest.approx(calibration.CAUTION)
    samples = [(same, {"dense": 4.0, "native": 1.0}), (same, {"dense": 1.0, "native": 1.3})]
    found = calibration.fit(samples)
    assert found["margin"] == pytest.approx(
        calibration.CAUTION * same.seconds("dense", found["dense"]) / same.seconds("native", found["native"])
    )
    assert found["margin"] > 1.15


def test_calibrate_writes_what_is_read(tmp_path, monkeypatch):
    """On toy sizes; the timings are whatever they are."""
    monkeypatch.setattr(calibration, "LINEAR", [(n, 8, 8) for n in (1, 4, 16)] + [(n, 2048, 2048) for n in (1, 4)])
    kinds = [(1, n, n, size, kernel, 1, 1) for n in (4, 17) for size in (4, 9) for kernel in (1, 3)]
    kinds += [(1, 1024, 512, 2, 1, 1, 1), (1, 256, 256, 2, 3, 1, 1)]
    monkeypatch.setattr(calibration, "CONV", [*kinds, (1, 4, 4, 4, 3, 1, 2)])
    monkeypatch.setattr(calibration, "SECONDS", 1e-6)
    path = calibrate(tmp_path / "new" / "costs.json")
    monkeypatch.setenv(costs.VARIABLE, str(path))
    costs.reload()
    said = json.loads(path.read_text())
    assert said["threads"] == torch.get_num_threads() and said["cpu"] == costs.cpu_name()
    assert set(costs.choose(work(50)).predicted) == {"dense", "onednn", "native"}
    for kinds in costs.constants().values():
        assert all(fit["margin"] >= 1 and min(*fit["dense"], *fit["native"]) >= 0 for fit in kinds.values())


def test_channels_last_on_every_backend():
    x = torch.randn(2, 6, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    keep = torch.rand(4, 6, 3, 3) < 0.5
    weight = (torch.randn(4, 6, 3, 3) * keep).requires_grad_()
    expected = torch.autograd.grad(torch.nn.functional.conv2d(x, weight, padding=1).square().sum(), (x, weight))
    for backend in ("native", "dense", "reference", "auto"):
        y = masked_conv2d(x, weight, keep, padding=1, backend=backend)
        assert y.is_contiguous(memory_format=torch.channels_last)
        dx, dw = torch.autograd.grad(y.square().sum(), (x, weight))
        assert dx.is_contiguous(memory_format=torch.channels_last)
        assert dw.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close((dx, dw), (expected[0], expected[1] * keep))
