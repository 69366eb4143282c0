"""Rows of tables as inputs, from files and of clients: numbers, categories and missing values."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.engine.deploy.inputs import read_table_rows
from src.engine.deploy.prepare import kind_of, prepare_inputs
from src.engine.system.errors import InputError, SampleError
from tests.engine.deploy.local import local


def data(**attributes: Any) -> Any:
    return SimpleNamespace(input_kind="table", prepare=None, **attributes)


def summed(given: Any) -> Any:
    """A model that adds the numbers of a row."""
    return SimpleNamespace(
        kind="table",
        data=given,
        task=None,
        device=torch.device("cpu"),
        prepare=lambda rows: prepare_inputs(given, rows),
        predictions=lambda inputs: inputs[0].sum(dim=1),
        rows=lambda sums, count, sizes: [{"sum": one} for one in sums.tolist()],
    )


def test_a_number_that_does_not_fit_is_an_error_in_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"x": {one}}}\n' for one in ("1" * 310, "1e39", "3e38", '"3"')))
    found = [one.error for one in read_table_rows([str(tmp_path / "a.jsonl")], data(columns=["x"]))]
    assert found[0].startswith("column x is 1111")
    assert found[0].endswith("111, not a finite number (largest: 3.4e+38)")
    assert found[1:] == ["column x is 1e+39, not a finite number (largest: 3.4e+38)", "", ""]


def test_a_table_may_have_categories_and_missing_numbers(tmp_path: Path) -> None:
    given = data(columns=["age", "town"], category_columns=["town"])
    (tmp_path / "a.csv").write_text("town,age\n Ulm ,3\n,4\n7,\nBonn,old\n")
    (tmp_path / "b.jsonl").write_text('{"town": null, "age": null}\n{"town": 7, "age": NaN}\n')
    paths = [str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")]
    rows = list(read_table_rows(paths, given))
    assert [one.value for one in rows[:2]] == [{"age": 3, "town": "Ulm"}, {"age": 4, "town": ""}]
    assert [one.error.partition(",")[0] for one in rows[2:]] == [
        "column age is ''",
        "column age is 'old'",
        "column age is None",
        "column age is nan",
    ]
    given.allows_missing = True
    rows = list(read_table_rows(paths, given))
    assert [bool(one.error) for one in rows] == [False, False, False, True, False, False]
    assert [one.value["town"] for one in rows if not one.error] == ["Ulm", "", "7", "", "7"]
    assert [math.isnan(one.value["age"]) for one in rows if not one.error] == [False, False, True, True, True]
    given.category_columns = ["city"]
    with pytest.raises(InputError, match="category_columns has city, which is not in columns"):
        kind_of(given)


def test_a_row_of_a_table_is_finite_numbers_for_all_columns() -> None:
    def prepare(rows: list[dict[str, float]]) -> torch.Tensor:
        return torch.tensor([[row["a"], row["b"]] for row in rows], dtype=torch.float64)

    with local(summed(SimpleNamespace(input_kind="table", columns=["a", "b"], prepare=prepare))) as one:
        assert one.predict({"b": 2, "a": 1.5}).json == {"sum": 3.5}
        for wrong in (
            {"a": 1},
            [1, 2],
            {"a": 1, "b": 10**400},
            {"a": 1, "b": 1e39},
            {"a": 1, "b": math.nan},
            {"a": 1, "b": True},
        ):
            assert one.predict(wrong).status == 422


def test_a_row_of_a_table_may_have_texts_and_missing_numbers() -> None:
    towns = ("", "Ulm", "Bonn")

    def prepare(rows: list[dict[str, Any]]) -> torch.Tensor:
        if other := next((row["town"] for row in rows if row["town"] not in towns), None):
            raise SampleError(f"town {other} was not trained on")
        return torch.tensor([[row["age"], towns.index(row["town"])] for row in rows]).nan_to_num(nan=50)

    given = SimpleNamespace(input_kind="table", columns=["age", "town"], category_columns=["town"], prepare=prepare)
    with local(summed(given)) as one:
        assert one.predict({"town": " Ulm", "age": 1.5}).json == {"sum": 2.5}
        assert one.predict({"town": None, "age": 1}).json == {"sum": 1}
        said = [one.predict({"age": age, "town": town}) for age, town in ((None, "Ulm"), (1, 7), ("1", ""), (1, "Rom"))]
        assert {answer.status for answer in said} == {422}
        assert [answer.json["detail"] for answer in said] == [
            "column age is None, not a finite number (largest: 3.4e+38)",
            'town is not a text: send JSON values for all columns: {"age": 0, "town": ""}',
            'age is not a number: send JSON values for all columns: {"age": 0, "town": ""}',
            "town Rom was not trained on",
        ]
        given.allows_missing = True
        assert one.predict({"town": "Bonn", "age": None}).json == {"sum": 52}
