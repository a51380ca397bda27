"""Published counts: VGG-16 on CIFAR-100 after 100 exponential steps, weights left in each layer.

Source: the result files published with Tanaka et al. 2020 (arXiv:2006.05467), three runs. Random initialisations
differ, so ours must agree with the mean of the published runs within 3 %, those runs' own spread, or chance.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sparseprune as sp

GOLDEN = json.loads((Path(__file__).parent / "golden_vgg16.json").read_text())
COMPRESSIONS = ["0.5", "1.5", "2.0", "2.5"]  # log10 of all weights / weights left


def network(seed: int) -> torch.nn.Module:
    return sp.models.vgg16_bn(num_classes=100, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def networks():
    return [network(seed) for seed in range(3)]


def counts_over_runs(networks, criterion, log_compression, **options):
    density = 10 ** -float(log_compression)
    runs = [list(sp.prune(net, criterion, density=density, **options).counts().values()) for net in networks]
    return torch.tensor(runs, dtype=torch.float64)


def assert_as_published(method, log_compression, ours):
    published = torch.tensor(
        [GOLDEN["remaining"][run][method][log_compression] for run in GOLDEN["remaining"]]
    ).double()
    mean = published.mean(0)
    spread = published.max(0).values - published.min(0).values
    # A count scatters by its square root from one random network to the next, the difference of two means of three by
    # 0.8 of that: three standard deviations. It matters for layers that keep some fifty of two million weights.
    chance = 2.5 * mean.sqrt()
    allowed = torch.stack([0.03 * mean, spread, chance]).amax(0)
    off = (ours.mean(0) - mean).abs()
    rows = zip(GOLDEN["layers"][0], off.tolist(), allowed.tolist(), mean.tolist(), strict=True)
    assert not [f"{layer}: off by {o:.0f} of {m:.0f}, allowed {a:.0f}" for layer, o, a, m in rows if o > a]


def test_the_network_is_the_published_one(networks):
    assert [p.numel() for p in sp.pruning.prunable(networks[0]).values()] == GOLDEN["layers"][1]


@pytest.mark.parametrize("log_compression", COMPRESSIONS)
def test_magnitude(networks, log_compression):
    """Magnitude scores do not change between steps, so one step gives what a hundred give."""
    assert_as_published("mag", log_compression, counts_over_runs(networks, sp.Magnitude(), log_compression))


@pytest.mark.slow
@pytest.mark.parametrize("log_compression", ["2.0"])
def test_synflow(networks, log_compression):
    synflow = sp.SynFlow(torch.ones(1, 3, 32, 32))
    assert_as_published("sf", log_compression, counts_over_runs(networks, synflow, log_compression, steps=100))


def test_synflow_empties_no_layer_at_extreme_compression(networks):
    synflow = sp.SynFlow(torch.ones(1, 3, 32, 32))
    masks = sp.prune(networks[0], synflow, density=1e-4, steps=100)
    assert masks.count() == round(1e-4 * masks.numel())
    assert min(masks.counts().values()) > 0


def test_magnitude_empties_layers_there(networks):
    counts = sp.prune(networks[0], sp.Magnitude(), density=1e-4).counts()
    assert min(counts.values()) == 0
