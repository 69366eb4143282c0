"""Recipes for molecules, genomes and proteins, with simple models on the same parts of the same data.

Ridge regression and gradient boosting (scikit-learn) get counts of pieces of up to three characters of a molecule, and
the bases at each place of a splice site, for ridge regression in pairs. They are trained on training and validation
part together, the recipes on the training part. For hidden residues, the most frequent residue of the column is taken.
The settings of the recipes were chosen on parts of the training data.

    python benchmarks/biology.py [--recipes drugs genomes proteins] [--seeds 1 2 3 4 5] [--quick]
"""

import statistics
import tempfile
import time
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import OneHotEncoder
from table import ROOT, Row, parse, show

from src.engine.cli.cli import StarterCLI

# What is measured on the test part, its unit, and the target.
MEASURES = {
    "drugs": ("RMSE", "log10 mol/l", "at most 0.68"),
    "genomes": ("correlation", "", "at least 0.95"),
    "proteins": ("hidden residues recovered", "", "more than the baseline"),
}
ALPHAS = np.logspace(-1, 3, 9)


def train(recipe: str, seed: int, quick: bool) -> tuple[Any, Any]:
    """Task and data of a recipe after its test."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"--config={ROOT}/configs/biology/{recipe}.yaml", f"--seed_everything={seed}", "--quiet"]
        words += [f"--trainer.default_root_dir={folder}", "--trainer.logger=false"]
        cli = StarterCLI([*words, *(["--max_epochs=1"] if quick else [])], time.perf_counter())
        cli.run()
    return cli.model.eval(), cli.datamodule


@torch.inference_mode()
def measure(recipe: str, task: Any, data: Any) -> float:
    """The measure of a recipe on the test part."""
    predicted, true = [], []
    for *inputs, targets in data.test_dataloader():
        output = task(*inputs).cpu()
        known = targets != -100
        predicted.append(output.argmax(dim=1)[known] if recipe == "proteins" else output.flatten())
        true.append(targets[known] if recipe == "proteins" else targets)
    return score(recipe, torch.cat(predicted).numpy(), torch.cat(true).numpy())


def score(recipe: str, predicted: Any, true: Any) -> float:
    if recipe == "drugs":
        return float(np.sqrt(np.mean((predicted - true) ** 2)))
    return float(np.corrcoef(predicted, true)[0, 1] if recipe == "genomes" else (predicted == true).mean())


def baselines(recipe: str, data: Any, quick: bool) -> dict[str, float]:
    """The measure of each simple model."""
    parts = {"train": data.train_set, "val": data.val_set, "test": data.test_set}
    records = {part: found.records for part, found in parts.items()}
    fitted = [*records["train"], *records["val"]]
    if recipe == "proteins":
        columns = zip(*(record.sequence for record in fitted), strict=True)
        frequent = [Counter(column.replace("-", "")).most_common(1)[0][0] for column in map("".join, columns)]
        numbers = torch.tensor([data.labels.index(residue) for residue in frequent])
        hits = [(numbers.expand_as(targets) == targets)[targets != -100] for *_, targets in data.test_dataloader()]
        return {"most frequent residue of the column": float(torch.cat(hits).float().mean())}
    parts = [[record.sequence for record in one] for one in (fitted, records["test"])]
    values = [np.array([float(record.label) for record in one]) for one in (fitted, records["test"])]
    if recipe == "drugs":
        counts = CountVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False, min_df=3).fit(parts[0])
        features = pairs = [counts.transform(one).toarray() for one in parts]
    else:
        places = OneHotEncoder(sparse_output=False).fit([list(one) for one in parts[0]])
        features = [places.transform([list(one) for one in part]) for part in parts]
        columns = range(10 if quick else features[0].shape[1])
        pairs = [np.stack([x[:, a] * x[:, b] for a, b in combinations(columns, 2)], 1) for x in features]
        pairs = [np.concatenate(both, 1) for both in zip(features, pairs, strict=True)]
    found = {}
    for name, model, (known, new) in (
        ("ridge regression", RidgeCV(ALPHAS[:1] if quick else ALPHAS), pairs),
        ("gradient boosting", HistGradientBoostingRegressor(max_iter=5 if quick else 100, random_state=0), features),
    ):
        found[name] = score(recipe, model.fit(known, values[0]).predict(new), values[1])
    return found


def main() -> None:
    options = parse(
        __doc__,
        ("--recipes", {"nargs": "+", "default": list(MEASURES), "choices": list(MEASURES)}),
        ("--seeds", {"nargs": "+", "type": int, "default": [1, 2, 3, 4, 5]}),
    )
    rows = []
    for recipe in options.recipes:
        ours, seconds = [], []
        for seed in options.seeds[:1] if options.quick else options.seeds:
            start = time.perf_counter()
            task, data = train(recipe, seed, options.quick)
            seconds.append(time.perf_counter() - start)
            ours.append(measure(recipe, task, data))
            print(f"{recipe}, seed {seed}: {ours[-1]:.4f} after {seconds[-1]:.0f} s", flush=True)
        what, unit, target = MEASURES[recipe]
        spread = statistics.stdev(ours) if len(ours) > 1 else 0.0
        print(f"{recipe}: {what} {statistics.mean(ours):.4f} ± {spread:.4f} (mean and deviation of {len(ours)} seeds)")
        for name, value in baselines(recipe, data, options.quick).items():
            rows.append(Row(f"{recipe}: {what}, {name}", unit, ours, name, [value] * len(ours), target))
    show(rows, options.results)


if __name__ == "__main__":
    main()
