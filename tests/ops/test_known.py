"""What is remembered of masks and weights is what is true of them, also after they changed."""

from __future__ import annotations

import pytest
import torch

from sparseprune import BitMask, masked_linear
from sparseprune.ops import known, zeros


@pytest.fixture
def counted(monkeypatch):
    """How often something was looked up."""
    calls = []
    for module, name in ((known, "count_mask"), (zeros, "_look")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, real=real: calls.append(name) or real(*args))
    return calls


def test_kept_is_counted_once_for_each_change(counted):
    keep = torch.rand(7, 90) < 0.3
    words = BitMask.from_bool(keep).words
    assert [known.count_kept(words) for _ in range(3)] == [int(keep.sum())] * 3
    words.copy_(BitMask.ones((7, 90)).words)
    assert [known.count_kept(words) for _ in range(3)] == [630] * 3
    assert counted == ["count_mask"] * 2


@pytest.mark.parametrize("shape", [(3, 70), (300, 1100), (5, 2, 3, 3), (0, 4), (4, 0), (1, 1)])
@pytest.mark.parametrize("value", [1e-45, float("nan"), -float("inf")])
def test_one_value_outside_is_seen_wherever_it_is(shape, value, monkeypatch):
    monkeypatch.setattr(zeros, "CHUNK", 1 << 12)
    keep = torch.rand(shape) < 0.5
    words = BitMask.from_bool(keep).words
    for at in [None, *(~keep).nonzero()[[0, -1]].tolist()] if keep.numel() > 1 else [None]:
        weight = torch.where(keep, torch.randn(shape), -0.0)
        if at is not None:
            weight[tuple(at)] = value
        assert zeros.is_zero_outside(weight, words) is (at is None)


def test_zeros_are_looked_for_once_for_each_change(counted):
    weight, keep = torch.randn(4, 33), torch.eye(4, 33).bool()
    weight *= keep
    words, other = (BitMask.from_bool(m).words for m in (keep, ~keep))
    assert [zeros.is_zero_outside(weight, words) for _ in range(3)] == [True] * 3
    weight[0, 1] = 1
    assert [zeros.is_zero_outside(weight, words) for _ in range(3)] == [False] * 3
    assert zeros.is_zero_outside(weight, other) is False
    words.fill_(-1)
    assert zeros.is_zero_outside(weight, words) is True
    weight.data = torch.full((4, 33), 2.0)
    words[0] = 0
    assert zeros.is_zero_outside(weight, words) is False
    assert counted == ["_look"] * 5


def test_another_mask_at_the_same_address_is_another_mask():
    weight, memory = torch.eye(4, 33), BitMask.from_bool(torch.eye(4, 33).bool()).words.numpy()
    first = torch.from_numpy(memory)
    assert zeros.is_zero_outside(weight, first)
    memory[:] = 0
    second = torch.from_numpy(memory)
    assert (first.data_ptr(), first._version) == (second.data_ptr(), second._version)
    assert not zeros.is_zero_outside(weight, second)


def test_a_mask_that_changes_in_place():
    weight, words = torch.eye(4, 33), BitMask.from_bool(torch.eye(4, 33).bool()).words
    assert zeros.is_zero_outside(weight, words)
    words.zero_()
    assert not zeros.is_zero_outside(weight, words)


def test_new_storage_under_the_same_version():
    weight, words = torch.zeros(4, 33), BitMask.zeros((4, 33)).words
    assert zeros.is_zero_outside(weight, words)
    version = weight._version
    weight.data = torch.ones(4, 33)
    assert weight._version == version and not zeros.is_zero_outside(weight, words)


def test_inference_tensors_have_no_version():
    with torch.inference_mode():
        weight, words = torch.zeros(4, 33), BitMask.zeros((4, 33)).words
        assert zeros.is_zero_outside(weight, words) and known.count_kept(words) == 0
        weight[1, 1], words[1, 0] = 1, 1
        assert not zeros.is_zero_outside(weight, words) and known.count_kept(words) == 1


def test_a_step_looks_once(counted):
    weight = torch.nn.Parameter(torch.eye(64))
    mask = BitMask.from_bool(torch.eye(64).bool())
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(2):
        masked_linear(torch.randn(16, 64, requires_grad=True), weight, mask, backend="auto").sum().backward()
        for backend in ("dense", "onednn"):
            masked_linear(torch.randn(16, 64, requires_grad=True), weight, mask, backend=backend).sum().backward()
        optimizer.step()
        assert torch.equal(weight != 0, mask.to_bool())
    assert counted.count("_look") == 2 and counted.count("count_mask") == 1


def test_what_has_died_is_forgotten_and_never_taken_for_another():
    memory = known.Memory()
    first, second = torch.zeros(1), torch.zeros(1)
    memory.put(first, (0, 0), "first")
    memory._found[id(second)] = memory._found[id(first)]  # as if it had the number of the first
    assert memory.get(first, (0, 0)) == "first" and memory.get(second, (0, 0)) is None
    del memory._found[id(second)]
    memory.put(first, (1, 0), "changed")
    assert memory.get(first, (0, 0)) is None and memory.get(first, (1, 0)) == "changed"
    del first
    assert not memory._found


def test_a_part_is_known_while_all_three_are_as_they_were():
    whole, part, kept = (BitMask.from_bool(torch.rand(3, 70) < 0.5).words for _ in range(3))
    known.remember_part(part, whole, kept)
    assert known.known_part(part, whole) is kept and known.known_part(part, whole.clone()) is None
    kept.fill_(0)
    assert known.known_part(part, whole) is None
    known.remember_part(part, whole, kept)
    whole.fill_(0)
    assert known.known_part(part, whole) is None
    with torch.inference_mode():
        inside = part.clone()
        known.remember_part(inside, whole, kept)
        assert known.known_part(inside, whole) is None
