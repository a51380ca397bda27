"""What every criterion promises: scores by name and shape, and a model and a caller that notice nothing."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import images, residual_net, weights

import sparseprune as sp
import sparseprune.criteria as criteria
from sparseprune.criteria import (
    LAMP,
    OBD,
    OBS,
    SNIP,
    Criterion,
    ExactSaliency,
    Fisher,
    FourierAmplitude,
    GraSP,
    KarninSensitivity,
    Magnitude,
    Movement,
    QuadraticSNIP,
    Random,
    RelativeMagnitude,
    Shares,
    SignPreserved,
    Skeletonization,
    SynapticSaliency,
    SynFlow,
    Taylor,
    VarianceNullity,
)
from sparseprune.criteria.second_order import DIAGONALS
from sparseprune.criteria.trajectory import Trajectory

EXAMPLE = torch.ones(2, 3, 8, 8)
WITHOUT_DATA = (
    "random", "random without generator", "magnitude", "lamp", "relative magnitude", "movement", "sign preserved",
    "karnin",
)  # fmt: skip
CONSTANT = {("variance nullity, units", "9.weight")}  # each output moves with itself, one to one


def fails(output, target):
    if output.requires_grad:
        output.sum().backward()  # leaves gradients wherever it can
    raise RuntimeError("injected")


def one_step():
    model = residual_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Trajectory(model, optimizer) as trajectory:
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    return trajectory


def cases(loss=F.cross_entropy):
    batches = [images(5), images(3)]
    initial = {name: torch.randn_like(w) for name, w in weights(residual_net()).items()}
    second_order = {"loss": loss, "batches": batches, "samples": 2}
    return {
        "random": Random(torch.Generator().manual_seed(1)),
        "random without generator": Random(),
        "magnitude": Magnitude(),
        "snip": SNIP(loss, batches),
        "snip, train": SNIP(loss, batches, bn="train"),
        "grasp": GraSP(loss, batches),
        "grasp, train": GraSP(loss, batches, bn="train", temperature=1.0),
        "shares": Shares(SNIP(loss, batches)),
        "synaptic saliency": SynapticSaliency(loss, batches),
        "synaptic saliency, train": SynapticSaliency(loss, batches, form="squared", bn="train"),
        **{f"quadratic snip, {d}": QuadraticSNIP(diagonal=d, **second_order) for d in DIAGONALS if d != "exact"},
        "obd": OBD(loss, batches),
        "fisher": Fisher(loss, batches),
        "fisher, true": Fisher(loss, batches, kind="true", cost=1e-6),
        "fisher, units": Fisher(loss, batches, per="unit", cost=1e-6),
        "taylor": Taylor(loss, batches),
        "taylor, units": Taylor(loss, batches, per="unit"),
        "exact": ExactSaliency(loss, [images(2)], dtype=torch.float32),
        "exact, units": ExactSaliency(loss, batches, per="unit"),
        "obs": OBS(loss, batches),
        "obs, layers": OBS(loss, batches, blocks="layer", alpha=1e-3),
        "obs, rows": OBS(loss, batches, blocks="row", alpha=1e-3),
        "variance nullity": VarianceNullity(batches),
        "variance nullity, units": VarianceNullity(batches, per="unit", norm="max"),
        "fourier": FourierAmplitude(batches, points=129),
        "skeletonization": Skeletonization(loss, batches),
        "karnin": KarninSensitivity(one_step()),
        "lamp": LAMP(),
        "relative magnitude": RelativeMagnitude(),
        "movement": Movement(initial),
        "sign preserved": SignPreserved(initial),
        "synflow": SynFlow(EXAMPLE),
        "synflow, float64": SynFlow(EXAMPLE, dtype=torch.float64),
    }


@pytest.fixture
def model():
    net = residual_net()
    net[1].eval()  # mixed modes must come back as they were
    net[3].body[0].weight.requires_grad_(False)
    for i, p in enumerate(net.parameters()):
        p.grad = torch.randn_like(p) if i % 2 else None
    return net


def snapshot(model):
    return {
        "state": {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict(keep_vars=True).items()},
        "grads": {n: (p.grad, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()},
        "requires grad": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "rng": (torch.get_rng_state(), random.getstate()),
        "grad enabled": torch.is_grad_enabled(),
        "precision": torch.get_float32_matmul_precision(),
    }


def assert_unchanged(model, before):
    after = snapshot(model)
    for name, (address, value) in before["state"].items():
        assert after["state"][name][0] == address, name
        assert torch.equal(after["state"][name][1], value), name
    for name, (grad, value) in before["grads"].items():
        assert after["grads"][name][0] is grad, name
        assert grad is None or torch.equal(grad, value), name
    assert torch.equal(after["rng"][0], before["rng"][0]) and after["rng"][1] == before["rng"][1]
    for key in ("requires grad", "modes", "hooks", "grad enabled", "precision"):
        assert after[key] == before[key], key


@pytest.mark.parametrize("name", cases())
def test_scores_and_untouched_model(name, model):
    criterion, params = cases()[name], weights(model)
    before = snapshot(model)
    scores = criterion(model, params)
    assert_unchanged(model, before)
    assert isinstance(criterion, Criterion)
    assert list(scores) == list(params)
    for key, score in scores.items():
        assert score.shape == params[key].shape and score.is_floating_point() and not score.requires_grad
        assert score.isfinite().all() and (score.unique().numel() > 1 or (name, key) in CONSTANT), key
        assert score.data_ptr() != params[key].data_ptr()


@pytest.mark.parametrize("name", cases())
def test_works_where_the_caller_switched_gradients_off(name, model):
    criterion = cases()[name]
    with torch.no_grad():
        before = snapshot(model)
        inside = criterion(model, weights(model))
        assert_unchanged(model, before)
    assert all(score.unique().numel() > 1 or (name, key) in CONSTANT for key, score in inside.items())


@pytest.mark.parametrize("name", [n for n, case in cases().items() if hasattr(case, "loss") and n != "obs, rows"])
def test_untouched_when_the_loss_raises(name, model):
    criterion = cases(fails)[name]
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="injected"):
        criterion(model, weights(model))
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", [n for n in cases() if n not in WITHOUT_DATA])
def test_untouched_when_the_model_raises(name, model):
    def interrupt(module, inputs):
        raise KeyboardInterrupt

    handle, criterion = model[-1].register_forward_pre_hook(interrupt), cases()[name]
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        criterion(model, weights(model))
    assert_unchanged(model, before)
    handle.remove()


@pytest.mark.parametrize("name", cases())
def test_same_scores_twice(name, model):
    first, second = (cases_with_same_data()[name](model, weights(model)) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def cases_with_same_data():
    torch.manual_seed(7)
    return cases()


@pytest.mark.parametrize("name", cases())
def test_exactly_as_many_as_asked(name):
    masks = sp.prune(residual_net(), cases()[name], keep=333)
    assert masks.count() == 333


def test_every_exported_criterion_is_here():
    exported = {getattr(criteria, name) for name in criteria.__all__} - {Criterion}
    assert exported == {type(case) for case in cases().values()}
    assert all(dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen for kind in exported)
