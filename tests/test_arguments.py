"""Wrong arguments: the error names the argument, and model, optimizer and random state are as before."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

import sparseprune as sp
from sparseprune import data, diagnostics, models, recipes, training
from sparseprune.arguments import typed


class Nothing:
    """Of no kind that a function takes."""


def functions():
    for module in (sp, training, diagnostics, data, models, recipes):
        for name, item in vars(module).items():
            function = item.__init__ if isinstance(item, type) else item
            if getattr(function, "__code__", None) is typed(lambda: None).__code__:
                yield f"{module.__name__}.{name}", item, inspect.signature(function)


TYPED = {name: (item, signature) for name, item, signature in functions()}


@pytest.mark.parametrize("name", TYPED)
def test_each_argument_of_a_wrong_kind_is_named(name):
    function, signature = TYPED[name]
    annotated = [p for p in signature.parameters.values() if p.annotation not in (p.empty, "Any")]
    for parameter in annotated:
        if parameter.kind is not parameter.VAR_KEYWORD:
            with pytest.raises(TypeError, match=f"^{parameter.name} must be .*, got Nothing$"):
                function(**{parameter.name: Nothing()})


def test_most_of_what_is_public_is_checked():
    assert len(TYPED) > 90 and {"sparseprune.prune", "sparseprune.sparsify", "sparseprune.training.RigL"} <= set(TYPED)


@typed
def every_kind(
    count: int = 0,
    share: float = 0.0,
    flag: bool = False,
    items: Sequence[Tensor] | None = None,
    pairs: Iterable[int] = (),
    values: Mapping[str, Tensor] | None = None,
    rule: Callable[[int], int] | None = None,
    unknown: NoSuchType = None,  # noqa: F821
) -> bool:
    return True


def test_kinds():
    taken = {"count": 3, "share": 2, "flag": True, "items": (), "pairs": {1}, "values": {}, "rule": abs, "unknown": 1}
    assert every_kind(**taken) and every_kind(items=None, pairs=iter([1])) and every_kind(1, 0.5)
    refused = {"count": (True, 1.0, None), "share": (True, "1", 1j), "flag": (1, None), "rule": (3,)}
    refused |= {"items": ("ab", torch.ones(2), {1}, iter([])), "pairs": ("ab", torch.ones(2), 1), "values": ([],)}
    for name, wrong in refused.items():
        for value in wrong:
            with pytest.raises(TypeError, match=f"^{name} must be "):
                every_kind(**{name: value})
    with pytest.raises(TypeError, match="count must be an integer, got str"):
        every_kind("3")


OPERANDS = {
    "x": lambda x, weight, keep: sp.masked_linear(None, weight, keep),
    "weight": lambda x, weight, keep: sp.masked_linear(x, None, keep),
    "bias": lambda x, weight, keep: sp.masked_linear(x, weight, keep, 1.0),
    "values": lambda x, weight, keep: sp.packed_linear(x, [1.0], sp.BitMask.from_bool(keep)),
    "stride": lambda x, weight, keep: sp.masked_conv2d(
        x[None, None], weight[None, None], keep[None, None], stride=None
    ),
}


@pytest.mark.parametrize("name", OPERANDS)
def test_operands_of_a_wrong_kind_are_named(name):
    with pytest.raises(TypeError, match=f"{name} must be "):
        OPERANDS[name](torch.ones(4, 4), torch.ones(4, 4), torch.ones(4, 4).bool())


def bits(model, optimizer):
    tensors = [*model.state_dict().values(), torch.get_rng_state()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    return tensors, [type(m) for m in model.modules()], hooks, len(optimizer._optimizer_step_post_hooks)


UNUSED = nn.Linear(3, 2)
OTHER = torch.optim.SGD(UNUSED.parameters(), 0.1)
REFUSED = {
    "scheduler": lambda m, o: training.LotteryTickets(m, o, object(), steps_per_round=2, rounds=2),
    "optimizer": lambda m, o: training.attach(OTHER, m),
    "batch": lambda m, o: training.GramSchmidtTraining(m, o, torch.ones(2, 5), every=1),
    "activations": lambda m, o: training.GramSchmidtTraining(m, o, torch.full((2, 4), torch.nan), every=1),
    "initial": lambda m, o: training.removed_values({}, {}, sp.Masks.ones({"0.weight": m[0].weight}), "zero"),
    "masks": lambda m, o: sp.sparsify(m, {1: torch.ones(3, 4).bool()}, optimizer=o),
    "following": lambda m, o: training.bridging_gradients(
        m, m[0], UNUSED, nn.functional.mse_loss, [(torch.ones(1, 4), torch.ones(1, 2))]
    ),
    "pattern": lambda m, o: sp.prune(m, sp.Magnitude(), density=0.5, pattern="2:4"),
    "seed": lambda m, o: training.BernoulliMasks(m, seed=-1),
    "start": lambda m, o: training.Piggyback(m, start=float("nan")),
    "criterion": lambda m, o: sp.prune(m, lambda model, params: {}, density=0.5, apply=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_has_changed_by_then(name):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = bits(model, optimizer)
    frozen = [p.requires_grad for p in model.parameters()]
    with pytest.raises((TypeError, ValueError, RuntimeError)) as error:
        REFUSED[name](model, optimizer)
    assert name in str(error.value) or name == "batch"  # that of a wrong shape is torch's own
    after = bits(model, optimizer)
    assert all(map(torch.equal, before[0], after[0])) and before[1:] == after[1:]
    assert frozen == [p.requires_grad for p in model.parameters()]
