"""The CUDA selection, run on the CPU by the machine in ``tests/simt``, against a sort."""

from __future__ import annotations

import shutil

import pytest
import torch
from cases import score_cases
from simt.build import build
from simt.harness import DTYPES, Emulated
from simt.planted import without
from simt.selection import assert_selects, words_of

from sparseprune.ops.bitmask import as_rows

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the emulated kernels with")
INF, NAN = float("inf"), float("nan")
SPECIAL = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, 0.5, INF, -INF, 1e-45, -1e-45, 2.0**-126, 3e38, -3e38], dtype=torch.float64
)
OVERFLOW = 5000  # equal leading digits: more than the 2048 slots that the machine lets a selection collect


@pytest.fixture(scope="module")
def machine(pytestconfig):
    return Emulated(build(pytestconfig.cache.mkdir("simt")))


def plain(scores, k, largest=True, candidates=()):
    """The inputs of a selection among weights."""
    return [list(scores), [], list(candidates), [0] * len(scores), k, None, largest]


def random_words(scores, density):
    return [words_of((torch.rand(s.shape) < density).numpy()) for s in scores]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", score_cases())
def test_hard_scores(machine, case, dtype):
    scores = [s.to(dtype).reshape(as_rows(s.shape)) for s in score_cases()[case]]
    total = sum(s.numel() for s in scores)
    for seed, (share, density, largest) in enumerate([(0.3, 1, True), (0.4, 0.5, False), (0.5, 1, False)]):
        machine.set_seed(seed)
        candidates = random_words(scores, density) if density < 1 else []
        assert_selects(machine, *plain(scores, round(share * density * total), largest, candidates))


def random_inputs(seed):
    """A mixed list: dtypes, formulas, row lengths around vectors and words, ties, special values, candidates."""
    r = torch.Generator().manual_seed(seed)

    def pick(values):
        return values[int(torch.randint(len(values), (), generator=r))]

    wide = DTYPES if seed % 3 == 0 else DTYPES[:3]
    scores, gradients, formulas = [], [], []
    for _ in range(pick((1, 2, 5))):
        shape, dtype = (pick((0, 1, 2, 3, 9)), pick((0, 1, 7, 8, 16, 31, 33, 64, 72, 100, 257))), pick(wide)
        values = {
            "normal": torch.randn(shape, generator=r, dtype=torch.float64),
            "tiny": torch.randn(shape, generator=r, dtype=torch.float64) * 1e-40,
            "few": torch.randint(-2, 3, shape, generator=r).double(),
            "special": SPECIAL[torch.randint(len(SPECIAL), shape, generator=r)],
        }[pick(("normal", "tiny", "few", "special"))]
        formula = pick(range(5))
        gradient = torch.randint(-1, 3, shape if formula >= 2 else (0,), generator=r)
        scores.append(values.to(dtype))
        gradients.append(gradient.to(dtype))
        formulas.append(formula)
    candidates, total = [], sum(s.numel() for s in scores)
    if seed % 2:
        density = pick((0.0, 0.03, 0.5, 1.0))
        masks = [torch.rand(s.shape, generator=r) < density for s in scores]
        candidates = [words_of(m.numpy()) for m in masks]
        scores = [torch.where(m, s, NAN) for m, s in zip(masks, scores, strict=True)]
        total = sum(int(m.sum()) for m in masks)
    k = pick((-3, 0, 1, total // 3, total // 2, max(total - 1, 0), total, total + 9))
    k_tensor = torch.tensor([k]) if pick((True, False)) else None
    if not any(f >= 2 for f in formulas):
        gradients = []
    return [
        scores,
        gradients,
        candidates,
        formulas,
        10**6 if k_tensor is not None else k,
        k_tensor,
        pick((True, False)),
    ]


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "one element off"])
def test_any_scores(machine, shift):
    machine = Emulated(machine.kernels, shift)
    nan = 0
    for seed in range(shift, 400, 2):
        machine.set_seed(seed)
        nan += int(assert_selects(machine, *random_inputs(seed))[-2][0]) >= 0
    assert 0 < nan < 50  # infinity times zero, now and then


def crowded(case):
    return {
        "equal": torch.full((2, OVERFLOW // 2), -0.25),
        "two values": torch.randint(0, 2, (3, OVERFLOW // 3 * 2)).float(),
        "zeros": torch.where(torch.rand(1, 3 * OVERFLOW) < 0.05, torch.randn(3 * OVERFLOW), 0.0),
        "one bin": 1 + torch.rand(9, OVERFLOW // 9) * 1e-4,
        "close": 1 + torch.randint(0, 2**16, (1, OVERFLOW + 7)) * torch.tensor(2.0**-52, dtype=torch.float64),
    }[case]


@pytest.mark.parametrize("case", ["equal", "two values", "zeros", "one bin", "close"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_more_than_can_be_collected(machine, case, dtype):
    """Ties cut at either end and in the middle, with other tensors around."""
    crowd = crowded(case)
    scores = [torch.tensor([[2.0, -2.0]]).to(dtype), crowd.to(dtype), torch.full((1, 70), 1.0).to(dtype)]
    candidates = random_words(scores, 0.9)
    for seed, (k, largest) in enumerate([(100, True), (crowd.numel() // 2, False), (crowd.numel() - 5, True)]):
        machine.set_seed(seed)
        assert_selects(machine, *plain(scores, k, largest, candidates if seed == 1 else []))


@pytest.mark.parametrize("every", [2, 4, 8, 32, 64, 1024])
def test_what_is_undecided_stands_at_one_place_of_each_group(machine, every):
    """Some lanes of a warp have nothing to collect, or the same place each."""
    for first in (0, 1, every - 1):
        scores = torch.zeros(1, 2048)
        inside = scores[0, first::every]
        inside.copy_(1 + torch.rand(len(inside)) * 2.0**-8)
        assert_selects(machine, *plain([scores], (len(inside) + 1) // 2))


def test_all_equals_are_kept(machine):
    """Nothing is to be decided among them, whether they fit or not."""
    for count in (OVERFLOW, 1000):
        scores = [torch.zeros(1, 300), torch.ones(1, count), torch.zeros(1, 300)]
        assert_selects(machine, *plain(scores, count))
        assert_selects(machine, *plain(scores, count + 600))


def test_the_buffer_of_a_gpu(machine):
    """Without the machine's bound the same scores are collected at once."""
    scores = [torch.ones(1, OVERFLOW), torch.randn(1, OVERFLOW).abs()]
    machine.kernels.set_max_collected(2**62)
    try:
        for k in (OVERFLOW // 2, OVERFLOW + 700):
            assert_selects(machine, *plain(scores, k))
    finally:
        machine.kernels.set_max_collected(0)


def test_the_workspace_is_bounded(machine):
    machine.kernels.set_max_collected(2**62)
    try:
        for dtype in (2, 3):
            for rows, columns, count in ((2**14, 2**14, 1), (2**24, 2**16, 1), (2**8, 2**20, 5000)):
                entry = (0, 0, 0, 0, rows, columns, dtype, 0)
                assert machine.kernels.topk_workspace([entry] * count) < 3.2e6 + 72 * count
    finally:
        machine.kernels.set_max_collected(0)


def test_many_tensors_share_one_selection(machine):
    """More tensors than a slice of the table (56), of which some are empty; ties across all."""
    scores = [torch.randint(0, 3, (1, i % 4)).float() for i in range(300)]
    for k in (1, 230, 449):
        assert_selects(machine, *plain(scores, k))
        assert_selects(machine, *plain(scores, k, largest=False))


def test_no_tensors(machine):
    for scores in ([], [torch.zeros(0, 4), torch.zeros(3, 0)]):
        *_, status, threshold = machine.topk_mask(*plain(scores, 5))
        assert status.tolist() == [-1, 0] + [0] * len(scores) and threshold.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_signed_zeros_are_one_score(machine, dtype):
    scores = [torch.tensor([[-0.0, 0.0, -1.0, 0.0, -0.0]], dtype=dtype)]
    assert [machine.topk_mask(*plain(scores, k))[0][0, 0].item() for k in range(6)] == [0, 1, 3, 11, 27, 31]
    assert [machine.topk_mask(*plain(scores, k, False))[0][0, 0].item() for k in range(6)] == [0, 4, 5, 7, 15, 31]


def test_the_first_nan_that_competes_is_reported(machine):
    scores = [torch.randn(3, 40), torch.randn(2, 70), torch.randn(1, 5), torch.randn(4, 4)]
    for i in (1, 3):
        scores[i][1, -1] = NAN
    assert assert_selects(machine, *plain(scores, 7))[-2][0] == 1
    masks = [torch.ones(s.shape, dtype=torch.bool) for s in scores]
    masks[1][1, -1] = False
    words = [words_of(m.numpy()) for m in masks]
    assert assert_selects(machine, *plain(scores, 7, candidates=words))[-2][0] == 3


def test_nan_is_judged_on_the_formula(machine):
    """Infinity times zero is NaN; a gradient that the formula does not have is not looked at."""
    scores, gradients = [torch.tensor([[1.0, INF]])], [torch.tensor([[2.0, 0.0]])]
    for formula, nan in ((1, -1), (2, 0), (3, 0), (4, 0)):
        result = assert_selects(machine, scores, gradients, [], [formula], 1, None, True)
        assert result[-2][0] == nan
    assert_selects(machine, scores, [torch.full((1, 2), NAN)], [], [0], 1, None, True)


def test_a_double_among_them_makes_all_double(machine):
    """2^-30 in the product of two floats survives only in double."""
    scores = [torch.tensor([[1 + 2.0**-15, 1 + 2.0**-14]]), torch.zeros(1, 1)]
    gradients = [torch.tensor([[1 + 2.0**-15, 1.0]]), torch.zeros(0)]
    assert machine.topk_mask(scores, gradients, [], [2, 0], 1, None, True)[0][0, 0] == 1
    scores[1] = scores[1].double()
    *kept, _, threshold = assert_selects(machine, scores, gradients, [], [2, 0], 1, None, True)
    assert kept[0][0, 0] == 1 and threshold == (1 + 2.0**-15) ** 2


def test_every_half_is_read_as_torch_reads_it(machine):
    for dtype in (torch.float16, torch.bfloat16):
        values = torch.arange(-(2**15), 2**15, 16, dtype=torch.int16).view(dtype)
        values = values[~values.isnan()]
        machine.kernels.set_max_collected(2**62)
        assert_selects(machine, *plain([values.view(1, -1)], len(values) // 3))
        machine.kernels.set_max_collected(0)


def test_results_do_not_depend_on_the_schedule(machine):
    """Nor on the order in which slots are collected."""
    inputs = plain([torch.randint(0, 30, (20, 150)).float(), torch.randint(0, 30, (7, 320)).half()], 1500)
    first = None
    for seed in range(6):
        machine.set_seed(seed)
        result = machine.topk_mask(*inputs)
        first = first or result
        assert all(torch.equal(a, b) for a, b in zip(result, first, strict=True))


def test_the_data_are_read_no_more_often_than_promised(pytestconfig):
    """On kernels that add 2^40 to the number of competing slots for each walk after the first."""
    part = "  const State& state = *search.state;\n  const bool writing"
    count = "  if (blockIdx.x == 0 && threadIdx.x == 0) search.result.status[1] += int64_t{1} << 40;\n"
    edit = {"topk_mask.cu": without(part, 0, count + part)}
    machine = Emulated(build(pytestconfig.cache.mkdir("simt"), edit, kernels=["topk_mask"]))

    def reads(scores, k):
        *_, status, _ = machine.topk_mask(*plain([scores], k))
        return 1 + (int(status[1]) >> 40)

    spread, bits = torch.randn(3, 3000), torch.arange(OVERFLOW)
    assert reads(spread, 100) == 2
    assert reads((1 + bits * 2.0**-14).view(1, -1), 2000) == 3  # 4096 of them share 11 bits
    assert reads(torch.ones(2, OVERFLOW), 100) == 5
    assert reads(torch.ones(2, OVERFLOW), 2 * OVERFLOW) == 4
    assert reads(torch.ones(2, OVERFLOW).double(), 100) == 8
    assert reads(spread, 0) == 2
