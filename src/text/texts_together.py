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
                    self._step()
                yield text.unread.popleft()
        finally:
            self.texts[row] = None

    @torch.inference_mode()
    def _step(self) -> None:
        """Compute the next token of each text."""
        running = {row: text for row, text in enumerate(self.texts) if text and text.wanted}
        # New texts, and those that do not fit any more, whose last half is kept: all of their tokens are processed.
        whole = {
            row for row, text in running.items() if not text.has_started or len(text.context) > self.net.block_size
        }
        logits: dict[int, Tensor] = {}
        if stepping := running.keys() - whole:
            tokens = [running[row].context[-1] if row in stepping else 0 for row in range(len(self.texts))]
            used = (length if row in stepping else 0 for row, length in enumerate(self.cache.lengths))
            self.cache.lengths = list(used)
            found = self.net(torch.tensor(tokens, device=self.device)[:, None], self.cache)[:, -1].float().cpu()
            logits = {row: found[row] for row in stepping}  # (vocab_size,) each
        for row in whole:  # after the step, which writes to all rows
            text, cache = running[row], self.net.new_cache()
            if len(text.context) > self.net.block_size:
                text.context = text.context[-(self.net.block_size // 2) :]
            text.has_started = True
            logits[row] = self.net(torch.tensor([text.context], device=self.device), cache)[0, -1].float().cpu()
            self.cache.put(row, cache)
        for row, text in running.items():
            token = text.draw(logits[row])
            text.context.append(token)
            text.unread.append(token)
            text.wanted -= 1
