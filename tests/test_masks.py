"""Masks: a validated mapping that survives files, copies and set algebra, and changes models only when told."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparseprune import BitMask, Masks


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(70, 4))


@pytest.fixture
def masks(model):
    return Masks({n: torch.rand(p.shape) < 0.4 for n, p in model.named_parameters() if p.dim() > 1})


def test_counts_and_algebra(masks):
    assert masks.counts() == {n: m.to_bool().sum() for n, m in masks.items()}
    assert masks.count() + (~masks).count() == masks.numel() == 5 * 27 + 280
    assert (masks & ~masks).count() == 0 and (masks | ~masks).density == 1.0
    assert masks.density == masks.count() / masks.numel() and masks.sparsity == 1 - masks.density
    assert masks == Masks(dict(masks)) and masks != ~masks
    assert pickle.loads(pickle.dumps(masks)) == masks


def test_apply_zeroes_the_pruned_and_nothing_else(model, masks):
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        model[3].weight[~masks["3.weight"].to_bool()] = float("nan")
    assert masks.apply_(model) is model
    for name, p in model.named_parameters():
        expected = masks[name].apply(before[name]) if name in masks else before[name]
        assert torch.equal(p, expected)


def test_file_round_trip(masks, tmp_path):
    path = tmp_path / "masks.safetensors"
    masks.save(path, {"criterion": "snip", "note": 'ü "quoted"'})
    loaded = Masks.load(path)
    assert loaded == masks and list(loaded) == list(masks)
    assert loaded.metadata == {"criterion": "snip", "note": 'ü "quoted"'}
    loaded.save(tmp_path / "again.safetensors")
    assert Masks.load(tmp_path / "again.safetensors").metadata == loaded.metadata
    assert {n: t.shape for n, t in load_file(path).items()} == {n: m.words.shape for n, m in masks.items()}
    assert path.stat().st_size < masks.numel() / 8 + 5 * 8 + 1200  # one bit a weight, and a header


def test_odd_shapes_survive_a_file(tmp_path):
    masks = Masks({"scalar": torch.tensor(True), "empty": torch.zeros(0, 4).bool(), "vector": torch.rand(70) < 0.5})
    masks.save(tmp_path / "m")
    assert Masks.load(tmp_path / "m") == masks


def test_equal_masks_give_equal_files(masks, tmp_path):
    for name in ("a", "b"):
        Masks(dict(masks)).save(tmp_path / name, {"seed": "1", "density": "0.4"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_save_leaves_the_old_file_and_no_other(masks, tmp_path):
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    with pytest.raises(TypeError, match="metadata must map strings to strings"):
        (~masks).save(path, {"seed": 3})
    assert Masks.load(path) == masks and list(tmp_path.iterdir()) == [path]


def test_damaged_and_foreign_files_are_named(masks, tmp_path):
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:-5], b"not masks at all, but long enough to be read"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"masks\.safetensors is not a file of masks that can be read"):
            Masks.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="its header has no 'sparseprune-masks-1'"):
        Masks.load(path)
    with pytest.raises(ValueError, match="nowhere.safetensors is not a file of masks"):
        Masks.load(tmp_path / "nowhere.safetensors")


def test_errors_name_the_parameter_and_change_nothing(model, masks):
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"got '3.weigth', which Sequential does not have; did you mean '3.weight'"):
        Masks({**masks, "3.weigth": torch.ones(4, 70).bool()}).apply_(model)
    with pytest.raises(ValueError, match=r"mask '3.weight' must have its weight's shape \(4, 70\), got \(4, 7\)"):
        Masks({**masks, "3.weight": torch.ones(4, 7).bool()}).apply_(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    with pytest.raises(KeyError, match="no mask for '0.wight'; did you mean '0.weight'"):
        masks["0.wight"]
    with pytest.raises(TypeError, match="keyed by parameter name"):
        Masks({0: torch.ones(1).bool()})
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        Masks({"w": torch.ones(1)})
    with pytest.raises(ValueError, match=r"only one side has \['0.weight'\]"):
        masks & Masks({"3.weight": masks["3.weight"]})
    with pytest.raises(TypeError, match="must be Masks, got BitMask"):
        masks | BitMask.ones((3,))


def test_text_without_a_summary_lists_every_weight(masks):
    text = str(masks)
    assert all(name in text and f"{mask.count():,}" in text for name, mask in masks.items())
