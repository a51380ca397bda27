"""The table of a pruned model: what is left of each layer, what still connects input to output, and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import typed
from .criteria.flow import Paths, path_flow
from .criteria.isolation import isolated
from .masks import Masks
from .ops.bitmask import BitMask

__all__ = ["LayerRow", "Summary", "summarize"]


@dataclass(frozen=True)
class LayerRow:
    """One pruned weight.

    Attributes:
        name, shape: the parameter.
        kept, total: its weights.
        dead_rows, rows: output units or filters that keep no weight, of all; None for a weight without rows.
        dead_columns, columns: input units or channels that no kept weight reads, of all.
        on_path: kept weights on a path from input to output; None if unknown.
        flops, dense_flops: 2 * multiply-adds for one example, with the kept and with all weights; None if unknown.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int
    dead_rows: int | None = None
    rows: int | None = None
    dead_columns: int | None = None
    columns: int | None = None
    on_path: int | None = None
    flops: int | None = None
    dense_flops: int | None = None

    @property
    def density(self) -> float:
        return _share(self.kept, self.total)

    @property
    def effective_density(self) -> float | None:
        """``on_path / total``: a kept weight on no path does nothing."""
        return None if self.on_path is None else _share(self.on_path, self.total)


@dataclass(frozen=True)
class Summary:
    """Rows, totals and warnings; ``print`` shows them as a table, ``to_dict`` gives them for JSON.

    Attributes:
        rows: one for each mask, in order.
        connected: whether a path from input to output is left; None if unknown.
        warnings: collapsed layers and paths, a sentence each.
        notes: what could not be found out, and why.
    """

    rows: tuple[LayerRow, ...]
    connected: bool | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> LayerRow:
        """The sums over all rows; what no row knows is None."""
        names = ("dead_rows", "rows", "dead_columns", "columns", "on_path", "flops", "dense_flops")
        sums = {name: _sum(getattr(row, name) for row in self.rows) for name in names}
        return LayerRow("total", (), sum(r.kept for r in self.rows), sum(r.total for r in self.rows), **sums)

    @property
    def density(self) -> float:
        return self.total.density

    @property
    def effective_density(self) -> float | None:
        return self.total.effective_density

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and None only."""

        def row(layer: LayerRow) -> dict[str, Any]:
            densities = {"density": layer.density, "effective_density": layer.effective_density}
            return {**asdict(layer), "shape": list(layer.shape), **densities}

        return {
            "layers": [row(layer) for layer in self.rows],
            "total": row(self.total),
            "connected": self.connected,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        cells = [_HEADER, *(_cells(row) for row in self.rows), _cells(self.total)]
        used = [i for i in range(len(_HEADER)) if i < 4 or any(line[i] for line in cells[1:])]
        widths = {i: max(len(line[i]) for line in cells) for i in used}
        lines = [
            "  ".join(f"{line[i]:<{widths[i]}}" if i < 2 else f"{line[i]:>{widths[i]}}" for i in used).rstrip()
            for line in cells
        ]
        rule = "-" * max(map(len, lines))
        table = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
        return "\n".join(table + [f"warning: {w}" for w in self.warnings] + [f"note: {n}" for n in self.notes])


_HEADER = ("weight", "shape", "kept", "density", "on a path", "dead rows", "dead columns", "FLOPs left", "")


@typed
def summarize(model: nn.Module, masks: Masks, example_input: Tensor | None = None) -> Summary:
    """What ``masks`` leave of ``model``. The model is not changed, and what cannot be found out becomes a note.

    Args:
        model: the network that the masks belong to.
        masks: parameter name -> BitMask.
        example_input: (N, ...), for FLOPs and paths; its first example is used. Without it both are left out.

    Returns:
        A Summary with one row for each mask.

    Raises:
        ValueError: a mask's name or shape is not that of a parameter of the model.
    """
    masks.weights_of(model)
    kept = {name: mask.to_bool() for name, mask in masks.items()}
    notes: list[str] = []
    unfollowed: list[str] = []
    paths: Paths | None = None
    positions: dict[str, int] = {}
    if example_input is not None:
        # The masks are final and the table is an extra: a model that cannot be followed must not cost them.
        try:
            paths = path_flow(model, kept, example_input)
        except Exception as error:
            unfollowed = [f"paths could not be followed: {_first_line(error)}"]
        if paths is not None and paths.positions is not None and kept.keys() <= paths.positions.keys():
            positions = paths.positions
        else:
            try:
                positions = _positions(model, kept, example_input)
            except Exception as error:
                notes.append(f"FLOPs are unknown, the model did not run on example_input: {_first_line(error)}")
            else:
                if unseen := [name for name in kept if name not in positions]:
                    notes.append(f"FLOPs leave out layers that are not called as modules: {', '.join(unseen)}")
        notes += unfollowed
    rows = tuple(_row(name, mask, kept[name], model, paths, positions.get(name)) for name, mask in masks.items())
    connected = None if paths is None else paths.connected
    return Summary(rows, connected, tuple(_warnings(rows, connected)), tuple(notes))


def _row(
    name: str, mask: BitMask, keep: Tensor, model: nn.Module, paths: Paths | None, positions: int | None
) -> LayerRow:
    kept, total = mask.count(), mask.numel()
    row: dict[str, Any] = {}
    if keep.dim() >= 2:
        module = _owner(model, name)
        rows, columns = mask.row_counts() > 0, _read_inputs(keep, getattr(module, "groups", 1))
        if isinstance(module, nn.modules.conv._ConvTransposeNd):  # its weight is (in, out / groups, ...)
            rows, columns = _read_inputs(keep, module.groups), rows
        row |= {"dead_rows": int((~rows).sum()), "rows": rows.numel()}
        row |= {"dead_columns": int((~columns).sum()), "columns": columns.numel()}
    if paths is not None:
        row["on_path"] = int(paths.weights[name].sum())
    if positions is not None:
        row |= {"flops": 2 * kept * positions, "dense_flops": 2 * total * positions}
    return LayerRow(name, tuple(keep.shape), kept, total, **row)


def _read_inputs(mask: Tensor, groups: int) -> Tensor:
    """For each entry of dimension 1 in each group: does any kept weight use it?"""
    if mask.numel() == 0:
        return torch.zeros(groups * mask.shape[1], dtype=torch.bool, device=mask.device)
    grouped = mask.reshape(groups, mask.shape[0] // groups, mask.shape[1], -1)
    return grouped.view(torch.uint8).amax(1).amax(2).flatten().bool()  # thirty times as fast as any(1)


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _positions(model: nn.Module, names: Mapping[str, Tensor], example_input: Tensor) -> dict[str, int]:
    """How often each weight is multiplied for one example: spatial positions, or rows of a linear layer's input."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wanted = {id(parameters[name]): name for name in names}
    found: dict[str, int] = {}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        name = wanted[id(module.weight)]
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            count = inputs[0].numel() // module.in_channels
        elif isinstance(module, nn.modules.conv._ConvNd):
            count = output.numel() // module.out_channels
        else:
            count = output.numel() // output.shape[-1]
        found[name] = found.get(name, 0) + count

    first = next(model.parameters())
    example = example_input[:1].to(first.device)
    if example.is_floating_point() and first.is_floating_point():
        example = example.to(first.dtype)
    layers = [m for m in model.modules() if id(m._parameters.get("weight")) in wanted]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        with isolated(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _warnings(rows: tuple[LayerRow, ...], connected: bool | None) -> list[str]:
    warnings = []
    if connected is False:
        warnings.append("no path from input to output is left: the output no longer depends on the input")
    for row in rows:
        if row.kept == 0 < row.total:
            around = "; what flows goes around it" if connected else ""
            warnings.append(f"{row.name} is empty: 0 of {row.total:,} weights kept{around}")
        elif connected and row.on_path == 0 < row.kept:
            warnings.append(f"{row.name} keeps {row.kept:,} weights, none of them on a path from input to output")
    return warnings


def _cells(row: LayerRow) -> tuple[str, ...]:
    return (
        row.name,
        "x".join(map(str, row.shape)),
        f"{row.kept:,} of {row.total:,}",
        _fraction(row.density),
        "" if row.effective_density is None else _fraction(row.effective_density),
        "" if row.dead_rows is None else f"{row.dead_rows:,} of {row.rows:,}",
        "" if row.dead_columns is None else f"{row.dead_columns:,} of {row.columns:,}",
        "" if row.flops is None else f"{_short(row.flops)} of {_short(row.dense_flops)}",
        "empty" if row.kept == 0 < row.total else "",
    )


def _fraction(value: float) -> str:
    return f"{value:.4f}" if value == 0 or value >= 1e-3 else f"{value:.1e}"


def _short(number: int) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _sum(values: Any) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
