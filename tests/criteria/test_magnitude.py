from __future__ import annotations

import numpy as np
import torch
from criteria.networks import best
from torch import nn

from sparseprune.criteria import Magnitude


def test_keeps_what_a_stable_sort_keeps():
    model = nn.Linear(17, 11)
    with torch.no_grad():
        model.weight.mul_(8).round_()  # ties of both signs
    scores = Magnitude()(model, {"weight": model.weight})
    order = np.argsort(-model.weight.detach().abs().flatten().numpy(), kind="stable")
    expected = np.zeros(17 * 11, dtype=bool)
    expected[order[: round(0.3 * 17 * 11)]] = True
    assert np.array_equal(best(scores, 0.3)[0].flatten().numpy(), expected)
