import math

import pytest
import torch
from torch import nn

from src.text import gpt
from src.text.gpt import GPT, attend, rotary_angles

TINY = {"vocab_size": 50, "block_size": 16, "d_model": 32, "num_heads": 2, "num_layers": 2}


def stirred(**arguments: object) -> GPT:
    """A GPT whose every weight matters; a new one's blocks are the identity."""
    torch.manual_seed(0)
    net = GPT(**{**TINY, **arguments}).eval()  # type: ignore[arg-type]
    for parameter in net.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize(("vocab_size", "d_model"), [(256, 128), (256, 768), (4096, 256)])
def test_the_first_loss_is_that_of_a_guess(vocab_size: int, d_model: int, tie_weights: bool) -> None:
    torch.manual_seed(0)
    net = GPT(vocab_size, d_model=d_model, num_layers=1, tie_weights=tie_weights)
    tokens = torch.randint(vocab_size, (4, 129))
    loss = nn.functional.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(vocab_size), rel=0.01)


@pytest.mark.parametrize("kind", ["causal", "causal behind a cache", "padded", "everything"])
def test_attention_written_out_equals_torchs_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    total, length = 20, 20 if kind != "causal behind a cache" else 7
    q, k, v = (torch.randn(3, 2, size, 8) for size in (length, total, total))
    mask = torch.arange(total) < torch.tensor([20, 11, 1])[:, None]  # (B, S)
    arguments = (mask[:, None, None] if kind == "padded" else None, kind.startswith("causal"), 0.0)
    exact = attend(q, k, v, *arguments)
    bfloat16 = [part.bfloat16() for part in (q, k, v)]
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("used"))
    written_out = attend(*bfloat16, *arguments)
    assert written_out.dtype == torch.bfloat16
    assert torch.allclose(written_out.float(), exact, atol=0.03)
    monkeypatch.undo()
    monkeypatch.setattr(gpt, "MAX_MANUAL_ATTENTION", 19)
    assert torch.allclose(attend(*bfloat16, *arguments).float(), exact, atol=0.03)


def test_dropped_attention_weights_are_zero_and_the_rest_scaled() -> None:
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 400, 8), torch.zeros(1, 1, 400, 8), torch.ones(1, 1, 400, 8)
    for dtype in (torch.float32, torch.bfloat16):
        found = attend(q.to(dtype), k.to(dtype), v.to(dtype), None, False, 0.5)
        assert found.float().mean().item() == pytest.approx(1, abs=0.02)
        assert found.float().std() > 0.02


@pytest.mark.parametrize("conv_size", [0, 3])
def test_a_later_token_never_changes_an_earlier_logit(conv_size: int) -> None:
    net = stirred(conv_size=conv_size)
    tokens = torch.randint(50, (3, 16))
    before = net(tokens)
    for position in range(16):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 50
        after = net(changed)
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.allclose(after[:, position], before[:, position])


def test_the_order_of_earlier_tokens_matters() -> None:
    net = stirred()
    tokens = torch.tensor([[3, 7, 9, 1]])
    assert not torch.allclose(net(tokens)[0, -1], net(tokens[:, [1, 0, 2, 3]])[0, -1], atol=1e-3)


@pytest.mark.parametrize("conv_size", [0, 3])
@pytest.mark.parametrize("pieces", [[16], [1] * 16, [5, 1, 6, 4]])
def test_with_a_cache_the_logits_are_the_same(pieces: list[int], conv_size: int) -> None:
    net = stirred(conv_size=conv_size)
    tokens = torch.randint(50, (2, 16))
    cache = net.new_cache()
    found = torch.cat([net(part, cache) for part in tokens.split(pieces, dim=1)], dim=1)
    assert torch.allclose(found, net(tokens), atol=1e-5)
    assert len(cache) == 16


def test_a_convolution_sees_the_tokens_before_and_none_but_these() -> None:
    conv = gpt.CausalConvolution(1, size=2)
    nn.init.constant_(conv.weight[0], 10)  # of the last token
    nn.init.constant_(conv.weight[1], 100)  # of the one before it
    assert conv(torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])).flatten().tolist() == [1, 12, 123, 234]


def test_tied_weights_are_one() -> None:
    free = GPT(**TINY)  # type: ignore[arg-type]
    assert free.head.weight is not free.embedding.weight
    net = GPT(**TINY, tie_weights=True)  # type: ignore[arg-type]
    assert net.head.weight is net.embedding.weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in net.parameters()) == 50 * 32


def test_dropout_acts_in_training_only() -> None:
    net = stirred(dropout=0.5)
    tokens = torch.randint(50, (2, 16))
    assert torch.equal(net(tokens), net(tokens))
    net.train()
    assert not torch.equal(net(tokens), net(tokens))


def test_it_overfits_one_batch() -> None:
    torch.manual_seed(0)
    net = GPT(**TINY)  # type: ignore[arg-type]
    tokens = torch.randint(50, (4, 17))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(120):
        loss = nn.functional.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 0}, "vocab_size 0 is too small"),
        ({"block_size": 1}, "block_size 1 is too small"),
        ({"d_model": 30, "num_heads": 4}, "d_model 30 does not fit GPT with num_heads 4: give a multiple of 8"),
        ({"dropout": 1.0}, "dropout 1.0 is out of range"),
        ({"conv_size": -1}, "conv_size -1 is out of range"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPT(**arguments)  # type: ignore[arg-type]


def test_more_tokens_than_the_block_are_an_error() -> None:
    with pytest.raises(ValueError, match="17 tokens do not fit this GPT, whose block_size is 16"):
        stirred()(torch.zeros(1, 17, dtype=torch.long))


def test_angles_are_exact_whatever_the_type_of_new_tensors() -> None:
    expected = rotary_angles(300, 16, torch.device("cpu"))
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = rotary_angles(300, 16, torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_memory_for_several_texts_grows_with_them() -> None:
    net = GPT(vocab_size=8, block_size=4096, d_model=8, num_heads=1, num_layers=1).eval()
    alone, together = net.new_cache(), net.new_shared_cache(2)
    sizes = []
    for count in (10, 290):
        net(torch.zeros(1, count, dtype=torch.int64), alone)
        together.put(0, alone)
        sizes.append(max(one.shape[-2] for one in together.kept.values()))
    assert sizes[0] < 300 < sizes[1] < 1000
