"""Generates several texts at once."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor


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
            used = (length if row in stepping else 0 for row, length in enumerate(self.cache.lengths))
            self.cache.lengths = list(used)
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
