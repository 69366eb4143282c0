from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from src.engine.system.errors import InputError
from src.engine.training.optim.groups import decay_groups
from src.engine.training.optim.muon import MuonWithAdamW
from tests.conftest import Run
from tests.engine.training.optim.toys import token_net


def step(net: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int = 3, start: int = 0) -> None:
    for number in range(start, start + steps):
        tokens = torch.randint(20, (4, 9), generator=torch.Generator().manual_seed(number))
        loss = nn.functional.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_it_equals_muon_and_adamw_run_separately() -> None:
    together, apart = token_net(), token_net()
    step(together, [MuonWithAdamW(decay_groups(together), lr=0.02, adamw_lr=0.01, weight_decay=0.1, momentum=0.9)])
    hidden = [p for name, p in apart.named_parameters() if name.startswith("blocks") and p.ndim == 2]
    outer = [apart.embedding.weight, apart.head.weight]
    vectors = [p for p in apart.parameters() if p.ndim == 1]
    groups = [{"params": outer}, {"params": vectors, "weight_decay": 0.0}]
    adamw = AdamW(groups, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    step(apart, [Muon(hidden, lr=0.02, weight_decay=0.1, momentum=0.9), adamw])
    assert all(torch.equal(a, b) for a, b in zip(together.parameters(), apart.parameters(), strict=True))
    for (name, old), new in zip(token_net().named_parameters(), together.parameters(), strict=True):
        assert not torch.equal(old, new), name


def test_training_continues_exactly_from_a_saved_state() -> None:
    whole, half, rest = token_net(), token_net(), token_net()
    step(whole, [MuonWithAdamW(decay_groups(whole))], 6)
    optimizer = MuonWithAdamW(decay_groups(half))
    step(half, [optimizer], 3)
    state = optimizer.state_dict()
    rest.load_state_dict(half.state_dict())
    resumed = MuonWithAdamW(decay_groups(rest), lr=0.5)
    resumed.load_state_dict(state)
    step(rest, [resumed], 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))


def test_a_schedule_changes_both_learning_rates() -> None:
    optimizer = MuonWithAdamW(decay_groups(token_net()), lr=0.02, adamw_lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01, 0.005}
    optimizer.step()  # without gradients
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
    calls = []

    def closure() -> float:
        assert torch.is_grad_enabled()
        calls.append(1)
        return 3.5

    assert MuonWithAdamW(decay_groups(token_net())).step(closure) == 3.5
    assert len(calls) == 1


def test_plain_parameters_are_split_by_shape() -> None:
    optimizer = MuonWithAdamW([nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(3))])
    assert [group["hidden"] for group in optimizer.param_groups] == [True, False]
    assert len(MuonWithAdamW([nn.Parameter(torch.zeros(3))]).param_groups) == 1


def test_parameters_may_be_added_later() -> None:
    together, apart = token_net(), token_net()
    parts = [[*net.blocks[0].parameters()] for net in (together, apart)]
    late = {id(parameter) for parameter in parts[0]}
    first = [parameter for parameter in together.parameters() if id(parameter) not in late]
    optimizer = MuonWithAdamW(first)
    optimizer.add_param_group({"params": parts[0], "lr": 0.5})
    assert [(group["hidden"], group["lr"]) for group in optimizer.param_groups[-2:]] == [(True, 0.5), (False, 0.5)]
    step(together, [optimizer])
    assert not any(torch.equal(old, new) for old, new in zip(parts[1], parts[0], strict=True))
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": parts[0][0]})


def test_groups_may_be_iterators_and_empty_ones_are_left_out() -> None:
    net = token_net()
    optimizer = MuonWithAdamW([{"params": iter(net.parameters())}, {"params": []}])
    assert [len(group["params"]) for group in optimizer.param_groups] == [len([*net.parameters()])]
    with pytest.raises(ValueError, match="empty parameter list"):
        MuonWithAdamW([{"params": []}])


def test_hidden_parameters_must_be_matrices() -> None:
    with pytest.raises(ValueError, match=r"Muon takes matrices only, not a parameter of size \(2, 3, 4\)"):
        MuonWithAdamW([{"params": [nn.Parameter(torch.zeros(2, 3, 4))], "hidden": True}])


@pytest.mark.parametrize("arguments", [{"lr": -1.0}, {"adamw_lr": -1.0}, {"momentum": -1.0}, {"betas": (2.0, 0.9)}])
def test_a_bad_argument_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"-1|2"):
        MuonWithAdamW(decay_groups(token_net()), **arguments)  # type: ignore[arg-type]


def test_a_bad_argument_on_the_command_line_is_one_line(train: Callable[..., Run]) -> None:
    with pytest.raises(InputError, match="MuonWithAdamW does not take its arguments: Invalid"):
        train("fit", "--max_epochs=1", "--optimizer=MuonWithAdamW", "--optimizer.adamw_lr=-1")


@pytest.mark.slow
def test_clipping_accumulation_and_resume_work_as_with_any_optimizer(train: Callable[..., Run]) -> None:
    words = ["fit", "--model=tests.engine.training.optim.toys.GroupedClassifier", "--model.net=tests.toy.ToyMLP"]
    words += ["--optimizer=MuonWithAdamW", "--optimizer.lr=0.01", "--lr_scheduler=null", "--data.size=224"]
    words += ["--trainer.gradient_clip_val=0.1", "--trainer.accumulate_grad_batches=2", "--precision=32-true"]
    half = train(*words, "--max_epochs=1")
    (optimizer,) = half.cli.trainer.optimizers
    assert isinstance(optimizer, MuonWithAdamW)
    assert [group["hidden"] for group in optimizer.param_groups].count(True) == 1
    assert half.cli.trainer.global_step == 4  # from 7 batches: the last one steps alone
    last = str(half.folder / "checkpoints" / "last.ckpt")
    resumed = train(*words, "--max_epochs=2", "--ckpt_path", last)
    whole = train(*words, "--max_epochs=2")
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    clipped = [word.replace("clip_val=0.1", "clip_val=1e-9") for word in words]
    other = train(*clipped, "--max_epochs=2")
    assert not all(torch.equal(value, other.weights[name]) for name, value in whole.weights.items())
    with pytest.raises(InputError, match=r"--optimizer.adamw_lr cannot be changed in a continued run"):
        train(*words, "--max_epochs=2", "--ckpt_path", last, "--optimizer.adamw_lr=1.0")
