from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseprune.criteria import KarninSensitivity
from sparseprune.criteria.trajectory import Trajectory

pytestmark = pytest.mark.usefixtures("doubles")


def train(start, goal=1.0, curvature=2.0, steps=800, optimizer=torch.optim.SGD, **options):
    """E = curvature / 2 (w - goal)^2 from w = start."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(start)
    descent = optimizer(model.parameters(), **{"lr": 0.01, **options})
    with Trajectory(model, descent) as trajectory:
        for _ in range(steps):
            descent.zero_grad()
            (curvature / 2 * (model.weight - goal).square()).sum().backward()
            descent.step()
    return model, trajectory


def sensitivity(model, trajectory, **options):
    return KarninSensitivity(trajectory, **options)(model, {"weight": model.weight})["weight"].item()


@pytest.mark.parametrize(("start", "expected"), [(0.0, 1.0101), (0.1, 0.90909), (-0.5, 1.51515), (3.0, -2.0202)])
def test_closed_form_of_a_quadratic(start, expected):
    model, trajectory = train(start)
    assert sensitivity(model, trajectory, absolute=False) == pytest.approx(expected, abs=1e-4)
    assert sensitivity(model, trajectory) == pytest.approx(abs(expected), abs=1e-4)


def test_two_steps_by_hand():
    """h = 1, goal 2, eta .5: w = 0, 1, 1.5, so sum dw^2 / eta = 2.5; the true rise on removal is 1.875."""
    model, trajectory = train(0.0, goal=2.0, curvature=1.0, steps=2, lr=0.5)
    assert model.weight.item() == 1.5
    assert sensitivity(model, trajectory) == pytest.approx(2.5)


@pytest.mark.parametrize("options", [{"momentum": 0.9, "lr": 0.001}, {"optimizer": torch.optim.Adam, "lr": 0.003}])
def test_other_optimizers(options):
    """The published sum of dw^2 / eta gives 9 under momentum 0.9; the true value is 1."""
    model, trajectory = train(0.0, steps=1500, **options)
    assert sensitivity(model, trajectory) == pytest.approx(1.0, abs=0.02)


def test_weights_that_came_back_score_zero_and_windows_begin_anew():
    model, trajectory = train(1.0)
    assert sensitivity(model, trajectory) == 0.0
    model, trajectory = train(0.0, steps=50)
    trajectory.reset()
    assert trajectory.sums["weight"].item() == 0.0
    assert torch.equal(trajectory.initial["weight"], model.weight) and sensitivity(model, trajectory) == 0.0


def test_parameters_without_gradient_and_steps_after_the_end():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trajectory = Trajectory(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    gathered = trajectory.sums["weight"].clone()
    torch.testing.assert_close(gathered, torch.full((2, 2), -0.1))
    assert trajectory.sums["bias"].count_nonzero() == 0
    trajectory.close()
    optimizer.step()
    assert torch.equal(trajectory.sums["weight"], gathered)


def test_bad_arguments():
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer, got float"):
        Trajectory(nn.Linear(1, 1), 0.1)
    with pytest.raises(TypeError, match="trajectory must be Trajectory, got dict"):
        KarninSensitivity({})
    model, trajectory = train(0.0, steps=1)
    with pytest.raises(ValueError, match="trajectory must hold 'other', got weight"):
        KarninSensitivity(trajectory)(model, {"other": model.weight})
