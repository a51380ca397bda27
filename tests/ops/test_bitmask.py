"""The packed format, bit by bit, and the class that cannot hold a wrong value."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseprune import BitMask
from sparseprune.ops.mask_bits import count_mask, pack_mask, unpack_mask, words_per_row

SHAPES = [(), (1,), (70,), (0,), (3, 5), (2, 64), (4, 0), (0, 4), (5, 3, 3, 3), (2, 65, 1)]


def test_format_by_hand():
    keep = torch.zeros(2, 70, dtype=torch.bool)
    keep[0, [0, 1, 33]] = True
    keep[1, [31, 69]] = True
    words = pack_mask(keep)
    assert words.tolist() == [[3, 2, 0, 0], [-(2**31), 0, 1 << 5, 0]]
    assert count_mask(words).tolist() == [3, 2]
    assert torch.equal(unpack_mask(words, 70), keep)


@pytest.mark.parametrize("columns", [0, 1, 31, 32, 63, 64, 65, 128, 129])
def test_rows_are_padded_to_64_bits(columns):
    assert words_per_row(columns) * 32 % 64 == 0
    assert 0 <= words_per_row(columns) * 32 - columns < 64


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip_count_and_complement(shape):
    keep = torch.rand(shape) < 0.5
    mask = BitMask.from_bool(keep)
    assert torch.equal(mask.to_bool(), keep) and mask.shape == keep.shape
    assert mask.count() == keep.sum() and mask.numel() == keep.numel()
    assert torch.equal((~mask).to_bool(), ~keep)
    assert BitMask.ones(shape).count() == keep.numel() and BitMask.zeros(shape).count() == 0
    assert BitMask.ones(shape) == BitMask.from_bool(torch.ones(shape, dtype=torch.bool))
    assert mask.density == (keep.sum() / keep.numel() if keep.numel() else 1.0)
    assert mask.sparsity == 1 - mask.density


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 5))
def test_round_trip_of_any_bits(bits, rows):
    keep = torch.tensor(bits[: len(bits) // rows * rows], dtype=torch.bool).reshape(rows, -1)
    mask = BitMask.from_bool(keep)
    assert torch.equal(mask.to_bool(), keep)
    assert mask.row_counts().tolist() == keep.sum(1).tolist()


def test_logical_order_whatever_the_strides():
    keep = torch.rand(4, 3, 5, 2) < 0.5
    assert BitMask.from_bool(keep.to(memory_format=torch.channels_last)) == BitMask.from_bool(keep)
    assert BitMask.from_bool(keep.movedim(0, 2)).to_bool().equal(keep.movedim(0, 2))


def test_set_algebra():
    a, b = torch.rand(2, 7, 33) < 0.5
    ma, mb = BitMask.from_bool(a), BitMask.from_bool(b)
    assert torch.equal((ma & mb).to_bool(), a & b)
    assert torch.equal((ma | mb).to_bool(), a | b)
    assert ma != mb and ma == BitMask.from_bool(a) and ma != "mask"


def test_copies_are_equal_and_apart():
    mask = BitMask.from_bool(torch.rand(3, 40) < 0.5)
    for copied in (mask.clone(), copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert copied == mask and copied.words.data_ptr() != mask.words.data_ptr()
    assert mask.to("cpu") == mask and mask.device.type == "cpu"
    with pytest.raises(TypeError, match="unhashable"):
        hash(mask)


def test_apply_selects():
    mask = BitMask.from_bool(torch.tensor([True, False]))
    assert mask.apply(torch.tensor([1.0, float("nan")])).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"tensor must have the mask's shape \(2,\), got \(3,\)"):
        mask.apply(torch.zeros(3))


WORDS = torch.zeros(3, 2, dtype=torch.int32)
ERRORS = {
    "dtype": (TypeError, "words must be an int32 tensor, got torch.int64", lambda: BitMask(WORDS.long(), (3, 5))),
    "list": (TypeError, "words must be an int32 tensor, got list", lambda: BitMask([[0, 0]], (1, 5))),
    "shape": (ValueError, r"words must have shape \(3, 4\)", lambda: BitMask(WORDS, (3, 65))),
    "stray bits": (ValueError, "no bits set beyond the 5 columns", lambda: BitMask(WORDS + 32, (3, 5))),
    "stray last word": (ValueError, "no bits set beyond the 5 columns", lambda: BitMask(WORDS - 1, (3, 5))),
    "float": (TypeError, "mask must be a bool tensor", lambda: BitMask.from_bool(torch.ones(3))),
    "and": (ValueError, "masks must have one shape", lambda: BitMask.ones((2,)) & BitMask.ones((3,))),
    "and number": (TypeError, "must be a BitMask, got int", lambda: BitMask.ones((2,)) | 1),
    "pack floats": (TypeError, "mask must be a bool tensor, got a torch.float32", lambda: pack_mask(torch.ones(2, 2))),
    "pack 1-D": (ValueError, r"mask must be 2-D", lambda: pack_mask(torch.ones(2, dtype=torch.bool))),
    "unpack too wide": (ValueError, "words must have 4 words a row for 65 columns", lambda: unpack_mask(WORDS, 65)),
    "unpack negative": (ValueError, "for -1 columns", lambda: unpack_mask(WORDS[:, :0], -1)),
    "count 1-D": (ValueError, "words must be 2-D", lambda: count_mask(WORDS[0])),
    "count bool": (TypeError, "words must be an int32 tensor, got a torch.bool", lambda: count_mask(WORDS.bool())),
}


@pytest.mark.parametrize(("kind", "message", "make"), ERRORS.values(), ids=ERRORS)
def test_errors(kind, message, make):
    with pytest.raises(kind, match=message):
        make()
