import pytest
import torch
from torch import nn

from src.text.gpt import GPT, Block
from src.text.text_encoder import TextEncoder

TINY = {"vocab_size": 50, "num_classes": 3, "d_model": 32, "num_heads": 2, "num_layers": 2}


def stirred(**arguments: object) -> TextEncoder:
    """An encoder whose every weight matters; a new one's blocks are the identity."""
    torch.manual_seed(0)
    net = TextEncoder(**{**TINY, **arguments}).eval()  # type: ignore[arg-type]
    for parameter in net.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    return net


def test_padding_never_changes_a_logit() -> None:
    net = stirred()
    tokens = torch.randint(50, (4, 9))
    alone = net(tokens, torch.ones(4, 9, dtype=torch.bool))
    for filler in (0, 7):
        padded = torch.cat([tokens, torch.full((4, 6), filler)], dim=1)
        mask = torch.arange(15).expand(4, 15) < 9
        assert torch.allclose(net(padded, mask), alone, atol=1e-5)


def test_every_token_counts_wherever_it_stands() -> None:
    net = stirred()
    tokens, mask = torch.randint(50, (1, 9)), torch.ones(1, 9, dtype=torch.bool)
    for position in range(9):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % 50
        assert not torch.allclose(net(changed, mask), net(tokens, mask), atol=1e-5)
    assert not torch.allclose(net(tokens.flip(1), mask), net(tokens, mask), atol=1e-4)


def test_tokens_are_hidden_in_training_only() -> None:
    net = stirred(dropout=0.0, token_dropout=0.5)
    tokens, mask = torch.randint(50, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    assert torch.equal(net(tokens, mask), net(tokens, mask))
    net.train()
    assert not torch.equal(net(tokens, mask), net(tokens, mask))


def test_it_is_made_of_the_decoders_blocks() -> None:
    assert all(type(block) is Block for net in (stirred(), GPT()) for block in net.blocks)


def test_it_overfits_one_batch() -> None:
    torch.manual_seed(0)
    net = TextEncoder(**TINY, dropout=0.0)  # type: ignore[arg-type]
    tokens, targets = torch.randint(50, (8, 9)), torch.arange(8) % 3
    mask = torch.arange(9).expand(8, 9) < torch.arange(2, 10)[:, None]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(tokens, mask), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes 0 is too small"),
        ({"token_dropout": 1.0}, "token_dropout 1.0 is out of range"),
        ({"num_layers": 0}, "num_layers 0 is too small for TextEncoder"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextEncoder(**arguments)  # type: ignore[arg-type]
