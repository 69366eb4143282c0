"""Language modelling: training on the next token, and text generation."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection

from src.engine.data.loading import IGNORED
from src.engine.system.errors import InputError
from src.engine.training.optim.groups import Group, decay_groups
from src.tasks.task import Task
from src.text.gpt import sample

Batch = tuple[Tensor, Tensor]


class LanguageModel(Task):
    """Trains and tests a network that predicts the next token, and generates text with it.

    Args:
        net: the network, (B, T) int64 tokens -> (B, T, vocab_size) float logits. It needs `block_size`, the longest
            context, and `new_cache()`, which returns a cache for the second argument of `forward`, or None. With
            `new_shared_cache(count)`, as in `GPT`, the service computes several texts at once.

    A batch is inputs (B, T) int64 and targets (B, T) int64; targets of -100 are ignored. Logs `{train,val,test}/loss`
    in nats per token, `{val,test}/perplexity`, and `{val,test}/bits_per_char` if the DataModule has `tokens_per_char`;
    all tokens have the same weight. Biases and norms have no weight decay.

    Raises:
        InputError: the data has a larger vocabulary or longer contexts than the network.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, MetricCollection({"loss": MeanMetric()}))
        self.save_arguments(net=net)

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The mean loss of the tokens of a batch, and how many they are."""
        tokens, targets = batch
        logits = self(tokens)  # (B, T, vocab_size)
        if not torch.is_autocast_enabled(logits.device.type):
            logits = logits.float()  # sums in half precision are rounded, or infinite
        count = (targets != IGNORED).sum()
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        loss = total / count.clamp(min=1)  # a batch may be padding only
        return loss, {"value": loss.detach(), "weight": count}

    def log_metrics(self, stage: str) -> None:
        """Log the loss, and from it perplexity and bits per character."""
        super().log_metrics(stage)
        loss = self.metrics[stage]["loss"].compute()
        self.log(f"{stage}/perplexity", loss.exp(), sync_dist=True)
        rates = getattr(getattr(self.trainer, "datamodule", None), "tokens_per_char", {})
        if stage in rates:
            self.log(f"{stage}/bits_per_char", loss / math.log(2) * rates[stage], sync_dist=True)

    @staticmethod
    def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
        """Raise InputError if an argument of sampling is out of range."""
        if max_new_tokens < 0:
            raise InputError(f"max_new_tokens {max_new_tokens} is out of range: give at least 0")
        if not 0 <= temperature < math.inf:
            raise InputError(f"temperature {temperature} is out of range: give at least 0; 0 takes the likeliest token")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k {top_k} is out of range: give at least 1, or leave it out")
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(f"top_p {top_p} is out of range: give more than 0 and up to 1, or leave it out")

    def generate_together(self, count: int) -> Any:
        """An object whose `generate` computes up to `count` texts at once if the network can, else this task."""
        is_own = type(self).generate is not LanguageModel.generate
        return self if is_own or not hasattr(self.net, "new_shared_cache") else TextsTogether(self, count)

    def parameter_groups(self) -> list[Group]:
        return decay_groups(self.net)

    def generate(
        self,
        prompt: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        together: "TextsTogether | None" = None,
    ) -> Iterator[int]:
        """Continue a text; each token is computed when it is read.

        When the context exceeds `block_size`, only its last half is kept.

        Args:
            prompt: (T,) int64 tokens, at least one.
            max_new_tokens: number of tokens to generate, at least 0.
            temperature, top_k, top_p, generator: see `sample`.
            use_cache: process each token once; without, the whole context is processed for every token (slower).
            together: computes this text together with others; see `generate_together`.

        Raises:
            InputError: the prompt is empty, or another argument is out of range.
        """
        if not len(prompt):
            raise InputError("the prompt is empty: give at least one token")
        self.check_sampling(max_new_tokens, temperature, top_k, top_p)
        draw = partial(sample, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        if together is not None:
            return together.read(prompt.tolist(), max_new_tokens, draw)
        return self._generate(prompt.tolist(), max_new_tokens, draw, use_cache)

    def _generate(
        self, context: list[int], count: int, draw: Callable[[Tensor], int], use_cache: bool
    ) -> Iterator[int]:
        net: Any = self.net
        max_context = net.block_size or math.inf  # some pretrained models have no limit
        was_training = net.training
        net.eval()
        try:
            cache, processed = net.new_cache() if use_cache else None, 0
            for _ in range(count):
                if len(context) > max_context:
                    context = context[-(net.block_size // 2) :]
                    cache, processed = net.new_cache() if use_cache else None, 0
                tokens = torch.tensor([context[processed:]], device=self.device)  # (1, T)
                with torch.inference_mode():
                    # Never compiled: each token has another size.
                    logits = net._call_impl(tokens, cache)[0, -1].float()  # (vocab_size,)
                processed = len(context) if cache is not None else 0
                token = draw(logits.cpu())
                context.append(token)
                yield token
        finally:
            net.train(was_training)


@dataclass(eq=False)
class Text:
    """A text that is being generated: its tokens, how many are wanted, and those that nobody has read yet."""

    context: list[int]
    wanted: int
    draw: Callable[[Tensor], int]
    unread: deque[int] = field(default_factory=deque)
    has_started: bool = False
    error: Exception | None = None


class TextsTogether:
    """Generates several texts at once, each with its own limits and seed: one step gives a token of every text.

    A text is the same whatever other texts are generated at the same time: the network always gets the same number of
    rows, of which some may be unused. All texts must be read in the same thread.

    Args:
        task: a language model whose network has `new_shared_cache`.
        count: maximum number of texts at the same time.
    """

    def __init__(self, task: Any, count: int) -> None:
        self.net, self.device = task.net, task.device
        self.generate = partial(task.generate, together=self)
        """Continues a text, as `LanguageModel.generate` does."""
        self.texts: list[Text | None] = [None] * count
        self.cache = self.net.new_shared_cache(count)

    def read(self, context: list[int], count: int, draw: Callable[[Tensor], int]) -> Iterator[int]:
        """Continue a text by up to `count` tokens, which `draw` samples from logits (vocab_size,)."""
        row = self.texts.index(None)
        self.texts[row] = text = Text(context, count, draw)
        try:
            for _ in range(count):
                while not text.unread:
                    if text.error:
                        raise text.error
                    self._step()
                yield text.unread.popleft()
        finally:
            self.texts[row] = None

    @torch.inference_mode()
    def _step(self) -> None:
        """Compute the next token of each text."""
        running = {row: text for row, text in enumerate(self.texts) if text and text.wanted}
        # Process all tokens of new texts, and of those that have grown too long, which keep their last half.
        whole = {
            row for row, text in running.items() if not text.has_started or len(text.context) > self.net.block_size
        }
        found: Any = None
        if stepping := running.keys() - whole:
            tokens = [running[row].context[-1] if row in stepping else 0 for row in range(len(self.texts))]
            self.cache.lengths = [length if row in stepping else 0 for row, length in enumerate(self.cache.lengths)]
            for row in stepping:
                running[row].has_started = False  # until the cache holds what the tokens say
            found = self.net(torch.tensor(tokens, device=self.device)[:, None], self.cache)[:, -1].float().cpu()
            for row in stepping:
                running[row].has_started = True
        for row, text in running.items():  # after the step, which writes to all rows
            try:
                logits = self._processed(row, text) if row in whole else found[row]  # (vocab_size,)
                token = text.draw(logits)
            except Exception as error:  # for the reader of this text; the others go on
                text.error, text.wanted = error, 0
                continue
            text.context.append(token)
            text.unread.append(token)
            text.wanted -= 1

    def _processed(self, row: int, text: Text) -> Tensor:
        """Fill a row of the cache with all tokens of a text; returns the logits of the next one."""
        cache = self.net.new_cache()
        if len(text.context) > self.net.block_size:
            text.context = text.context[-(self.net.block_size // 2) :]
        logits: Tensor = self.net(torch.tensor([text.context], device=self.device), cache)[0, -1].float().cpu()
        self.cache.put(row, cache)
        text.has_started = True
        return logits
