from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from src.engine.system.errors import InputError
from src.engine.training.optim.groups import decay_groups
from src.engine.training.optim.muon import MuonWithAdamW
from tests.conftest import Run


def net() -> Any:
    from src.text.gpt import GPT

    torch.manual_seed(0)
    return GPT(20, 8, d_model=8, num_heads=2, num_layers=1)


def train(net: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int = 3, start: int = 0) -> float:
    loss = torch.zeros(())
    for step in range(start, start + steps):
        tokens = torch.randint(20, (4, 9), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return loss.item()


def test_it_does_what_muon_and_adamw_do_apart() -> None:
    together, apart = net(), net()
    train(together, [MuonWithAdamW(decay_groups(together), lr=0.02, adamw_lr=0.01, weight_decay=0.1, momentum=0.9)])
    hidden = [p for name, p in apart.named_parameters() if name.startswith("blocks") and p.ndim == 2]
    outer = [apart.embedding.weight, apart.head.weight]
    vectors = [p for p in apart.parameters() if p.ndim == 1]
    adamw = AdamW(
        [{"params": outer}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        fused=True,
    )
    train(apart, [Muon(hidden, lr=0.02, weight_decay=0.1, momentum=0.9), adamw])
    assert all(torch.equal(a, b) for a, b in zip(together.parameters(), apart.parameters(), strict=True))
    assert not torch.equal(together.embedding.weight, net().embedding.weight)


def test_a_saved_state_goes_on_as_if_nothing_had_been() -> None:
    whole, half, rest = net(), net(), net()
    train(whole, [MuonWithAdamW(decay_groups(whole))], 6)
    optimizer = MuonWithAdamW(decay_groups(half))
    train(half, [optimizer], 3)
    state = optimizer.state_dict()
    rest.load_state_dict(half.state_dict())
    resumed = MuonWithAdamW(decay_groups(rest), lr=0.5)
    resumed.load_state_dict(state)
    train(rest, [resumed], 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))


def test_a_schedule_moves_both_rates() -> None:
    optimizer = MuonWithAdamW(decay_groups(net()), lr=0.02, adamw_lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01, 0.005}
    schedule.step()
    before = [p.clone() for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        group["weight_decay"] = 0.0
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    after = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    module = net()
    calls = []

    def closure() -> float:
        assert torch.is_grad_enabled()
        calls.append(1)
        return 3.5

    assert MuonWithAdamW(decay_groups(module)).step(closure) == 3.5
    assert len(calls) == 1


def test_plain_parameters_are_split_by_shape() -> None:
    optimizer = MuonWithAdamW([nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(3))])
    assert [group["hidden"] for group in optimizer.param_groups] == [True, False]
    assert len(MuonWithAdamW([nn.Parameter(torch.zeros(3))]).param_groups) == 1


@pytest.mark.parametrize("arguments", [{"lr": -1.0}, {"adamw_lr": -1.0}, {"momentum": -1.0}, {"betas": (2.0, 0.9)}])
def test_a_bad_argument_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"-1|2"):
        MuonWithAdamW(decay_groups(net()), **arguments)  # type: ignore[arg-type]


def test_groups_hold_each_trained_parameter_once() -> None:
    module = net()
    module.embedding.requires_grad_(False)
    held = [id(p) for group in decay_groups(module) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters() if p.requires_grad)


def test_tied_weights_are_no_hidden_matrix() -> None:
    from src.text.gpt import GPT

    module = GPT(20, 8, d_model=8, num_heads=2, num_layers=1, tie_weights=True)
    hidden = {id(p) for group in decay_groups(module) if group["hidden"] for p in group["params"]}
    assert id(module.head.weight) not in hidden
    assert len(hidden) == 4


def test_clipping_accumulation_and_resume_work_as_with_any_optimizer(train: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("To be, or not to be. " * 60)
    words = ["fit", "--config=configs/text/shakespeare_gpt_fast.yaml", f"--data.path={tmp_path / 'own.txt'}"]
    words += [f"--data.cache_dir={tmp_path / 'cache'}", "--data.block_size=16", "--model.net.d_model=16"]
    words += ["--trainer.max_steps=-1", "--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0"]
    words += ["--lr_scheduler=null", "--trainer.gradient_clip_val=0.1", "--trainer.accumulate_grad_batches=2"]
    words += ["--trainer.callbacks=null", "--precision=32-true"]
    half = train(*words, "--max_epochs=1", sample=False)
    assert isinstance(half.cli.trainer.optimizers[0], MuonWithAdamW)
    assert half.cli.trainer.global_step == 4  # of 7 batches, the last one alone
    last = str(half.folder / "checkpoints" / "last.ckpt")
    resumed = train(*words, "--max_epochs=2", "--ckpt_path", last, sample=False)
    whole = train(*words, "--max_epochs=2", sample=False)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    clipped = [word.replace("clip_val=0.1", "clip_val=1e-9") for word in words]
    other = train(*clipped, "--max_epochs=2", sample=False)
    assert not all(torch.equal(value, other.weights[name]) for name, value in whole.weights.items())
    with pytest.raises(InputError, match=r"--optimizer.adamw_lr cannot be changed in a run that goes on"):
        train(*words, "--max_epochs=2", "--ckpt_path", last, "--optimizer.adamw_lr=1.0", sample=False)
