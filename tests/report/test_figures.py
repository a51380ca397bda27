"""Figures: one bar a layer, counts beside it, dead layers in red, and files that are PNGs."""

from __future__ import annotations

import sys

import pytest
from matplotlib.colors import same_color

from sparseprune.report import Layer, Run, comparison_figure, density_figure, save_figure
from sparseprune.report.comparison import MOST_BARS, result_row
from sparseprune.report.style import DEAD, percent
from sparseprune.training import Epoch, History


def run(name="a", kept=(50, 30, 2), totals=(100, 60, 10), epochs=0, model="net"):
    layers = tuple(Layer(f"fc{i}.weight", k, t) for i, (k, t) in enumerate(zip(kept, totals, strict=True)))
    rows = [Epoch(e + 1, 2.0 / (e + 1), 2.1, 0.5 / (e + 1), 0.1, 1.0) for e in range(epochs)]
    return Run(name, model, "snip", layers, History(rows))


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_one_bar_a_layer_first_on_top_with_its_count():
    [axes] = density_figure(run()).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([50, 50, 20])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fc0", "fc1", "fc2"]
    assert axes.yaxis.get_inverted() and axes.get_xscale() == "linear"
    assert texts(axes) == ["50 of 100", "30 of 60", "2 of 10"]
    assert "82 of 170 weights kept: density 48.2 %" in axes.get_title(loc="left")


def test_below_one_percent_the_axis_is_logarithmic_and_the_shortest_bar_visible():
    [axes] = density_figure(run(kept=(9, 500), totals=(1000, 1000))).axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] < 0.9 and axes.get_xlim()[1] == 100
    assert density_figure(run(kept=(10, 500), totals=(1000, 1000))).axes[0].get_xscale() == "linear"


def test_dead_layers_are_red_and_named():
    figure = density_figure(run(kept=(0, 30, 2)))
    [axes] = figure.axes
    assert same_color(axes.get_yticklabels()[0].get_color(), DEAD)
    assert not same_color(axes.get_yticklabels()[1].get_color(), DEAD)
    assert "dead" in texts(axes) and "1 dead layer" in axes.get_title(loc="left")
    density_figure(run(kept=(0, 0, 0)))


def test_an_unpruned_run_has_no_density_figure():
    with pytest.raises(ValueError, match="must have masks to draw, got dense"):
        density_figure(Run("dense", "net", "dense"))


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def test_runs_of_one_network_share_a_panel_and_others_get_their_own():
    figure = comparison_figure([run("a", epochs=3), run("b", (20, 0, 10), epochs=2), run("c", (5,), (9,), model="m")])
    found = panels(figure)
    assert set(found) == {"density by layer: net", "density by layer: c", "test error", "training loss"}
    shared = found["density by layer: net"]
    assert len(shared.patches) == 5  # a's three and b's two that live
    assert same_color(shared.get_yticklabels()[1].get_color(), DEAD)
    errors = [list(line.get_ydata()) for line in found["test error"].lines]
    assert errors == [pytest.approx([50, 25, 50 / 3]), pytest.approx([50, 25])]
    assert [list(line.get_xdata()) for line in found["training loss"].lines] == [[1, 2, 3], [1, 2]]


def test_many_layers_are_drawn_as_dots():
    count = MOST_BARS // 2 + 1
    runs = [run(name, (5,) * count, (10,) * count) for name in "ab"]
    axes = panels(comparison_figure(runs))["density by layer: net"]
    assert not axes.patches and len(axes.lines) == 2
    assert list(axes.lines[0].get_xdata()) == pytest.approx([50] * count)


def test_the_table_has_every_run():
    runs = [run("first", epochs=2), Run("plain", "net", "dense", (), run(epochs=1).history)]
    table = comparison_figure(runs).axes[0]
    assert {"first", "plain", "48.2 %", "82", "25.0 %", "100 %", "all"} <= set(texts(table))
    assert result_row(run("x")) == ("x", "net", "snip", "48.2 %", "82", "0", "-", "-")
    with pytest.raises(ValueError, match="at least one run"):
        comparison_figure([])


def test_saved_figures_are_png_and_need_no_global_state(tmp_path):
    save_figure(comparison_figure([run(epochs=1)]), tmp_path / "f.png")
    content = (tmp_path / "f.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.rstrip().endswith(b"IEND\xaeB`\x82")
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.125, "12.5 %"),
        (0.0416, "4.16 %"),
        (0.00416, "0.416 %"),
        (0.0099999, "1.00 %"),
        (2.5e-6, "2.5e-04 %"),
    ],
)
def test_percent(value, text):
    assert percent(value) == text
