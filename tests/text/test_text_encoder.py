import pytest
import torch
from torch import nn

from src.text.gpt import GPT, Block
from src.text.text_encoder import TextEncoder, TextEnsemble

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_texts_with_padding_between_them_do_not_see_each_other(dtype: torch.dtype) -> None:
    net = stirred(num_convolutions=2, pooled=False)
    tokens = torch.randint(50, (3, 7))
    gap = torch.zeros(3, 2, dtype=torch.int64)
    mask = torch.ones(3, 7, dtype=torch.bool)
    other = torch.randint(50, (3, 5))
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        alone = net(tokens, mask)
        joined = net(torch.cat([other, gap, tokens], 1), torch.cat([mask[:, :5], gap > 0, mask], 1))
    assert alone.shape == (3, 7, 3)
    assert torch.allclose(joined[:, 7:].float(), alone.float(), atol=1e-4 if dtype == torch.float32 else 0.1)
    changed = tokens.roll(1, dims=1)
    assert not torch.allclose(net(changed, mask), net(tokens, mask), atol=0.2)


def test_convolutions_see_the_order_of_neighbours() -> None:
    tokens, mask = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.ones(1, 6, dtype=torch.bool)
    net = stirred(num_convolutions=1, num_layers=1)
    for block in net.blocks:  # only the convolution is left
        for name in ("attention", "feed_forward"):
            nn.init.zeros_(getattr(block, name).proj.weight)
    assert not torch.allclose(net(tokens, mask), net(tokens.flip(1), mask), atol=1e-4)
    assert not any(isinstance(module, nn.Conv1d) for module in stirred().modules())


def test_an_ensemble_for_numbers_returns_their_mean() -> None:
    torch.manual_seed(0)
    net = TextEnsemble(num_members=3, **{**TINY, "num_classes": 1}).eval()  # type: ignore[arg-type]
    tokens, mask = torch.randint(50, (4, 9)), torch.ones(4, 9, dtype=torch.bool)
    members = torch.stack([member(tokens, mask) for member in net.members])
    assert torch.allclose(net(tokens, mask), members.mean(dim=0))
    assert members.std() > 0


def test_an_ensemble_averages_the_probabilities_of_classes_or_else_their_logits() -> None:
    torch.manual_seed(0)
    net = TextEnsemble(num_members=3, **TINY, average="logits").eval()  # type: ignore[arg-type]
    for member in net.members:
        nn.init.normal_(member.head.weight)  # type: ignore[arg-type, union-attr]
    tokens, mask = torch.randint(50, (4, 9)), torch.ones(4, 9, dtype=torch.bool)
    members = torch.stack([member(tokens, mask) for member in net.members])
    mean = members.softmax(dim=-1).mean(dim=0)
    assert torch.allclose(net(tokens, mask), members.mean(dim=0))
    assert not torch.allclose(net(tokens, mask).softmax(dim=-1), mean, atol=1e-2)
    net.average = "probabilities"
    assert torch.allclose(net(tokens, mask).softmax(dim=-1), mean, atol=1e-6)


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
        ({"num_convolutions": -1}, "num_convolutions -1 is too small for TextEncoder"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextEncoder(**arguments)  # type: ignore[arg-type]
