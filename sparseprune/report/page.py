"""Diagnostics as one HTML page that needs nothing else: figures are inside it, nothing is fetched."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure

from ..diagnostics import Analysis, Stability
from ..files import write_atomically
from . import analysis as figures
from .style import DEAD, GRID, INK, MUTED, percent

STYLE = f"""
body {{ font: 15px/1.5 system-ui, sans-serif; color: {INK}; max-width: 1080px; margin: 2em auto; padding: 0 1em; }}
h2 {{ border-bottom: 2px solid {GRID}; margin-top: 2.2em; }}
table {{ border-collapse: collapse; font-size: 13px; margin: 1em 0; }}
th, td {{ padding: 3px 10px; text-align: right; border-bottom: 1px solid {GRID}; }}
th {{ color: {MUTED}; font-weight: normal; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ max-width: 100%; }}
figure {{ margin: 1em 0; }}
figcaption, .note {{ color: {MUTED}; font-size: 13px; }}
.warning {{ color: {DEAD}; font-weight: bold; }}
"""


def analysis_page(analyses: Mapping[str, Analysis], stability: Stability | None = None) -> str:
    """The page of one or several analyses.

    Args:
        analyses: title of each -> Analysis; at least one.
        stability: of their masks, where these can be compared; then in the order of ``analyses``.

    Raises:
        ValueError: there are none.
    """
    if not analyses:
        raise ValueError("analyses must hold at least one, got none")
    parts = [f"<h1>{escape(', '.join(analyses))}</h1>"]
    if stability is not None:
        parts += _stability(stability, list(analyses))
    for title, analysis in analyses.items():
        parts.append(f"<h1>{escape(title)}</h1>" if len(analyses) > 1 else "")
        parts += _analysis(analysis)
    body = "\n".join(part for part in parts if part)
    title = escape(", ".join(analyses))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def save_page(page: str, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all."""
    write_atomically(path, lambda file: file.write(page.encode()))


def _analysis(analysis: Analysis) -> Iterable[str]:
    summary = analysis.summary
    yield "<h2>What is left</h2>"
    for warning in summary.warnings:
        yield f'<p class="warning">{escape(warning)}</p>'
    yield _table(("", "", ""), _overview(analysis))
    yield _image(figures.layers_figure(analysis), "Kept weights by layer, and those of them on a path.")
    heads = ("weight", "kept", "of", "pruned", "share of all kept", "on a path", "dead rows", "dead columns", "‖G - I‖")
    yield _table(heads, (_layer(analysis, number) for number in range(len(summary.rows))))
    if analysis.network is not None or analysis.layers:
        yield "<h2>Signal propagation</h2>"
        yield _image(
            figures.spectra_figure(analysis),
            "Singular values of Jacobians at the given inputs, without and with the masks.",
        )
        yield _table(("Jacobian", "", "mean", "std", "smallest", "largest", "condition"), _spectra(analysis))
    if analysis.conservation is not None:
        yield "<h2>Conservation of synaptic saliency</h2>"
        yield _image(
            figures.conservation_figure(analysis),
            "What flows into units less what flows out of them: rounding in a homogeneous network.",
        )
    yield "<h2>What remains of the weights</h2>"
    if analysis.distributions:
        yield _image(figures.distributions_figure(analysis.distributions), "All weights (grey) and kept ones (blue).")
    if analysis.kernels:
        yield _image(figures.kernels_figure(analysis), "Weights kept at each kernel position, in percent.")
    for note in (*summary.notes, *analysis.notes):
        yield f'<p class="note">{escape(note)}</p>'


def _overview(analysis: Analysis) -> Iterable[Sequence[str]]:
    total = analysis.summary.total
    yield ("weights kept", f"{total.kept:,} of {total.total:,}", percent(total.density))
    if (effective := analysis.summary.effective_density) is not None:
        yield ("of them on a path", f"{total.on_path:,}", percent(effective))
    compression = total.total / total.kept if total.kept else float("inf")
    most = analysis.maximal_compression
    yield ("compression", f"{compression:,.4g}", f"at most {most:,.6g} with a weight in every layer")
    if (cost := analysis.costs) is not None:
        yield (
            "parameters",
            f"{cost.parameters:,} of {cost.dense_parameters:,}",
            percent(cost.parameters / cost.dense_parameters),
        )
        yield ("FLOPs", f"{cost.flops:,} of {cost.dense_flops:,}", percent(cost.flops / max(cost.dense_flops, 1)))
    if (cut := analysis.collapse) is not None:
        yield ("layer collapse", ", ".join(cut.empty_layers) or "no", "")
        yield ("path collapse", "no" if cut.connected else "yes", "")


def _layer(analysis: Analysis, number: int) -> Sequence[str]:
    row, remaining = analysis.summary.rows[number], analysis.remaining[number]
    residual = analysis.isometry.get(row.name)
    return (
        row.name,
        f"{row.kept:,}",
        f"{row.total:,}",
        percent(remaining.pruned),
        percent(remaining.share),
        "" if row.effective_density is None else percent(row.effective_density),
        "" if row.dead_rows is None else f"{row.dead_rows:,} of {row.rows:,}",
        "" if row.dead_columns is None else f"{row.dead_columns:,} of {row.columns:,}",
        "" if residual is None else f"{residual:.3g}",
    )


def _spectra(analysis: Analysis) -> Iterable[Sequence[str]]:
    pairs = {**({"network": analysis.network} if analysis.network else {}), **analysis.layers}
    for name, pair in pairs.items():
        for which, spectrum in (("dense", pair.dense), ("pruned", pair.pruned)):
            told = spectrum.to_dict()
            condition = {None: "", True: f"{told['condition'] or 0:.3g}", False: "∞"}[told["full_rank"]]
            smallest = f"{spectrum.min:.3g}" if spectrum.complete else ""
            values = (f"{spectrum.mean:.3g}", f"{spectrum.std:.3g}", smallest, f"{spectrum.max:.3g}")
            which = which if spectrum.complete else f"{which}, {spectrum.values.shape[1]} largest"
            yield (name, which, *values, condition)


def _stability(stability: Stability, names: Sequence[str]) -> Iterable[str]:
    yield "<h2>Agreement of the masks</h2>"
    yield _image(
        figures.stability_figure(stability, names),
        f"Mean Jaccard index {stability.mean:.3f}; masks drawn at random with these layer densities have "
        f"{stability.chance:.3f}.",
    )
    rows = (
        (name, f"{stability.layers[name]:.3f}", percent(shares.mean().item()), percent(shares.std(correction=0).item()))
        for name, shares in stability.shares.items()
    )
    yield _table(("weight", "Jaccard index", "share of all kept", "std of the share"), rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return "<table>\n" + (f"<tr>{top}</tr>\n" if any(heads) else "") + "\n".join(lines) + "\n</table>"


def _image(figure: Figure, caption: str) -> str:
    # As an image of its own, not as inline SVG: the ids of several figures would collide in one document.
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": caption, "svg.fonttype": "path"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    data = base64.b64encode(content.getvalue()).decode()
    source = f"data:image/svg+xml;base64,{data}"
    return f'<figure><img alt="{escape(caption)}" src="{source}"><figcaption>{escape(caption)}</figcaption></figure>'
