"""The Hugging Face callback: masks hold and move as in a plain loop, and a checkpoint resumes exactly."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from training.small import Mixing, hooks_on

import sparseprune as sp
from sparseprune.training import DSR, GradualPruning, LotteryTickets, RigL

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")  # its own

STEPS = 5  # of an epoch
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
METHODS = {
    "RigL": lambda m, o: RigL(m, o, every=2, until=14),
    "DSR": lambda m, o: DSR(m, o, every=2, until=14, fraction=0.2, threshold=0.05),
    "AGP": lambda m, o: GradualPruning(m, o, density=0.1, begin=2, end=12, every=2),
    "tickets": lambda m, o: LotteryTickets(m, o, steps_per_round=5, rounds=3),
}


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, x):
        output = self.net(x)
        return {"loss": (output - x[:, :3].sin()).square().mean(), "logits": output}


class Seen(transformers.TrainerCallback):
    def __init__(self):
        self.digests = []

    def on_step_end(self, args, state, control, model=None, **rest):
        held = sp.held_masks(model)
        assert all(not model.get_parameter(n)[~m.to_bool()].any() for n, m in held.items())
        self.digests.append(held.digest())


def masks_for(name):
    if name in ("AGP", "tickets"):
        return None
    return sp.prune(Net(), sp.Random(torch.Generator().manual_seed(1)), density=0.3, pattern=sp.LayerWise(sp.erk))


def optimizer_of(model, name):
    if name == "hold":  # without hooks on the optimizer itself its steps would reach pruned weights
        return Mixing(model.parameters())
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)


def fit(name, folder, seed=0, resume=None, **options):
    from sparseprune.training.huggingface import TrainerMasks

    model, callback, seen = Net(seed), TrainerMasks(masks_for(name), METHODS.get(name)), Seen()
    optimizer = optimizer_of(model, name)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=3, per_device_train_batch_size=8, save_strategy="steps", save_steps=7,
        report_to=[], use_cpu=True, disable_tqdm=True, max_grad_norm=0.0, logging_strategy="no", **options,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=[{"x": x} for x in X], callbacks=[callback, seen],
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )  # fmt: skip
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(X)
    trainer.train(resume_from_checkpoint=resume)
    assert not hooks_on(model, optimizer)
    return model, callback, seen.digests


def by_hand(name):
    model = Net()
    if (masks := masks_for(name)) is not None:
        sp.sparsify(model, masks)
    optimizer = optimizer_of(model, name)
    method = METHODS[name](model, optimizer)
    for step in range(3 * STEPS):
        optimizer.zero_grad()
        model(X[step % STEPS * 8 :][:8])["loss"].backward()
        optimizer.step()
        method.step()
    return model


def assert_same(one, other):
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_plain_loop_and_resumes_exactly(name, tmp_path):
    whole, _, digests = fit(name, tmp_path / "whole")
    assert_same(whole, by_hand(name))
    assert len(set(digests)) > 2 and len(digests) == 15
    later = tmp_path / "later"
    shutil.copytree(tmp_path / "whole" / "checkpoint-7", later / "checkpoint-7")  # in the middle of an epoch
    resumed, callback, rest = fit(name, later, seed=9, resume=True)
    assert_same(whole, resumed)
    assert callback.training.method.steps == 15 and rest == digests[7:]
    (later / "checkpoint-7" / "sparseprune.pt").unlink()
    with pytest.raises(ValueError, match=r"output_dir must hold the checkpoint to resume from with its sparseprune.pt"):
        fit(name, later, resume=str(later / "checkpoint-7"))


def test_accumulated_batches_are_one_step(tmp_path):
    _, callback, digests = fit("RigL", tmp_path, gradient_accumulation_steps=2)
    assert callback.training.method.steps == len(digests) == 9


def test_masks_hold_without_a_method(tmp_path):
    _, _, digests = fit("hold", tmp_path)
    assert set(digests) == {masks_for("hold").digest()}
