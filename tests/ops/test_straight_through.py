"""The mask forward, the identity backward."""

from __future__ import annotations

import torch

from sparseprune import straight_through_topk, topk_mask


def test_forward_is_the_mask_and_backward_the_identity():
    scores = [torch.randn(5, 7, requires_grad=True), torch.randn(11, dtype=torch.float64, requires_grad=True)]
    scores[0].data[0, 0] = torch.inf
    weights = [torch.randn_like(s) for s in scores]
    masks = straight_through_topk(scores, 20)
    for mask, kept, score in zip(masks, topk_mask(scores, 20).masks, scores, strict=True):
        assert mask.dtype == score.dtype and torch.equal(mask, kept.to_bool().to(score.dtype))
    grads = torch.autograd.grad(sum((m * w).sum() for m, w in zip(masks, weights, strict=True)), scores)
    assert all(torch.equal(g, w) for g, w in zip(grads, weights, strict=True))


def test_absolute_scores_pass_their_sign():
    score = torch.tensor([-3.0, 1.0, 2.0, 0.0], requires_grad=True)
    [mask] = straight_through_topk([score], 2, abs=True)
    assert mask.tolist() == [1, 0, 1, 0]
    mask.backward(torch.tensor([10.0, 20.0, 30.0, 40.0]))
    assert score.grad.tolist() == [-10, 20, 30, 0]


def test_only_some_scores_need_gradients():
    scores = [torch.randn(4), torch.randn(4, requires_grad=True)]
    masks = straight_through_topk(scores, 4)
    sum(m.sum() for m in masks).backward()
    assert scores[1].grad.tolist() == [1, 1, 1, 1]
    assert straight_through_topk([], 0) == []
