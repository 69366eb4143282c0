"""Spoken digits by voices that are not heard in training, with simple models on the same sounds.

Logistic regression and a support vector machine (scikit-learn) get the mean and the deviation over time of each band of
the same spectrograms; their settings are chosen on the validation voices, as those of the recipe were. Each model looks
at the test voices once.

    python benchmarks/audio.py [--seeds 1 2 3 4 5] [--quick]
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from table import ROOT, Row, parse, show

from src.audio.spoken_words import SpokenWordsDataModule
from src.engine.cli.cli import StarterCLI

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


def accuracy_of_recipe(seed: int, quick: bool) -> float:
    """Test accuracy of the recipe."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"--config={ROOT}/configs/audio/spoken_words.yaml", f"--seed_everything={seed}", "--quiet"]
        words += ["--data.source=synthetic", f"--trainer.default_root_dir={folder}", "--trainer.logger=false"]
        cli = StarterCLI([*words, *(["--max_epochs=1"] if quick else [])], time.perf_counter())
        cli.run()
        return float(cli.trainer.callback_metrics["test/acc"])


def summaries(data: SpokenWordsDataModule) -> dict[str, tuple[Any, Any]]:
    """Mean and deviation of each band of each sound (N, 2 S), and targets (N,), of each part."""
    found = {}
    for part, clips in (("train", data.train_set), ("val", data.val_set), ("test", data.test_set)):
        images = data.features(clips.waveforms / 2**15)[:, 0]  # (N, S, S)
        found[part] = torch.cat([images.mean(dim=2), images.std(dim=2)], dim=1).numpy(), clips.targets.numpy()
    return found


def baselines(strengths: Sequence[float]) -> dict[str, float]:
    """Test accuracy of each simple model, with the strength of regularization that is best on the validation voices."""
    data = SpokenWordsDataModule(source="synthetic")
    data.setup("fit")
    parts = summaries(data)
    found = {}
    for name, make in (
        ("logistic regression", lambda c: LogisticRegression(C=c, max_iter=2000)),
        ("support vector machine", lambda c: SVC(C=c)),
    ):
        models = [make_pipeline(StandardScaler(), make(c)).fit(*parts["train"]) for c in strengths]
        best = models[int(np.argmax([model.score(*parts["val"]) for model in models]))]
        found[name] = float(best.score(*parts["test"]))
    return found


def main() -> None:
    options = parse(__doc__, ("--seeds", {"nargs": "+", "type": int, "default": [1, 2, 3, 4, 5]}))
    ours = []
    for seed in options.seeds[:1] if options.quick else options.seeds:
        start = time.perf_counter()
        ours.append(accuracy_of_recipe(seed, options.quick))
        print(f"seed {seed}: {ours[-1]:.4f} after {time.perf_counter() - start:.0f} s", flush=True)
    print(f"spoken words: accuracy {statistics.mean(ours):.4f} (mean of {len(ours)} seeds)")
    rows = [
        Row(f"spoken words: accuracy on unheard voices, {name}", "", ours, name, [value] * len(ours), "at least 0.95")
        for name, value in baselines(STRENGTHS[:1] if options.quick else STRENGTHS).items()
    ]
    show(rows, options.results)


if __name__ == "__main__":
    main()
