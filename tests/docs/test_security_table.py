"""``docs/security.md`` lists the inputs that the tests in ``tests/hostile`` try."""

import pytest
from hostile.limits import outcome
from hostile.table import COMMAND, PAGE, cases, inputs, page


@pytest.mark.slow
def test_the_table_of_hostile_inputs_is_of_these_tests() -> None:
    # In a process of its own, since pytest collects the tests once more; that imports much.
    found = outcome(cases, seconds=120, memory=16 * 10**9)
    assert found.crash is None, found
    assert len(inputs(found.value)) >= 120
    assert PAGE.read_text() == page(found.value), f"{PAGE.name} is stale: run `{COMMAND}`"
