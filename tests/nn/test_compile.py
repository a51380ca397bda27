"""torch.compile: one graph, and none the more when a mask's values change."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from sparseprune.nn import sparsify


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Conv2d(8, 4, 3, padding="same"),
        nn.Flatten(), nn.Linear(4 * 36, 5),
    )  # fmt: skip


def random_masks(model):
    return {name: torch.rand(p.shape) < 0.5 for name, p in model.named_parameters() if p.dim() > 1}


def gradients(model, run, x):
    model.zero_grad()
    run(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_no_recompile_when_masks_change():
    model = sparsify(small_net(), random_masks(small_net()))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.randn(2, 3, 6, 6)
    outputs = []
    for _ in range(3):
        outputs.append(compiled(x).detach())
        torch.testing.assert_close(outputs[-1], model(x))
        torch.testing.assert_close(gradients(model, compiled, x), gradients(model, model, x))
        sparsify(model, random_masks(model))
    assert counter.frame_count == 1
    assert not torch.allclose(outputs[0], outputs[1])


def test_compiled_before_sparsify():
    model = small_net()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 6, 6)
    compiled(x)
    masks = random_masks(model)
    sparsify(model, masks)
    actual = gradients(model, compiled, x)
    assert torch.equal(actual[0] != 0, masks["0.weight"])


def test_optimized_module_is_sparsified_inside():
    model = small_net()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    masks = random_masks(compiled)
    assert all(name.startswith("_orig_mod.") for name in masks)
    sparsify(compiled, masks)
    assert torch.equal(model[0].mask.to_bool(), masks["_orig_mod.0.weight"])
    compiled(torch.randn(2, 3, 6, 6))
