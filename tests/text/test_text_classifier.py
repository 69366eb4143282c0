from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from src.engine.parts.compile import Compilation
from src.engine.system.errors import InputError
from src.text.text_classifier import TextClassifier
from src.text.text_encoder import TextEncoder, TextEnsemble
from tests.conftest import trainer


def batches() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    rows = [
        (torch.randint(50, (9,), generator=generator), torch.arange(9) < 3 + number % 6, torch.tensor(number % 3))
        for number in range(20)
    ]
    return DataLoader(rows, batch_size=7)  # type: ignore[arg-type]


def test_metrics_and_confusion_equal_a_computation_by_hand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = TextClassifier(TextEncoder(50, 3, d_model=16, num_heads=2, num_layers=1))
    (found,) = trainer(tmp_path).test(task, batches(), verbose=False)
    tokens, mask, targets = (torch.stack(column) for column in zip(*batches().dataset, strict=True))  # type: ignore[arg-type]
    labels = task.eval()(tokens, mask).argmax(dim=1)
    assert found["test/acc"] == pytest.approx((labels == targets).float().mean().item())
    confusion = torch.zeros(3, 3, dtype=torch.long)
    for truth, guess in zip(targets, labels, strict=True):
        confusion[truth, guess] += 1
    assert torch.equal(task.confusion.compute(), confusion)


def test_the_head_may_have_a_learning_rate_of_its_own() -> None:
    task = TextClassifier(TextEncoder(50, 3, d_model=16, num_heads=2, num_layers=1), head_lr=0.5)
    optimizer = torch.optim.AdamW(task.parameter_groups(), lr=0.1, weight_decay=0.3)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(task.net.parameters()))
    assert rates[id(task.net.head.weight)] == (0.5, 0.3)  # type: ignore[union-attr]
    assert rates[id(task.net.head.bias)] == (0.5, 0.0)  # type: ignore[union-attr]
    assert rates[id(task.net.embedding.weight)] == (0.1, 0.3)  # type: ignore[union-attr]
    assert rates[id(task.net.norm.weight)] == (0.1, 0.0)  # type: ignore[union-attr]


def test_its_groups_have_an_effect_without_an_optimizer_in_the_recipe() -> None:
    task = TextClassifier(TextEncoder(50, 3, d_model=16, num_heads=2, num_layers=1), head_lr=0.5)
    optimizer = task.configure_optimizers()
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    lr, decay = optimizer.defaults["lr"], optimizer.defaults["weight_decay"]
    assert lr < 0.5 > decay > 0
    assert len(rates) == len(list(task.net.parameters()))
    assert rates[id(task.net.head.weight)] == (0.5, decay)  # type: ignore[union-attr]
    assert rates[id(task.net.embedding.weight)] == (lr, decay)  # type: ignore[union-attr]
    assert rates[id(task.net.norm.weight)] == (lr, 0.0)  # type: ignore[union-attr]


def encoder(adversarial: float) -> TextClassifier:
    torch.manual_seed(0)
    return TextClassifier(TextEncoder(50, 3, d_model=16, num_heads=2, num_layers=1, dropout=0), adversarial=adversarial)


def test_adversarial_training_takes_the_mean_with_the_loss_of_texts_moved_up_the_slope() -> None:
    batch = next(iter(batches()))
    *inputs, targets = batch
    task = encoder(0.5)
    net: TextEncoder = task.net  # type: ignore[assignment]
    loss, seen = task.step(batch)

    embedded = net.embedding(inputs[0])
    net.embedding.register_forward_hook(lambda *_: embedded)
    plain = torch.nn.functional.cross_entropy(net(*inputs), targets)
    (slope,) = torch.autograd.grad(plain, embedded)
    embedded = (embedded + 0.5 * slope / slope.flatten(1).norm(dim=1)[:, None, None]).detach()
    moved = torch.nn.functional.cross_entropy(net(*inputs), targets)

    assert seen["value"] == pytest.approx(plain.item())
    assert loss.item() == pytest.approx((plain.item() + moved.item()) / 2)
    assert moved > 1.02 * plain
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_adversarial_training_sees_each_text_alone() -> None:
    tokens, mask, targets = next(iter(batches()))
    task = encoder(0.5)
    whole = task.step((tokens, mask, targets))[0]
    parts = [task.step((tokens[part], mask[part], targets[part]))[0] for part in (slice(0, 3), slice(3, 7))]
    assert whole.item() == pytest.approx((3 * parts[0].item() + 4 * parts[1].item()) / 7)
    assert whole > encoder(0.0).step((tokens, mask, targets))[0]


@pytest.mark.slow
def test_adversarial_training_that_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adversarial -1 is out of range"):
        encoder(-1)
    with pytest.raises(InputError, match=r"TextEnsemble has no attribute embedding; leave adversarial out"):
        TextClassifier(TextEnsemble(2, 50, 3, 16, 2, 1), adversarial=0.5)
    task = encoder(0.5)
    Compilation().setup(trainer(tmp_path), task, "fit")  # as --compile does; torch compiles on first use
    with pytest.raises(InputError, match="does not work with a compiled network"):
        task.step(next(iter(batches())))


def test_predictions_need_no_targets() -> None:
    task = TextClassifier(TextEncoder(50, 3, d_model=16, num_heads=2, num_layers=1)).eval()
    tokens, mask, targets = next(iter(batches()))
    found = task.predict_step((tokens, mask, targets), 0)
    assert torch.equal(found["labels"], task(tokens, mask).argmax(dim=1))
    assert torch.allclose(found["probabilities"].sum(dim=1), torch.ones(7))


def test_adversarial_training_scales_its_gradient_as_mixed_precision_does() -> None:
    task, seen = encoder(0.5).train(), []

    def scale(loss: Tensor) -> Tensor:
        seen.append(loss)
        return loss * 2**16

    batch = next(iter(batches()))
    plain = task.step(batch)[0]
    task._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=SimpleNamespace(scale=scale)))  # type: ignore[assignment]
    assert torch.allclose(task.step(batch)[0], plain, rtol=1e-5)  # the move has a length of its own
    assert len(seen) == 1
