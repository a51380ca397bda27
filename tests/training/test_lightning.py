"""The Lightning callback: masks hold and move as in a plain loop, and a checkpoint resumes exactly."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from training.small import Mixing, hooks_on

import sparseprune as sp
from sparseprune.training import DSR, GradualPruning, LotteryTickets, RigL

L = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")  # its own

STEPS = 5  # of an epoch
DATA = [torch.randn(8, 6, generator=torch.Generator().manual_seed(i)) for i in range(STEPS)]
METHODS = {
    "RigL": lambda m, o: RigL(m, o, every=2, until=14),
    "DSR": lambda m, o: DSR(m, o, every=2, until=14, fraction=0.2, threshold=0.05),
    "AGP": lambda m, o: GradualPruning(m, o, density=0.1, begin=2, end=12, every=2),
    "tickets": lambda m, o: LotteryTickets(m, o, steps_per_round=5, rounds=3),
}


class Module(L.LightningModule):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))
        self.seen, self.mixing = [], False

    def training_step(self, x):
        return (self.net(x) - x[:, :3].sin()).square().mean()

    def configure_optimizers(self):
        if self.mixing:  # its steps reach pruned weights unless hooks on it hold them
            return Mixing(self.parameters())
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(DATA, batch_size=None)

    def on_train_batch_end(self, *args):  # after the callbacks
        assert all(not self.get_parameter(n)[~m.to_bool()].any() for n, m in sp.held_masks(self).items())
        self.seen.append(sp.held_masks(self).digest())


def masks_for(name):
    if name in ("AGP", "tickets"):
        return None
    return sp.prune(Module(), sp.Random(torch.Generator().manual_seed(1)), density=0.3, pattern=sp.LayerWise(sp.erk))


def fit(name, folder, epochs, seed=0, resume=None, **options):
    from sparseprune.training.lightning import LightningMasks

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Module(seed)
    module.mixing = name == "hold"
    callback = LightningMasks(masks_for(name), METHODS.get(name))
    saving = L.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback, saving], default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(module, ckpt_path=resume)
    assert not hooks_on(module, trainer.optimizers[0])
    return module, callback


def by_hand(name, epochs, accumulate=1):
    module = Module()
    if (masks := masks_for(name)) is not None:
        sp.sparsify(module, masks)
    optimizer = module.configure_optimizers()
    method = METHODS[name](module, optimizer)
    module.train()
    for _ in range(epochs):
        for number, x in enumerate(DATA):
            (module.training_step(x) / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == STEPS:
                optimizer.step()
                optimizer.zero_grad()
                method.step()
    return module


def assert_same(one, other):
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_plain_loop_and_resumes_exactly(name, tmp_path):
    whole, _ = fit(name, tmp_path, epochs=3)
    assert_same(whole, by_hand(name, 3))
    assert len(set(whole.seen)) > 2
    resumed, callback = fit(name, tmp_path / "later", epochs=3, seed=9, resume=tmp_path / "epoch=0.ckpt")
    assert_same(whole, resumed)
    assert callback.training.method.steps == 15 and resumed.seen == whole.seen[STEPS:]


def test_accumulated_batches_are_one_step(tmp_path):
    module, callback = fit("RigL", tmp_path, epochs=4, accumulate_grad_batches=2)
    assert callback.training.method.steps == 12
    assert_same(module, by_hand("RigL", 4, accumulate=2))


def test_masks_hold_without_a_method(tmp_path):
    module, _ = fit("hold", tmp_path, epochs=1)
    assert set(module.seen) == {masks_for("hold").digest()}


def test_a_run_that_fails_leaves_no_hooks(tmp_path):
    from sparseprune.training.lightning import LightningMasks

    class Failing(Module):
        def on_train_batch_end(self, *args):
            assert hooks_on(self, self.trainer.optimizers[0])
            raise RuntimeError("failed")

    module = Failing()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[LightningMasks(masks_for("RigL"), METHODS["RigL"])], default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="failed"):
        trainer.fit(module)
    assert not hooks_on(module, trainer.optimizers[0])


def test_one_optimizer_only(tmp_path):
    from sparseprune.training.lightning import LightningMasks

    class Two(Module):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[i].parameters(), 0.1) for i in (0, 3)]

    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[LightningMasks()], default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(ValueError, match="pl_module must have one optimizer, got 2"):
        trainer.fit(Two())
