"""The space of a search."""

import pytest

from src.engine.search.space import check_spec
from src.engine.system.errors import InputError


@pytest.mark.parametrize("entry", [{"float": [0, 1e300], "step": 1e-10}, {"float": [0.1, 1], "step": 10**400}])
def test_a_range_that_cannot_be_computed_is_one_line(entry: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"is not a range of float: "):
        check_spec({"space": {"optimizer.lr": entry}}, "own.yaml")
