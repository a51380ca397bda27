"""Training only what leaves independent units, and removing units that others can replace (after Wan et al.)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import scipy.linalg
import torch
from torch import Tensor, nn

from ..arguments import typed
from ..nn import SparseLayer, held_masks, sparsify
from ..nn.storage import as_stored, write_weight
from ..ops.bitmask import BitMask
from ..prunable import Exclude, all_kept
from .dynamic import averaged_over_ranks
from .method import Method, check_count


@typed
def independent_columns(activations: Tensor, tolerance: float) -> list[int]:
    """Columns none of which the others before it explain: Gram-Schmidt, each time of the longest remainder.

    Columns are scaled to norm 1; it ends where every remainder is shorter than ``tolerance``. A column of zeros is never
    chosen.

    Args:
        activations: [patterns, units].
        tolerance: in (0, 1].

    Raises:
        ValueError: ``activations`` are not a matrix of finite real numbers, or ``tolerance`` is out of range.

    >>> x = torch.eye(4)
    >>> independent_columns(torch.stack([x[0], x[1], x[0] + x[1], 0 * x[0]], 1), 0.05)
    [0, 1]
    """
    if activations.dim() != 2 or activations.is_complex() or not activations.isfinite().all():
        raise ValueError(f"activations must be finite numbers [patterns, units], got shape {tuple(activations.shape)}")
    _check_tolerance(tolerance)
    activations = activations.detach().double()
    norms = activations.norm(dim=0)
    scaled = torch.where(norms > 0, activations / norms, 0)
    r, order = scipy.linalg.qr(scaled.cpu().numpy(), mode="r", pivoting=True, check_finite=False)
    chosen = sum(abs(r[i, i]) >= tolerance for i in range(min(r.shape)))
    return sorted(int(i) for i in order[:chosen])


def _check_tolerance(tolerance: float) -> None:
    if not 0 < tolerance <= 1:
        raise ValueError(f"tolerance must be in (0, 1], got {tolerance}")


class GramSchmidtTraining(Method):
    """Every ``every`` steps choose independent inputs of each linear layer; only weights that leave them are trained.

    The other columns, and the optimizer's state of them, keep their bits until the next choice: no gradient, momentum or
    weight decay reaches them. An input that was not chosen ``prune_after`` times in a row is removed: its column becomes
    zero for good, and its least-squares share in the chosen inputs is added to theirs.

    The paper says what is frozen and why; the rule of choice, the tolerance and the removal are ours.

    Args:
        model: its linear weights become sparse layers at once; masks it holds are where it starts.
        optimizer: of its parameters.
        batch: inputs of the model, at most 4,096: activations are taken of them, in eval mode.
        every: steps between choices; an epoch's. The first choice is at once.
        tolerance: see :func:`independent_columns`.
        prune_after: choices; None removes nothing.
        exclude: layers that are trained whole; see ``prunable``.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Source: Wan et al. 2009, "Enhancing the generalization ability of neural networks through controlling the hidden
    layers", Applied Soft Computing 9.
    """

    @typed
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: Tensor,
        *,
        every: int,
        tolerance: float = 0.05,
        prune_after: int | None = None,
        exclude: Exclude | Collection[Exclude] = (),
    ) -> None:
        _check_tolerance(tolerance)
        if not 0 < len(batch) <= 4096:
            raise ValueError(f"batch must have 1 to 4096 inputs, got {len(batch)}")
        self.every, self.tolerance = check_count("every", every), tolerance
        self.prune_after = prune_after if prune_after is None else check_count("prune_after", prune_after)
        self.batch = batch
        held = held_masks(model)
        masks = {n: held.get(n, mask) for n, mask in all_kept(model, exclude).items() if len(mask.shape) == 2}
        self.names = list(masks)
        self.model = model
        for inputs in self._inputs().values():  # what cannot be chosen from is an error while the model is as it was
            independent_columns(inputs, tolerance)
        sparsify(model, masks, optimizer=optimizer)
        super().__init__(model, optimizer)
        self.frozen: dict[str, Tensor] = {}  # name -> bool [inputs]
        self.missed = {name: torch.zeros(mask.shape[1], dtype=torch.int64) for name, mask in masks.items()}
        self._before: list[tuple[Tensor, Tensor, Tensor]] = []
        self._choose()
        self._handles = [
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._restore),
        ]

    def _advance(self) -> bool:
        return self.steps % self.every == 0 and self._choose()

    @torch.no_grad()
    def _choose(self) -> bool:
        """Freeze what is not independent, remove what has not been for long; True if masks changed."""
        masks, inputs, kept = self.masks, self._inputs(), {}
        for name in self.names:
            chosen = torch.tensor(independent_columns(inputs[name], self.tolerance), dtype=torch.int64)
            frozen = torch.ones(inputs[name].shape[1], dtype=torch.bool)
            frozen[chosen] = False
            self.frozen[name] = frozen
            self.missed[name] = torch.where(frozen, self.missed[name] + 1, 0)
            if self.prune_after is None:
                continue
            live = masks[name].to_bool()
            doomed = (self.missed[name] >= self.prune_after).to(live.device) & live.any(0)
            if doomed.any() and len(chosen):
                layer, z = self._layer(name), inputs[name]
                shares = torch.linalg.lstsq(z[:, chosen].cpu(), z[:, doomed].cpu()).solution.to(z.device)
                weight = layer.weight.clone()
                added = weight[:, doomed].double() @ shares.T
                weight[:, chosen] += torch.where(live[:, chosen], added, 0).to(weight.dtype)
                write_weight(layer, weight)
                kept[name] = masks[name] & BitMask.from_bool(~doomed[None].expand_as(live).contiguous())
        self._hold(kept)
        return bool(kept)

    def _inputs(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def note(name: str, args: tuple[Tensor, ...]) -> None:
            found[name] = args[0].flatten(0, -2)

        hooks = [
            self._layer(name).register_forward_pre_hook(lambda _, args, name=name: note(name, args))
            for name in self.names
        ]
        was_training = self.model.training
        try:
            self.model.eval()
            self.model(self.batch)
        finally:
            self.model.train(was_training)
            for hook in hooks:
                hook.remove()
        # Under DDP batch norm's averages differ between two steps, and with them the activations.
        return {name: averaged_over_ranks(tensor.double()) for name, tensor in found.items()}

    def _layer(self, name: str) -> SparseLayer:
        return self.model.get_submodule(name.removesuffix("weight").removesuffix("."))

    def _frozen_slots(self, name: str) -> Tensor:
        """bool, where the Parameter keeps its bits."""
        layer = self._layer(name)
        return as_stored(layer, self.frozen[name].to(layer.parameter.device).expand(layer.dense_shape))

    def _remember(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._before = []
        for name in self.names:
            weight, frozen = self._layer(name).parameter, self._frozen_slots(name)
            for tensor in (weight.detach(), *_states(optimizer, weight)):
                self._before.append((tensor, frozen, tensor.clone()))

    def _restore(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for tensor, frozen, before in self._before:
            tensor.copy_(torch.where(frozen, before, tensor))
        remembered = {id(tensor) for tensor, _, _ in self._before}
        for name in self.names:  # what this step made starts from zero
            for tensor in _states(optimizer, self._layer(name).parameter):
                if id(tensor) not in remembered:
                    tensor.masked_fill_(self._frozen_slots(name), 0)
        self._before = []

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "frozen": dict(self.frozen), "missed": dict(self.missed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.frozen = {name: tensor.cpu() for name, tensor in state["frozen"].items()}
        self.missed = {name: tensor.cpu() for name, tensor in state["missed"].items()}


def _states(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> list[Tensor]:
    return [s for s in optimizer.state.get(weight, {}).values() if isinstance(s, Tensor) and s.shape == weight.shape]
