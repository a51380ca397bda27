"""Storages: the same results from each, the way from each to the others, and the memory of packed weights."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import sparseprune as sp
from sparseprune.nn.base import STORAGES

storages = pytest.mark.parametrize("storage", STORAGES)
PAIRS = [(a, b) for a in STORAGES for b in STORAGES]


def net():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Tanh(), nn.Conv2d(6, 3, 3, stride=2, padding=1, bias=False),
        nn.Flatten(), nn.Linear(27, 5),
    ).double()  # fmt: skip


def random_masks(model, density=0.4):
    names = {"0.weight": (6, 2, 3, 3), "2.weight": (3, 6, 3, 3), "4.weight": (5, 27)}
    return {name: torch.rand(shape) < density for name, shape in names.items()}


def data():
    return torch.randn(3, 4, 6, 6, dtype=torch.float64)


def dense_twin(model, masks):
    """nn.Conv2d and nn.Linear with the values that the masks keep."""
    twin = net()
    state = {k: v for k, v in model.state_dict().items() if k in twin.state_dict()}
    twin.load_state_dict({k: v * masks[k] if k in masks else v for k, v in state.items()})
    return twin


def run(model, x):
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    return y.detach(), x.grad


@storages
def test_outputs_and_gradients_are_those_of_the_dense_model(storage):
    model = net()
    masks = random_masks(model)
    twin, x = dense_twin(model, masks), data()
    expected = run(twin, x)
    sp.sparsify(model, masks, storage=storage)
    torch.testing.assert_close(run(model, x), expected)
    for name, mask in masks.items():
        layer, gradient = model.get_submodule(name[0]), twin.get_parameter(name).grad
        assert layer.storage == storage and torch.equal(layer.mask.to_bool(), mask)
        assert torch.equal(layer.weight.detach() * mask, twin.get_parameter(name).detach())
        if storage == "packed":
            torch.testing.assert_close(layer.weight_values.grad, gradient[mask])
        else:
            torch.testing.assert_close(layer.weight.grad, gradient * mask)


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_the_way_from_each_to_each_keeps_results_objects_and_order(before, after):
    model = net()
    parameters = list(model.parameters())
    masks = random_masks(model)
    sp.sparsify(model, masks, storage=before)
    x = data()
    expected, gradients = run(model, x), [layer.weight.detach().clone() for layer in (model[0], model[2], model[4])]
    assert sp.set_storage(model, after) is model
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert [layer.storage for layer in (model[0], model[2], model[4])] == [after] * 3
    mask = masks["4.weight"]
    kept = gradients[2][mask] if after == "packed" else gradients[2] * mask if after == "owned" else gradients[2]
    assert torch.equal(model[4].parameter.detach(), kept)
    assert model[4].parameter.grad.shape == model[4].parameter.shape
    grad = model[4].parameter.grad
    torch.testing.assert_close(run(model, x), expected)
    torch.testing.assert_close(model[4].parameter.grad, grad)


def test_names_of_packed_parameters():
    layer = sp.set_storage(sp.SparseLinear(70, 3), "packed")
    assert list(dict(layer.named_parameters())) == ["weight_values", "bias"]
    assert list(layer.state_dict()) == ["weight_values", "bias", "weight_mask", "weight_shape"]
    assert "density=1, storage=packed" in repr(layer)
    sp.set_storage(layer, "owned")
    assert list(layer.state_dict()) == ["weight", "bias", "weight_mask"]


def test_values_under_an_overlay_survive():
    model = net()
    weight, first, second = model[4].weight.detach().clone(), torch.rand(5, 27) < 0.5, torch.rand(5, 27) < 0.5
    sp.sparsify(model, {"4.weight": first}, storage="overlay")
    sp.sparsify(model, {"4.weight": second})
    model[4].set_mask(first)
    assert torch.equal(model[4].weight, weight) and model[4].storage == "overlay"
    x = torch.randn(2, 27, dtype=torch.float64)
    torch.testing.assert_close(model[4](x), F.linear(x, weight * first, model[4].bias))
    sp.sparsify(model, {"4.weight": second}, storage="owned")
    assert torch.equal(model[4].weight, weight * second)
    sp.sparsify(model, {"4.weight": first}, storage="overlay")
    assert torch.equal(model[4].weight, weight * second)


def test_densify_from_any_storage():
    for storage in STORAGES:
        model, x = net(), data()
        keys, parameters = list(model.state_dict()), list(model.parameters())
        masks = random_masks(model)
        expected = run(dense_twin(model, masks), x)
        sp.densify(sp.sparsify(model, masks, storage=storage))
        assert list(model.state_dict()) == keys and type(model[0]) is nn.Conv2d
        assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
        assert "storage" not in vars(model[0])
        torch.testing.assert_close(run(model, x), expected)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_packed_is_training_owned(make):
    """Masks and storage change on the way, and the optimizer's state goes with every slot that stays."""
    owned = net()
    masks = [random_masks(owned, density) for density in (0.6, 0.3, 0.5)]
    packed = copy.deepcopy(owned)
    pair = [(owned, make(owned.parameters()), "owned"), (packed, make(packed.parameters()), "packed")]
    batches = [data() for _ in range(4)]
    for model, optimizer, storage in pair:
        sp.sparsify(model, masks[0], optimizer=optimizer, storage=storage)
        for i, x in enumerate(batches):
            if 0 < i < 3:
                sp.sparsify(model, masks[i], optimizer=optimizer)
            if i == 3 and storage == "packed":
                sp.set_storage(model, "owned", optimizer=optimizer)
            run(model, x)
            optimizer.step()
    for a, b in zip(owned.parameters(), packed.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        for key, state in pair[0][1].state[a].items():
            torch.testing.assert_close(state, pair[1][1].state[b][key])


def test_memory_of_packed_weights_and_adam():
    """12 bytes a survivor (value, two moments) and a bit a weight, counted in every tensor that is left."""
    model = nn.Sequential(nn.Linear(256, 128, bias=False), nn.Conv2d(64, 32, 3, bias=False))
    masks = {"0.weight": torch.rand(128, 256) < 0.1, "1.weight": torch.rand(32, 64, 3, 3) < 0.02}
    optimizer = torch.optim.Adam(model.parameters())
    sp.sparsify(model, masks, storage="packed")
    model[0](torch.randn(3, 256)).sum().backward()
    model[1](torch.randn(1, 64, 5, 5)).sum().backward()
    optimizer.step()
    held = [*model.parameters(), *model.buffers()]
    held += [s for state in optimizer.state.values() for s in state.values()]
    storage = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held if t.numel() > 4}
    kept, slots = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    assert sum(storage.values()) == 12 * kept + slots // 8
    assert all(p.grad.numel() == p.numel() for p in model.parameters())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("source", "target"), [(s, t) for s in (*STORAGES, "dense") for t in STORAGES])
def test_checkpoints_of_each_into_each(source, target, assign):
    giver, taker = net(), net()
    masks, held = random_masks(giver), random_masks(taker)
    x = data()
    if source != "dense":
        sp.sparsify(giver, masks, storage=source)
    sp.sparsify(taker, held, storage=target)
    run(taker, x)
    state = {k: v.clone() for k, v in giver.state_dict().items()}
    result = taker.load_state_dict(giver.state_dict(), strict=True, assign=assign)
    assert not result.missing_keys and not result.unexpected_keys
    assert all(torch.equal(v, state[k]) for k, v in giver.state_dict().items())
    used = held if source == "dense" else masks
    assert torch.equal(taker[4].mask.to_bool(), used["4.weight"]) and taker[4].storage == target
    expected = run(dense_twin(giver, used) if source != "packed" else sp.densify(copy.deepcopy(giver)), x)
    torch.testing.assert_close(run(taker, x), expected)
    sp.set_storage(taker, "owned")
    torch.testing.assert_close(run(taker, x), expected)


def test_bad_packed_checkpoints_are_reported():
    model = sp.sparsify(net(), random_masks(None), storage="packed")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = dict(before)
    state["4.weight_values"] = state["4.weight_values"][1:]
    with pytest.raises(RuntimeError, match=r"size mismatch for 4.weight: weight_values must have shape"):
        model.load_state_dict(state)
    state = dict(before)
    del state["4.weight_values"]
    with pytest.raises(RuntimeError, match='Missing key.*"4.weight_values"'):
        model.load_state_dict(state)
    owned = sp.sparsify(net(), random_masks(None))
    state = {**before, "4.weight_values": before["4.weight_values"][1:]}
    with pytest.raises(RuntimeError, match="size mismatch for 4.weight"):
        owned.load_state_dict(state)


@pytest.mark.parametrize("as_dictionary", [True, False])
@storages
def test_dense_state_dict(storage, as_dictionary):
    model = net()
    masks, x = random_masks(model), data()
    expected = run(dense_twin(model, masks), x)
    sp.sparsify(model, masks, storage=storage)
    dense = net()
    dense.load_state_dict(sp.dense_state_dict(model.state_dict() if as_dictionary else model), strict=True)
    torch.testing.assert_close(run(dense, x), expected)


def by_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), by_save])
@storages
def test_duplicates_are_whole_and_independent(storage, duplicate):
    model, x = sp.sparsify(net(), random_masks(None), storage=storage), data()
    expected = run(model, x)
    twin = duplicate(model)
    torch.testing.assert_close(run(twin, x), expected)
    twin[4].set_mask(torch.zeros(5, 27, dtype=torch.bool))
    assert twin[4].storage == storage and twin[4].density == 0 and model[4].density > 0
    torch.testing.assert_close(run(model, x), expected)


def test_tied_weights_are_packed_once():
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).double()
    model[1].weight = model[0].weight
    first, second = torch.rand(5, 5) < 0.5, torch.rand(5, 5) < 0.5
    weight, x = model[0].weight.detach().clone(), torch.randn(3, 5, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for mask in (first, second):
        sp.sparsify(model, {"0.weight": mask}, storage="packed", optimizer=optimizer)
        weight = weight * mask
        assert model[0].weight_values is model[1].weight_values and model[1].storage == "packed"
        expected = F.linear(F.linear(x, weight, model[0].bias), weight, model[1].bias)
        torch.testing.assert_close(model(x), expected)
        model(x).sum().backward()
    sp.set_storage(model, "owned")
    assert model[0].weight is model[1].weight and torch.equal(model[0].weight, weight)


def test_reset_parameters_draws_what_the_dense_layer_draws():
    mask = torch.rand(5, 27) < 0.5
    for storage in STORAGES:
        layer = sp.sparsify(nn.Linear(27, 5), {"weight": mask}, storage=storage)
        parameter = layer.parameter
        torch.manual_seed(3)
        layer.reset_parameters()
        torch.manual_seed(3)
        drawn = nn.Linear(27, 5)
        assert layer.storage == storage and layer.parameter is parameter
        assert torch.equal(layer.weight.detach() * mask, drawn.weight.detach() * mask)


def test_dense_gradients_of_packed_weights():
    packed, x = net(), data()
    owned = sp.sparsify(copy.deepcopy(packed), masks := random_masks(packed))
    sp.sparsify(packed, masks, storage="packed")
    found = []
    for model in (owned, packed):
        with sp.dense_gradients(model) as gradients:
            run(model, x)
        found.append(dict(gradients))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(packed[4].weight_values.grad, owned[4].weight.grad[masks["4.weight"]])


def test_gradients_pass_through_the_dense_copy():
    layer = sp.sparsify(nn.Linear(4, 3), {"weight": torch.rand(3, 4) < 0.5}, storage="packed")
    layer.weight.square().sum().backward()
    torch.testing.assert_close(layer.weight_values.grad, 2 * layer.weight_values.detach())


@storages
def test_half_and_autocast_and_devices(storage):
    model = sp.sparsify(net(), random_masks(None), storage=storage).float()
    x = data().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    expected = model(x)
    torch.testing.assert_close(model.bfloat16()(x.bfloat16()).float(), expected, rtol=0.1, atol=0.1)


@storages
def test_one_graph_while_as_many_are_kept(storage):
    torch._dynamo.reset()
    model = sp.sparsify(net(), random_masks(None), storage=storage)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = data()
    for _ in range(3):
        torch.testing.assert_close(run(compiled, x), run(model, x))
        mask = model[4].mask.to_bool().flatten()
        model[4].set_mask(mask[torch.randperm(len(mask))].reshape(5, 27))
    assert counter.frame_count == 1
    torch._dynamo.reset()


@storages
def test_inference_compiles_without_gradients(storage):
    torch._dynamo.reset()
    model, x = sp.sparsify(net(), random_masks(None), storage=storage), data()
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))
    torch._dynamo.reset()


def test_refusals_change_nothing():
    model = sp.sparsify(net(), random_masks(None))
    with pytest.raises(ValueError, match="storage must be one of owned, overlay, packed, got 'csr'"):
        sp.set_storage(model, "csr")
    dense = net()
    with pytest.raises(ValueError, match="storage must be one of owned"):
        sp.sparsify(dense, random_masks(None), storage="csr")
    assert type(dense[0]) is nn.Conv2d
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer, got int"):
        sp.set_storage(model, "packed", optimizer=3)
    assert model[0].storage == "owned"
    meta = sp.SparseLinear(3, 3, device="meta")
    with pytest.raises(ValueError, match="must not be packed on the meta device"):
        sp.set_storage(meta, "packed")
    sp.set_storage(model, "packed")
    with pytest.raises(ValueError, match=r"got '0.weight' packed; set_storage\(model, 'owned'\)"):
        sp.training.EdgePopup(model, density=0.5)


def test_attached_optimizers_leave_overlays_and_packed_weights():
    masks = random_masks(None)
    for storage in ("overlay", "packed"):
        model = net()
        hidden = model[4].weight.detach()[~masks["4.weight"]].clone()
        sp.sparsify(model, masks, storage=storage)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sp.attach(optimizer, model)
        for _ in range(2):
            run(model, data())
            optimizer.step()
        if storage == "overlay":
            assert torch.equal(model[4].weight.detach()[~masks["4.weight"]], hidden)


@pytest.mark.parametrize("compiled", [False, True])
def test_packed_masks_change_while_the_last_loss_is_alive(compiled):
    """As in a training loop, where ``loss`` is bound until the next forward has run."""
    layer, x = sp.SparseLinear(8, 6), torch.randn(3, 8)
    sp.set_storage(layer, "packed")
    forward = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    optimizer = torch.optim.Adam(layer.parameters())
    for kept in (30, 20, 40):
        sp.sparsify(layer, {"weight": (torch.randperm(48) < kept).view(6, 8)}, optimizer=optimizer)
        optimizer.zero_grad()
        loss = forward(x).sum()
        loss.backward()
        expected = x.sum(0).expand(6, 8)[layer.mask.to_bool()]
        torch.testing.assert_close(layer.weight_values.grad, expected)
        optimizer.step()
