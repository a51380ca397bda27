from __future__ import annotations

import math

import pytest
import torch
from criteria.networks import best, clear_cut, conv_chain, mlp, published_synflow, residual_net, weights
from torch import nn

import sparseprune as sp
from sparseprune.criteria import SynFlow
from sparseprune.ops.topk_mask import topk_mask

IMAGE = torch.ones(1, 3, 8, 8)


def toy():
    model = mlp(2, 3, 2)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1, -2], [3, 0.5], [-1, 1]]))
        model[2].weight.copy_(torch.tensor([[2.0, -1, 0], [1, 1, -4]]))
    return model


def test_toy():
    step = SynFlow(torch.ones(1, 2), scale=False).plan(toy(), weights(toy()))
    scores = step()
    assert scores["0.weight"].tolist() == [[3, 6], [6, 1], [4, 4]]
    assert scores["2.weight"].tolist() == [[6, 3.5, 0], [3, 3.5, 8]]
    assert 2**step.log2_flow == pytest.approx(24, rel=1e-12)


@pytest.mark.parametrize("make", [conv_chain, lambda: mlp(192, 30, 20, 10)])
def test_every_layer_of_a_chain_carries_the_whole_flow(make):
    model = make()
    example = IMAGE if isinstance(model[0], nn.Conv2d) else torch.ones(1, 192)
    step = SynFlow(example, scale=False).plan(model, weights(model))
    sums = [score.double().sum().item() for score in step().values()]
    assert sums == pytest.approx([2**step.log2_flow] * len(sums), rel=1e-5)


def test_a_score_is_what_the_flow_loses_with_the_weight():
    model = residual_net().double()
    step = SynFlow(IMAGE, scale=False).plan(model, weights(model))
    scores, flow = step(), 2**step.log2_flow
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights(model).items():
        for index in torch.randint(weight.numel(), (3,), generator=generator).tolist():
            keep = torch.ones_like(weight, dtype=torch.bool)
            keep.view(-1)[index] = False
            step(sp.Masks({name: keep}))
            score = scores[name].flatten()[index].item()
            assert flow - 2**step.log2_flow == pytest.approx(score, rel=1e-6, abs=1e-9 * flow)


def test_equals_the_published_algorithm_in_float64():
    """On a conv net with batch norm at its defaults (mean 0, shift 0) and no biases; over seven masked steps."""
    model = nn.Sequential(*residual_net(3)[:-1], nn.Linear(8, 4, bias=False)).double()
    step = SynFlow(IMAGE, scale=False).plan(model, weights(model))
    masks, kept = None, {}
    for density in (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05):
        flow, expected = published_synflow(model, IMAGE, kept)
        scores = step(masks)
        assert 2**step.log2_flow == pytest.approx(flow, rel=1e-12)
        for name, score in scores.items():
            torch.testing.assert_close(score, expected[name], rtol=1e-12, atol=0)
        chosen = best(scores, density)
        assert all(map(torch.equal, chosen, best(expected, density)))
        kept = dict(zip(scores, chosen, strict=True))
        masks = sp.Masks(kept)


def test_a_hundred_steps_keep_what_the_published_loop_keeps():
    """LeNet-5 in float64, to the bit: the same scores, and as many weights kept at every step."""
    model, example = sp.models.lenet5().double(), torch.ones(1, 1, 28, 28)
    kept = None
    for step in range(1, 101):
        _, scores = published_synflow(model, example, kept)
        flat = torch.cat([score.flatten() for score in scores.values()])
        k = round(0.01 ** (step / 100) * len(flat))
        threshold = flat.kthvalue(len(flat) - k).values
        kept = {name: score > threshold for name, score in scores.items()}
    masks = sp.prune(model, SynFlow(example), density=0.01, steps=100)
    assert all(torch.equal(masks[name].to_bool(), mask) for name, mask in kept.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [residual_net, conv_chain])
def test_rescaled_scores_are_exactly_a_power_of_two_times_the_plain_ones(make, dtype):
    model = make()
    plain, scaled = (SynFlow(IMAGE, dtype, scale).plan(model, weights(model)) for scale in (False, True))
    expected, actual = plain(), scaled()
    exponents = {math.frexp((expected[n].max() / actual[n].max()).item()) for n in actual}
    [(mantissa, exponent)] = exponents
    assert mantissa == 0.5 and exponent != 1
    for name in actual:
        assert torch.equal(torch.ldexp(actual[name], torch.tensor(exponent - 1)), expected[name])
    assert scaled.log2_flow == pytest.approx(plain.log2_flow, abs=1e-12)


def test_deep_network_overflows_unscaled_and_is_exact_scaled():
    model = mlp(64, *[256] * 50, 10)
    example = torch.ones(1, 64)
    with pytest.raises(ValueError, match=r"dtype must hold the flow R .*dtype=torch\.float64"):
        SynFlow(example, scale=False)(model, weights(model))
    step = SynFlow(example).plan(model, weights(model))
    scores = step()
    assert step.log2_flow > 128
    exact = list(SynFlow(example, torch.float64, scale=False)(model, weights(model)).values())
    for density in (0.5, 0.01):
        k = clear_cut(exact, density)
        assert topk_mask(list(scores.values()), k).masks == topk_mask(exact, k).masks


def test_mode_dropout_biases_shifts_and_activations_do_not_matter():
    model = residual_net()
    expected = SynFlow(IMAGE)(model, weights(model))
    model.train()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "bias" in name:
                p.normal_()
        for name, b in model.named_buffers():
            if "running_mean" in name:
                b.normal_()
    for activation in (nn.GELU(), nn.Tanh(), nn.Sigmoid(), nn.SiLU(inplace=True), nn.LeakyReLU(0.1, True)):
        model[2] = activation
        scores = SynFlow(IMAGE)(model, weights(model))
        assert all(torch.equal(scores[name], expected[name]) for name in expected)


def test_batch_norm_is_its_scale():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, eps=0.0), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2], [3, 4]]))
        model[1].weight.copy_(torch.tensor([-2.0, 5]))
        model[1].running_var.copy_(torch.tensor([16.0, 25]))
        model[2].weight.copy_(torch.tensor([[8.0, 1]]))
    scores = SynFlow(torch.ones(1, 2), scale=False)(model, weights(model))
    assert scores["0.weight"].tolist() == [[4, 8], [3, 4]]
    assert scores["2.weight"].tolist() == [[12, 7]]
    model[1] = nn.BatchNorm1d(2, eps=0.0, affine=False, track_running_stats=False)
    assert SynFlow(torch.ones(1, 2), scale=False)(model, weights(model))["2.weight"].tolist() == [[24, 7]]


@pytest.mark.parametrize("norm", [nn.LayerNorm(3), nn.RMSNorm(3), nn.GroupNorm(1, 3), nn.BatchNorm1d(3, eps=0)])
def test_other_norms_scale_by_gamma(norm):
    model = toy()
    expected = SynFlow(torch.ones(1, 2), scale=False)(model, weights(model))
    model.insert(1, norm)
    with torch.no_grad():
        norm.weight.fill_(-2.0)
    scores = SynFlow(torch.ones(1, 2), scale=False)(model, weights(model))
    assert torch.equal(scores["3.weight"], 2 * expected["2.weight"])


class Function(nn.Module):
    def __init__(self, function, width=2):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(-torch.ones(1, width))

    def forward(self, x):
        return self.function(x, self.weight)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x + w,
        lambda x, w: w - x,
        lambda x, w: 1 - (-x),
        lambda x, w: x.sub_(3.0),
        lambda x, w: x.clone().add_(w, alpha=-2),
        lambda x, w: x * w,
        lambda x, w: x / w,
        lambda x, w: x.clone().mul_(w),
        lambda x, w: x @ -torch.eye(2),
        lambda x, w: torch.addmm(w[0], x, -torch.eye(2)),
        lambda x, w: torch.einsum("ni,ij->nj", x, -torch.eye(2)),
        lambda x, w: torch.cat([w, x])[1:],
        lambda x, w: x * torch.sigmoid(x),
        lambda x, w: torch.nn.functional.glu(torch.cat([x, x], 1)),
        lambda x, w: torch.nn.functional.log_softmax(x, 1),
        lambda x, w: torch.softmax(x, -1),
        lambda x, w: (x - 5 * x) / 6,
        lambda x, w: torch.add(x, x, alpha=-3) / 4,
        lambda x, w: torch.nn.functional.linear(x, -torch.eye(2), w[0]),
    ],
    ids=range(19),
)
def test_functions_that_must_not_change_a_flow(function):
    """Each is the identity once it is linear with non-negative coefficients; w is -1."""
    expected = SynFlow(torch.ones(1, 2), scale=False)(toy(), weights(toy()))
    model = nn.Sequential(Function(function), *toy())
    params = {"1.weight": model[1].weight, "3.weight": model[3].weight}
    scores = SynFlow(torch.ones(1, 2), scale=False)(model, params)
    torch.testing.assert_close(scores["1.weight"], expected["0.weight"])
    torch.testing.assert_close(scores["3.weight"], expected["2.weight"])


class Attention(nn.Module):
    """A patch, a class token, position embedding, one attention block, a gated convolution-free head."""

    def __init__(self, kind):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.kind = kind
        if kind == "module":
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        else:
            self.qkv, self.out, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        if self.kind == "module":
            return self.head(self.block(x)[:, 0])
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        if self.kind == "fused":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v
        return self.head((x + self.out(mixed))[:, 0])


@pytest.mark.parametrize("kind", ["module", "fused", "manual"])
def test_attention_passes_flow_through_values_and_none_through_queries(kind):
    model = Attention(kind)
    step = SynFlow(IMAGE).plan(model, weights(model))
    scores = step()
    name = "block.self_attn.in_proj_weight" if kind == "module" else "qkv.weight"
    query_key, value = scores[name][:16], scores[name][16:]
    assert query_key.count_nonzero() == 0 and (value > 0).all()
    # The class token starts without flow: all of it comes from the patches by way of the values.
    assert (scores["patch.weight"] > 0).all() and (scores["head.weight"] > 0).all()
    assert value.sum().item() == pytest.approx(scores["head.weight"].sum().item(), rel=1e-5)


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv(x)
        gate = self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head((x * gate).mean((2, 3)))


def test_gates_share_the_flow():
    model = SqueezeExcite()
    step = SynFlow(IMAGE, torch.float64, scale=False).plan(model, weights(model))
    sums = {name: score.sum().item() for name, score in step().items()}
    flow = 2**step.log2_flow
    assert sums["conv.weight"] == pytest.approx(flow) and sums["head.weight"] == pytest.approx(flow)
    assert sums["down.weight"] == pytest.approx(flow / 2) and sums["up.weight"] == pytest.approx(flow / 2)
    keep = torch.ones(8, 3, 3, 3, dtype=torch.bool)
    keep[0] = False  # a channel without flow: sqrt has no derivative there
    assert all(score.isfinite().all() for score in step(sp.Masks({"conv.weight": keep})).values())


def test_shared_weights_score_the_sum_over_their_uses():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2], [3, 4]]))
    model = nn.Sequential(layer, nn.ReLU(), layer)
    # R = 1'W^2 1 = 54 with column sums (4, 6) and row sums (3, 7): score = |w_ij| (rows_j + columns_i).
    scores = SynFlow(torch.ones(1, 2), scale=False)(model, weights(model))
    assert scores["0.weight"].tolist() == [[1 * (3 + 4), 2 * (7 + 4)], [3 * (3 + 6), 4 * (7 + 6)]]


def test_plan_under_masks_equals_a_call_on_pruned_weights():
    model = residual_net()
    masks = sp.Masks({name: torch.rand(w.shape) < 0.6 for name, w in weights(model).items()})
    planned = SynFlow(IMAGE).plan(model, weights(model))(masks)
    masks.apply_(model)
    direct = SynFlow(IMAGE)(model, weights(model))
    for name in direct:
        assert torch.equal(planned[name], direct[name])
        assert not planned[name][~masks[name].to_bool()].any()


@pytest.mark.parametrize("make", [conv_chain, lambda bias: nn.Sequential(residual_net(), nn.Linear(4, 3, bias))])
def test_sparse_layers_score_as_dense_ones_under_their_masks(make):
    model = make(bias=True)
    masks = sp.Masks({name: torch.rand(w.shape) < 0.6 for name, w in weights(model).items()})
    expected = SynFlow(IMAGE, torch.float64, scale=False).plan(model, weights(model))(masks)
    sp.sparsify(model, masks)
    scores = SynFlow(IMAGE, torch.float64, scale=False)(model, weights(model))
    for name in expected:
        torch.testing.assert_close(scores[name], expected[name])


def test_nothing_flows():
    model = residual_net()
    step = SynFlow(IMAGE).plan(model, weights(model))
    scores = step(sp.Masks({"0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.bool)}))
    assert step.log2_flow == -math.inf
    assert all(torch.equal(score, torch.zeros_like(score)) for score in scores.values())


def test_nan_in_a_pruned_slot_is_not_read():
    model = toy()
    keep = {"0.weight": torch.tensor([[False, True]] * 3)}
    expected = SynFlow(torch.ones(1, 2)).plan(model, weights(model))(sp.Masks(keep))
    with torch.no_grad():
        model[0].weight[:, 0] = math.nan
    scores = SynFlow(torch.ones(1, 2)).plan(model, weights(model))(sp.Masks(keep))
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_dtype_follows_the_weights_but_is_never_narrower_than_float32(dtype, expected):
    model = residual_net().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        scores = SynFlow(IMAGE)(model, weights(model))
    assert {score.dtype for score in scores.values()} == {expected}
    wide = residual_net().double()
    wide.load_state_dict(model.state_dict())
    exact = SynFlow(IMAGE)(wide, weights(wide))
    for name in exact:
        torch.testing.assert_close(scores[name].double(), exact[name], rtol=1e-4, atol=0)


def test_outputs_in_sequences_and_mappings_are_summed():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 3, bias=False)

        def forward(self, x):
            y = self.a(x)
            return {"logits": y, "more": [x.argmax(1), (2 * y,)], "constant": torch.ones(3)}

    model = Two()
    scores = SynFlow(torch.ones(1, 2), scale=False)(model, weights(model))
    torch.testing.assert_close(scores["a.weight"], 3 * model.a.weight.detach().abs())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, w: x.exp(), "got torch's exp"),
        (lambda x, w: x.pow(2), "got torch's pow"),
        (lambda x, w: x @ x.T, "got torch's matmul"),
        (lambda x, w: x.detach(), "must return a floating tensor that depends on its input"),
        (lambda x, w: x.argmax(1), "must return a floating tensor that depends on its input"),
    ],
)
def test_models_that_cannot_be_made_linear(function, message):
    model = nn.Sequential(nn.Linear(2, 3), Function(function, 3))
    with pytest.raises(ValueError, match=f"model must .*{message}|model {message}"):
        SynFlow(torch.ones(1, 2))(model, weights(model))


def test_model_that_changes_its_mind():
    class Fickle(nn.Linear):
        calls = 0

        def forward(self, x):
            Fickle.calls += 1
            return super().forward(x if Fickle.calls % 2 else x.cos())

    model = Fickle(2, 3)
    with pytest.raises(ValueError, match="model must call the same functions each time .* got another one: cos"):
        SynFlow(torch.ones(1, 2), torch.float64)(model, weights(model))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((3, 8, 8),), TypeError, "example_input must be a tensor, got tuple"),
        ((torch.ones(1, 4, dtype=torch.int64),), TypeError, r"example_input must be .* got torch\.int64"),
        ((torch.ones(4),), ValueError, r"example_input must have shape \(batch, \.\.\.\), got \(4,\)"),
        ((IMAGE, torch.float16), ValueError, r"dtype must be None, .* got torch\.float16"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SynFlow(*arguments)


def test_reaches_the_maximal_critical_compression():
    """One weight a layer is the limit; a hundred exponential steps get there, one step loses a layer at 10 %."""
    model = mlp(784, 300, 100, 100, 100, 10)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    criterion = SynFlow(torch.ones(1, 784))
    masks = sp.prune(model, criterion, keep=5, steps=100, schedule=sp.exponential)
    assert list(masks.counts().values()) == [1, 1, 1, 1, 1]
    assert masks.summary.connected
    assert min(sp.prune(model, criterion, density=0.1).counts().values()) == 0
