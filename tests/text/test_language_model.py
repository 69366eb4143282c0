import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.engine.system.errors import InputError
from src.text.corpus import TextDataModule
from src.text.gpt import GPT, sample
from src.text.language_model import LanguageModel
from tests.conftest import trainer
from tests.text.test_gpt import stirred

TEXT = "To be, or not to be: that is the question. " * 40


@pytest.fixture
def data(tmp_path: Path) -> TextDataModule:
    (tmp_path / "own.txt").write_text(TEXT)
    return TextDataModule(str(tmp_path / "own.txt"), cache_dir=str(tmp_path / "c"), block_size=16, batch_size=3)


@pytest.mark.parametrize("bpe", [False, True])
def test_evaluation_is_the_mean_over_every_token_once(tmp_path: Path, data: TextDataModule, bpe: bool) -> None:
    if bpe:
        options = {"tokenizer": "bpe", "max_vocab_size": 270, "block_size": 16, "batch_size": 3}
        data = TextDataModule(data.paths["path"], cache_dir=str(data.cache_dir), **options)  # type: ignore[arg-type]
    task = LanguageModel(stirred(vocab_size=270))
    (found,) = trainer(tmp_path).test(task, data, verbose=False)
    tokens = torch.from_numpy(data.test_set.tokens.astype("int64"))
    total = 0.0
    for start in range(0, len(tokens) - 1, 16):
        window = tokens[start : start + 17]
        logits = task(window[None, :-1])
        total += nn.functional.cross_entropy(logits[0], window[1:], reduction="sum").item()
    loss = total / (len(tokens) - 1)
    assert found["test/loss"] == pytest.approx(loss, rel=1e-5)
    assert found["test/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    characters = len(TEXT) - len(TEXT) * 9 // 10
    assert found["test/bits_per_char"] == pytest.approx(loss / math.log(2) * len(tokens) / characters, rel=1e-5)
    assert (len(tokens) == characters) is not bpe


def text_of(task: LanguageModel, count: int, *, use_cache: bool, prompt: tuple[int, ...] = (1, 2, 3)) -> list[int]:
    return list(task.generate(torch.tensor(prompt), count, temperature=0, use_cache=use_cache))


def test_with_and_without_cache_the_greedy_text_is_the_same_far_beyond_the_block() -> None:
    task = LanguageModel(stirred().double())
    for prompt in ((1,), tuple(range(16)), tuple(range(40))):
        cached = text_of(task, 60, use_cache=True, prompt=prompt)
        assert cached == text_of(task, 60, use_cache=False, prompt=prompt)
        assert len(cached) == 60
        assert len(set(cached)) > 1


def test_beyond_the_block_the_last_half_of_the_context_is_read_once_more() -> None:
    task = LanguageModel(stirred())
    seen: list[list[int]] = []

    class Spy(nn.Module):
        block_size = 16

        def new_cache(self) -> object:
            return task.net.new_cache()  # type: ignore[operator]

        def forward(self, tokens: Tensor, cache: object) -> Tensor:
            seen.append(tokens[0].tolist())
            logits: Tensor = task.net(tokens, cache)
            return logits

    spied = LanguageModel(Spy())
    written = text_of(spied, 25, use_cache=True, prompt=(1, 2, 3, 4))
    context = [1, 2, 3, 4, *written]
    assert [len(tokens) for tokens in seen] == [4] + [1] * 12 + [8] + [1] * 8 + [8] + [1] * 2
    assert seen[13] == context[17 - 8 : 17]


def asked(task: LanguageModel, numbers: list[int]) -> list[list[int]]:
    """Texts with their own prompts, limits and seeds, of which one more begins in each turn."""
    together = task.generate_together(4)
    texts = []
    for number in numbers:
        prompt, generator = torch.arange(1, 2 + 5 * number), torch.Generator().manual_seed(number)
        limits = {"temperature": 0.5 * number, "top_k": 20 - number, "top_p": 1 - 0.1 * number}
        texts.append(together.generate(prompt, 30 + number, **limits, generator=generator))
    found: list[list[int]] = [[] for _ in texts]
    for turn in range(40):
        for text, tokens in list(zip(texts, found, strict=True))[: turn + 1]:
            tokens += [token for token in [next(text, None)] if token is not None]
    return found


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("conv_size", [0, 2])
def test_texts_generated_together_are_those_generated_alone(conv_size: int, bfloat16: bool) -> None:
    task = LanguageModel(stirred(conv_size=conv_size, d_model=64))  # their contexts exceed its block of 16 tokens
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        together = asked(task, [0, 1, 2, 3])
        assert together == [asked(task, [number])[0] for number in range(4)]
    assert [len(text) for text in together] == [30, 31, 32, 33]
    assert text_of(task, 30, use_cache=False, prompt=(1,)) == together[0] or bfloat16


def test_texts_generated_together_share_steps_and_a_place_is_used_again() -> None:
    task = LanguageModel(stirred())
    together = task.generate_together(2)
    rows: list[int] = []
    task.net.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    texts = [together.generate(torch.tensor([number]), 9, temperature=0) for number in (1, 2)]
    first = [list(pair) for pair in zip(*texts, strict=True)]
    assert rows == [1] + [2, 1] + [2] * 8  # the second text begins with the first one's second token
    third = list(together.generate(torch.tensor([1]), 9, temperature=0))
    assert third == [pair[0] for pair in first]
    with pytest.raises(ValueError, match="temperature -1 is out of range"):
        together.generate(torch.tensor([1]), 9, temperature=-1)
    with pytest.raises(InputError, match="the prompt is empty"):
        together.generate(torch.tensor([], dtype=torch.long), 9)


def test_an_error_of_one_text_is_its_own_and_the_others_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    task = LanguageModel(stirred())
    alone = list(task.generate_together(2).generate(torch.tensor([1]), 9, temperature=0))
    together = task.generate_together(3)
    texts = [together.generate(torch.tensor(prompt), 9, temperature=0) for prompt in ([1], [2, 2, 2], [3])]
    net, forward = task.net, task.net.forward
    failing = {"length": 3}  # the prompt of the second text

    def fails(tokens: Tensor, cache: Any) -> Tensor:
        logits: Tensor = forward(tokens, cache)
        if tokens.shape[1] == failing["length"]:
            raise RuntimeError("out of memory")  # after the cache has changed
        return logits

    monkeypatch.setattr(net, "forward", fails)
    found = [next(texts[0])]
    next(texts[2])
    with pytest.raises(RuntimeError, match="out of memory"):
        next(texts[1])
    found += [next(texts[0]), next(texts[0])]
    failing["length"] = 1  # a step of all texts
    with pytest.raises(RuntimeError, match="out of memory"):
        list(texts[2])
    failing["length"] = 0
    found += list(texts[0])
    assert found == alone


def test_the_loss_of_logits_in_half_precision_is_summed_in_float32() -> None:
    net = nn.Linear(1, 1)
    logits = torch.zeros(2, 40_000, 4, dtype=torch.float16)
    net.forward = lambda _: logits  # type: ignore[method-assign]
    loss, seen = LanguageModel(net).step((torch.zeros(2, 40_000), torch.zeros(2, 40_000, dtype=torch.int64)))
    assert (loss.dtype, seen["weight"].item()) == (torch.float32, 80_000)
    assert loss.item() == pytest.approx(math.log(4))


def test_a_network_without_a_shared_cache_generates_texts_one_by_one() -> None:
    task = LanguageModel(nn.Linear(1, 1))
    assert task.generate_together(8) is task


class Shouting(LanguageModel):
    """A language model with a method `generate` of its own."""

    def generate(self, prompt: torch.Tensor, max_new_tokens: int) -> Any:  # type: ignore[override]
        return iter([1] * max_new_tokens)


def test_a_model_with_its_own_way_to_generate_is_asked_for_each_text() -> None:
    task = Shouting(stirred())
    assert list(task.generate_together(8).generate(torch.tensor([1]), 3)) == [1, 1, 1]


def test_generation_leaves_the_model_as_it_was() -> None:
    task = LanguageModel(stirred(dropout=0.5)).train()
    assert text_of(task, 5, use_cache=True) == text_of(task, 5, use_cache=True)  # no dropout
    assert task.net.training


def test_sampling_follows_its_limits() -> None:
    logits = torch.tensor([0.0, 3.0, 2.0, -1.0])
    generator = torch.Generator().manual_seed(0)

    def drawn(**limits: float | int) -> set[int]:
        return {sample(logits, generator=generator, **limits) for _ in range(300)}  # type: ignore[arg-type]

    assert drawn(temperature=0) == {1}
    assert drawn(temperature=5.0) == {0, 1, 2, 3}
    assert drawn(temperature=5.0, top_k=2) == {1, 2}
    assert drawn(top_k=1) == {1}
    assert drawn(top_p=0.5) == {1}
    assert drawn(temperature=1.0, top_p=0.9) == {1, 2}
    assert drawn(temperature=1e-3) == {1}
    for tiny in (1e-30, 1e-38, 1e-45, 5e-324):  # float32 holds none of the last two
        assert drawn(temperature=tiny) == drawn(top_p=tiny) == {1}
    for huge in (1e38, 1e308, 10**400):
        assert drawn(temperature=huge) == {0, 1, 2, 3}
    assert drawn(top_k=10**30, top_p=1) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0 is out of range"),
        ({"temperature": math.nan}, "temperature nan is out of range"),
        ({"top_k": 0}, "top_k 0 is out of range"),
        ({"top_p": 0.0}, "top_p 0.0 is out of range"),
        ({"max_new_tokens": -1}, "max_new_tokens -1 is out of range"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, float], message: str) -> None:
    task = LanguageModel(stirred())
    with pytest.raises(ValueError, match=message):
        task.generate(torch.tensor([1]), **{"max_new_tokens": 1, **arguments})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prompt is empty"):
        task.generate(torch.tensor([], dtype=torch.long), 1)


@pytest.mark.parametrize(("sizes", "message"), [((100, 16), "vocab_size 256"), ((256, 8), "block_size 16")])
def test_data_that_does_not_fit_the_network_is_an_error_before_training(
    tmp_path: Path, data: TextDataModule, sizes: tuple[int, int], message: str
) -> None:
    task = LanguageModel(GPT(*sizes, d_model=16, num_heads=2, num_layers=1))
    with pytest.raises(InputError, match=f"{message} of the data does not fit GPT"):
        trainer(tmp_path, max_epochs=1).fit(task, data)


def test_a_checkpoint_rebuilds_the_task_in_plain_python(tmp_path: Path, data: TextDataModule) -> None:
    task = LanguageModel(GPT(256, 16, d_model=16, num_heads=2, num_layers=1, tie_weights=True))
    fit = trainer(tmp_path, max_steps=3)
    fit.fit(task, data)
    fit.save_checkpoint(tmp_path / "task.ckpt")
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "task.ckpt", weights_only=True)
    tokens = torch.arange(10)[None]
    assert torch.equal(loaded(tokens), task(tokens))
    assert loaded.net.tie_weights is True


def test_generation_never_runs_the_compiled_network() -> None:
    task = LanguageModel(GPT(vocab_size=7, block_size=8, num_layers=1, num_heads=1, d_model=8))
    expected = text_of(task, 5, use_cache=True)
    task.net.compile(backend=lambda *_: pytest.fail("compiled"))  # type: ignore[arg-type]
    assert text_of(task, 5, use_cache=True) == expected
