"""`sparseprune analyze`: one page that needs nothing else, JSON, and what it refuses."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from cli.commands import MAGNITUDE, SNIP, invoke, refused
from safetensors.torch import load_file

import sparseprune as sp
from sparseprune.diagnostics import analyze, jaccard, jacobian_spectrum
from sparseprune.masks import Masks
from sparseprune.report.page import analysis_page


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    invoke(*SNIP, "--out", home / "snip")
    invoke(*MAGNITUDE, "--out", home / "magnitude")
    return home


class Page(HTMLParser):
    """The headings and images of a page; every tag that is opened must be closed."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.headings, self.cells = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_page_is_whole_and_fetches_nothing(runs):
    result = invoke("analyze", runs / "snip")
    text = (runs / "snip" / "analysis.html").read_text()
    page = Page(text)
    assert page.headings == [
        "snip", "What is left", "Signal propagation", "Conservation of synaptic saliency",
        "What remains of the weights",
    ]  # fmt: skip
    assert len(page.images) == 4
    for source in page.images:
        start, _, data = source.partition(",")
        assert start == "data:image/svg+xml;base64"
        svg = base64.b64decode(data)
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search(rb'href="(?!#|data:)', svg)
    assert not re.search(r"<(script|link|iframe)|url\(|https?://", text)
    assert "2,510 of 50,200" in page.cells and "fc1.weight" in page.cells
    assert "2,510 of 50,200" in result.stdout and "analysis.html" in result.stderr


def test_json_holds_what_the_library_finds(runs):
    answer = json.loads(invoke("analyze", runs / "snip", "--samples", 3, "--json").stdout)
    [run] = answer["runs"]
    data = sp.data.load("digits")
    model = sp.models.create("lenet_300_100", input_shape=data.input_shape)
    model.load_state_dict(load_file(runs / "snip" / "init.safetensors"))
    masks = Masks.load(runs / "snip" / "masks.safetensors")
    x, _ = next(iter(data.batches("test", 3, torch.Generator().manual_seed(0))))
    assert run["network"]["pruned"]["mean"] == pytest.approx(jacobian_spectrum(model, x, masks=masks).mean)
    assert run["network"]["dense"]["mean"] == pytest.approx(jacobian_spectrum(model, x).mean)
    assert run["collapse"]["density"] == masks.density and run["maximal_compression"] == 50200 / 3
    assert run["summary"]["total"]["kept"] == 2510 and list(run["layers"]) == ["fc1", "fc2", "fc3"]
    assert all(stream["relative"] < 1e-12 for stream in run["conservation"]["streams"])
    assert answer["stability"] is None and answer["page"] is None


def test_several_runs_are_compared(runs, tmp_path):
    out = tmp_path / "deep" / "page.html"
    folders = [runs / "snip", runs / "magnitude"]
    answer = json.loads(invoke("analyze", *folders, runs / "snip", "--samples", 0, "--json", "--out", out).stdout)
    snip, magnitude = (Masks.load(folder / "masks.safetensors") for folder in folders)
    shared = (snip & magnitude).count() / (snip | magnitude).count()
    assert answer["stability"]["matrix"][0] == [1, pytest.approx(shared), 1]
    pair = jaccard(snip, magnitude)["fc1.weight"]
    assert answer["stability"]["layers"]["fc1.weight"] == pytest.approx((2 * pair + 1) / 3)
    assert [run["title"] for run in answer["runs"]] == ["snip", "magnitude", "snip (3)"]
    assert all(run["network"] is None and run["conservation"] is None for run in answer["runs"])
    page = Page(out.read_text())
    assert (
        answer["page"] == str(out)
        and "Agreement of the masks" in page.headings
        and "Signal propagation" not in page.headings
    )


def test_trained_weights_are_taken_before_those_that_were_pruned(runs, tmp_path):
    out = tmp_path / "trained"
    shutil.copytree(runs / "snip", out)
    train = ("train", "lenet_300_100", "--masks", out / "masks.safetensors", "--data", "digits", "--epochs", 1)
    invoke(*train, "--out", out)
    trained = json.loads(invoke("analyze", out, "--json").stdout)["runs"][0]
    drawn = json.loads(invoke("analyze", out, "--weights", out / "init.safetensors", "--json").stdout)["runs"][0]
    before = json.loads(invoke("analyze", runs / "snip", "--json").stdout)["runs"][0]
    assert drawn["distributions"] == before["distributions"] != trained["distributions"]
    weights = load_file(out / "model.safetensors")["fc3.weight"]
    kept = weights[Masks.load(out / "masks.safetensors")["fc3.weight"].to_bool()].double()
    assert trained["distributions"]["fc3.weight"]["mean"] == pytest.approx(kept.mean().item())


def test_a_file_of_masks_with_what_the_file_does_not_say(tmp_path):
    model = sp.models.lenet5(input_shape=(1, 28, 28))
    path = tmp_path / "mine.safetensors"
    sp.prune(model, sp.Magnitude(), density=0.3).save(path)
    assert "--model must be given" in refused("analyze", path, "--out", tmp_path / "p.html")
    result = invoke(
        "analyze", path, "--model", "lenet5", "--input", "1x28x28", "--out", tmp_path / "p.html", "--samples", 0
    )
    page = Page((tmp_path / "p.html").read_text())
    assert page.headings[0] == "mine" and len(page.images) == 3 and "conv1.weight" in result.stdout


def test_names_are_escaped():
    analysis = analyze(torch.nn.Linear(2, 2), sp.Masks({"weight": torch.eye(2).bool()}), torch.ones(1, 2), signal=False)
    text = analysis_page({"<script>&": analysis})
    assert "<script>" not in text and Page(text).headings[0] == "<script>&"
    with pytest.raises(ValueError, match="at least one"):
        analysis_page({})


def test_the_same_run_gives_the_same_bytes(runs, tmp_path):
    for name in ("a", "b"):
        invoke("analyze", runs / "snip", "--samples", 0, "--out", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_refusals(runs, tmp_path):
    assert "must be a run's folder or a file of masks" in refused("analyze", tmp_path / "nothing")
    assert "must hold run.json" in refused("analyze", tmp_path)
    assert "--out must be a file" in refused("analyze", runs / "snip", "--out", tmp_path)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no masks")
    assert "is not a file of masks" in refused("analyze", broken, "--model", "lenet5")
    assert "masks must name parameters" in refused("analyze", runs / "snip", "--model", "resnet20")
    assert not list(tmp_path.glob("*.html")) and not list(tmp_path.glob(".*"))
    dense = tmp_path / "dense"
    invoke("train", "lenet_300_100", "--data", "digits", "--epochs", 1, "--out", dense)
    assert "a dense run" in refused("analyze", dense)
