import pytest
import torch
from torch import nn

from src.engine.system.errors import InputError
from src.engine.training.optim.groups import decay_groups
from tests.engine.training.optim.toys import token_net


def test_groups_hold_each_trained_parameter_once() -> None:
    net = token_net()
    net.embedding.requires_grad_(False)
    held = [id(p) for group in decay_groups(net) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_hidden_matrices_are_those_between_embedding_and_output_layer() -> None:
    net = token_net()
    hidden = {id(p) for group in decay_groups(net) if group["hidden"] for p in group["params"]}
    assert hidden == {id(net.blocks[0].weight), id(net.blocks[2].weight)}


def test_tied_weights_are_not_a_hidden_matrix() -> None:
    net = token_net(tie_weights=True)
    hidden = {id(p) for group in decay_groups(net) if group["hidden"] for p in group["params"]}
    assert id(net.head.weight) not in hidden
    assert len(hidden) == 2


def test_biases_and_norms_do_not_decay() -> None:
    net = token_net()
    optimizer = torch.optim.AdamW(decay_groups(net), weight_decay=0.1)
    decayed = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in net.parameters() if p.ndim == 1} == {p for p, decay in decayed.items() if not decay}
    assert set(decayed.values()) == {0.0, 0.1}


def test_the_output_layer_can_have_its_own_learning_rate() -> None:
    net = token_net()
    optimizer = torch.optim.AdamW(decay_groups(net, head_lr=0.5), lr=0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {p for p, lr in rates.items() if lr == 0.5} == {id(net.head.weight)}
    with pytest.raises(InputError, match="Linear has no attribute head; leave head_lr out"):
        decay_groups(nn.Linear(2, 2), head_lr=0.5)
