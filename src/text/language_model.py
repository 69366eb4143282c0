"""The task of telling which token comes next, and of writing text by it."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection

from src.engine.data.loading import IGNORED
from src.engine.system.errors import InputError
from src.engine.training.hyperparameters import describe_arguments
from src.engine.training.optim.groups import Group, decay_groups
from src.tasks.task import Task
from src.text.gpt import check_sampling, sample

Batch = tuple[Tensor, Tensor]


class LanguageModel(Task):
    """Trains and tests any network that gives the logits of the next token, and generates with it.

    Args:
        net: the network, (B, T) int64 tokens -> (B, T, vocab_size) float logits, with `block_size`, the longest
            context, and `new_cache()`, what `forward` takes as second argument to read each token once.

    A batch is inputs (B, T) int64 and targets (B, T) int64, -100 where there is none. Logs, each token counted
    once, `{train,val,test}/loss` in nats a token, `{val,test}/perplexity`, and `{val,test}/bits_per_char` where
    the DataModule says `tokens_per_char`. Biases and norms do not decay.

    Raises:
        InputError: the data has more tokens than the network, or longer contexts.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, MetricCollection({"loss": MeanMetric()}))
        self.save_hyperparameters(describe_arguments(type(self), net=net))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 tokens -> (B, T, vocab_size) float logits of the next ones."""
        logits: Tensor = self.net(tokens)
        return logits

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The mean loss of a batch's tokens, and how many these are."""
        tokens, targets = batch
        logits = self(tokens)  # (B, T, vocab_size)
        count = (targets != IGNORED).sum()
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        loss = total / count.clamp(min=1)  # a batch may be nothing but padding
        return loss, {"value": loss.detach(), "weight": count}

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """(B, T) int64: the likeliest next token behind each."""
        logits = self(batch if isinstance(batch, Tensor) else batch[0])  # (B, T, vocab_size)
        likeliest: Tensor = logits.argmax(dim=-1)  # (B, T)
        return likeliest

    def log_metrics(self, stage: str) -> None:
        """Log the loss, and perplexity and bits per character, which follow from it."""
        super().log_metrics(stage)
        if not self.metrics.has_seen(stage):
            return
        loss = self.metrics[stage]["loss"].compute()
        self.log(f"{stage}/perplexity", loss.exp(), sync_dist=True)
        rates = getattr(getattr(self.trainer, "datamodule", None), "tokens_per_char", {})
        if stage in rates:
            self.log(f"{stage}/bits_per_char", loss / math.log(2) * rates[stage], sync_dist=True)

    check_sampling = staticmethod(check_sampling)

    def parameter_groups(self) -> list[Group]:
        """The groups an optimizer is built with."""
        return decay_groups(self.net)

    def configure_optimizers(self) -> Any:
        """AdamW (Loshchilov and Hutter 2019) where no optimizer is configured, as in plain Python use."""
        return torch.optim.AdamW(self.parameter_groups())

    def generate(
        self,
        prompt: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
    ) -> Iterator[int]:
        """Continue a text, a token at a time.

        A context that has grown over `block_size` goes on from its last half, which is read once more.

        Args:
            prompt: (T,) int64 tokens, at least one.
            max_new_tokens: how many to write.
            temperature: logits are divided by it; 0 always takes the likeliest token.
            top_k: sample among so many of the likeliest tokens only.
            top_p: sample among the likeliest tokens that together have this probability (Holtzman et al. 2020).
            generator: source of randomness, on the CPU.
            use_cache: read each token once; without, the whole context is read for every token, to compare.

        Raises:
            InputError: an argument is out of its range.
        """
        if not len(prompt):
            raise InputError("the prompt is empty: give at least one token")
        check_sampling(max_new_tokens, temperature, top_k, top_p)
        return self._generate(prompt.tolist(), max_new_tokens, temperature, top_k, top_p, generator, use_cache)

    def _generate(
        self,
        context: list[int],
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        generator: torch.Generator | None,
        use_cache: bool,
    ) -> Iterator[int]:
        net: Any = self.net
        longest = net.block_size or math.inf  # some pretrained models know no end
        trained = net.training
        net.eval()
        try:
            cache, read = net.new_cache() if use_cache else None, 0
            for _ in range(max_new_tokens):
                if len(context) > longest:
                    context = context[-(net.block_size // 2) :]
                    cache, read = net.new_cache() if use_cache else None, 0
                tokens = torch.tensor([context[read:]], device=self.device)  # (1, T)
                with torch.no_grad():
                    logits = net(tokens, cache)[0, -1].float()  # (vocab_size,)
                read = len(context) if use_cache else 0
                token = sample(logits.cpu(), temperature, top_k, top_p, generator)
                context.append(token)
                yield token
        finally:
            net.train(trained)
