from __future__ import annotations

import json

import pytest
import torch
from criteria.networks import Residual, mlp, residual_net, weights
from torch import nn

import sparseprune as sp
from sparseprune.summary import summarize

IMAGE = torch.ones(2, 3, 8, 8)


def masks_of(model, **changed):
    full = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights(model).items()}
    return sp.Masks(full | {name.replace("_", "."): mask for name, mask in changed.items()})


def row_of(summary, name):
    return next(row for row in summary.rows if row.name == name)


def test_counts_dead_rows_columns_and_paths():
    model = mlp(4, 3, 2)
    first = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    second = torch.tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    summary = summarize(model, masks_of(model, **{"0_weight": first, "2_weight": second}), torch.ones(1, 4))
    a, b = summary.rows
    assert (a.shape, a.kept, a.total, a.density) == ((3, 4), 3, 12, 0.25)
    assert (a.dead_rows, a.rows, a.dead_columns, a.columns) == (1, 3, 2, 4)
    assert (b.dead_rows, b.rows, b.dead_columns, b.columns) == (1, 2, 1, 3)
    # Unit 1 gets no input and unit 2 is not read.
    assert (a.on_path, b.on_path, summary.total.on_path) == (2, 1, 3)
    assert (a.flops, a.dense_flops) == (6, 24) and (b.flops, b.dense_flops) == (4, 12)
    assert summary.total.kept == 5 and summary.density == 5 / 18 and summary.effective_density == 3 / 18
    assert summary.connected and not summary.warnings and not summary.notes


def test_flops_of_convolutions_count_positions_of_one_example():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain, self.grouped = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
            self.up, self.twice = nn.ConvTranspose2d(6, 2, 2, stride=2), nn.Linear(6, 6)

        def forward(self, x):
            return self.twice(self.twice(self.up(self.grouped(self.plain(x)))))

    model = Net()
    summary = summarize(model, masks_of(model), IMAGE)
    sizes = {row.name: row.dense_flops // 2 for row in summary.rows}
    assert sizes == {
        "plain.weight": 6 * 6 * 4 * 27,
        "grouped.weight": 3 * 3 * 6 * 18,
        "up.weight": 3 * 3 * 6 * 8,
        "twice.weight": 2 * 36 * 2 * 6,
    }
    assert summary.total.flops == summary.total.dense_flops == 2 * sum(sizes.values())


def test_dead_channels_of_grouped_and_transposed_convolutions():
    model = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2), nn.ConvTranspose2d(6, 2, 1))
    grouped = torch.ones(6, 2, 1, 1, dtype=torch.bool)
    grouped[:3, 0] = False  # group 0 does not read its first channel; group 1 reads both
    transposed = torch.ones(6, 2, 1, 1, dtype=torch.bool)
    transposed[:, 1] = False  # output channel 1 is dead
    transposed[4] = False  # input channel 4 is not read
    summary = summarize(model, masks_of(model, **{"0_weight": grouped, "1_weight": transposed}))
    a, b = summary.rows
    assert (a.dead_rows, a.rows, a.dead_columns, a.columns) == (0, 6, 1, 4)
    assert (b.dead_rows, b.rows, b.dead_columns, b.columns) == (1, 2, 1, 6)


def test_without_an_example_no_flops_and_no_paths():
    model = residual_net()
    summary = summarize(model, masks_of(model))
    assert summary.total.flops is None and summary.total.on_path is None and summary.connected is None
    assert "FLOPs" not in str(summary) and "path" not in str(summary)


def test_warns_of_empty_shortcuts_broken_paths_and_useless_layers():
    model = residual_net()
    shortcut = {"5_shortcut_weight": torch.zeros(8, 4, 1, 1, dtype=torch.bool)}
    summary = summarize(model, masks_of(model, **shortcut), IMAGE)
    assert summary.connected
    assert summary.warnings == ("5.shortcut.weight is empty: 0 of 32 weights kept; what flows goes around it",)
    body = {"5_body_0_weight": torch.zeros(8, 4, 3, 3, dtype=torch.bool)}
    summary = summarize(model, masks_of(model, **body), IMAGE)
    assert "5.body.3.weight keeps 576 weights, none of them on a path from input to output" in summary.warnings
    summary = summarize(model, masks_of(model, **shortcut, **body), IMAGE)
    assert summary.connected is False and summary.total.on_path == 0
    assert summary.warnings[0].startswith("no path from input to output is left")
    assert "warning: no path from input to output is left" in str(summary)


def test_paths_without_an_empty_layer():
    """Every layer keeps weights, yet the units they lead to are not the units the next layer reads."""
    model = mlp(2, 2, 2)
    first, second = torch.tensor([[True, False], [False, False]]), torch.tensor([[False, True], [False, True]])
    summary = summarize(model, masks_of(model, **{"0_weight": first, "2_weight": second}), torch.ones(1, 2))
    assert summary.connected is False
    assert summary.warnings == ("no path from input to output is left: the output no longer depends on the input",)


def test_what_cannot_be_followed_is_a_note():
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x).exp()

    model = Odd(3, 2)
    summary = summarize(model, masks_of(model), torch.ones(1, 3))
    assert summary.connected is None and summary.total.flops == 12
    assert len(summary.notes) == 1
    assert summary.notes[0].startswith("paths could not be followed: model must be linear")
    summary = summarize(model, masks_of(model), torch.ones(1, 5))
    assert summary.total.flops is None and summary.total.kept == 6
    assert summary.notes[0].startswith("FLOPs are unknown") and len(summary.notes) == 2
    attention = nn.Sequential(nn.TransformerEncoderLayer(4, 1, 8, batch_first=True))
    summary = summarize(attention, masks_of(attention), torch.ones(1, 3, 4))
    assert summary.connected and "self_attn.in_proj_weight" in summary.notes[0]


def test_table_and_json():
    model = residual_net()
    summary = summarize(model, masks_of(model), IMAGE)
    lines = str(summary).splitlines()
    assert len(lines) == len(summary.rows) + 4
    assert lines[0].split() == "weight shape kept density on a path dead rows dead columns FLOPs left".split()
    assert lines[2].startswith("0.weight") and "4x3x3x3" in lines[2] and "108 of 108" in lines[2]
    assert len({len(line) for line in (*lines[1:-1], lines[-1])}) == 1  # aligned
    loaded = json.loads(json.dumps(summary.to_dict()))
    assert loaded["layers"][0]["name"] == "0.weight" and loaded["layers"][0]["shape"] == [4, 3, 3, 3]
    assert loaded["total"]["kept"] == summary.total.kept and loaded["connected"] is True


def test_model_is_untouched_and_hooks_are_gone():
    model = residual_net().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    for example in (IMAGE, torch.ones(2, 7)):
        summarize(model, masks_of(model), example)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(m.training and not m._forward_hooks for m in model.modules())


def test_masks_of_another_model():
    with pytest.raises(ValueError, match="names? .*parameters of the model"):
        summarize(mlp(2, 2), sp.Masks({"other.weight": torch.ones(2, 2, dtype=torch.bool)}))


def test_nothing_pruned_has_nothing_to_warn_of():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(4), nn.Flatten(), nn.Linear(256, 2))
    summary = summarize(model, masks_of(model), IMAGE)
    assert summary.effective_density == summary.density == 1 and not summary.warnings
