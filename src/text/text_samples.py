"""Logs texts that a language model generates during training to TensorBoard."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.engine.system.errors import InputError
from src.engine.tensorboard.writers import writers


class TextSamples(Callback):
    """Generates a text after each validation and logs it to TensorBoard's text page.

    Args:
        prompt: the beginning of the text, at least one token.
        max_new_tokens: number of tokens to generate.
        temperature: sampling temperature; 0 takes the likeliest token.

    Raises:
        InputError: the prompt has no token, the task cannot generate, the data has no tokenizer, or an argument is out
            of range.
    """

    def __init__(self, prompt: str = "\n", max_new_tokens: int = 200, temperature: float = 0.8) -> None:
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if not callable(getattr(pl_module, "generate", None)) or not hasattr(data, "tokenizer"):
            raise InputError("TextSamples needs a task that generates, and data with a tokenizer: remove it")
        if not len(data.tokenizer.encode(self.prompt)):
            raise InputError(f"TextSamples: prompt {self.prompt!r} has no token in the tokenizer: give another prompt")
        if check := getattr(pl_module, "check_sampling", None):
            check(self.max_new_tokens, self.temperature, None, None)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Within the validation: a callback that averages weights puts others in their place before and after it.
        if trainer.sanity_checking or not trainer.loggers or batch_idx or dataloader_idx:
            return
        task: Any = pl_module
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        prompt = torch.from_numpy(tokenizer.encode(self.prompt).astype("int64"))
        # A separate generator: sampling does not change the run. All processes take part, since weights may be sharded.
        generator = torch.Generator().manual_seed(0)
        ids = task.generate(prompt, self.max_new_tokens, self.temperature, generator=generator)
        text = self.prompt + "".join(tokenizer.stream(ids, prompt.tolist()))
        fenced = "\n".join(f"    {line}" for line in text.splitlines())  # a code block in Markdown
        for writer in writers(trainer):
            writer.add_text("sample", fenced, trainer.global_step)
