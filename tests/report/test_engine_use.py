"""How much each engine computes, in words and for programs."""

from __future__ import annotations

import pytest

from edgeflow_mpi.report.engine_use import EngineUse, engines_json, engines_text, summed

USES = (EngineUse("a", 2, 30.0), EngineUse("b", 1, 60.0), EngineUse("a", 3, 10.0))


def test_most_work_comes_first() -> None:
    assert summed(USES) == (EngineUse("b", 1, 60.0), EngineUse("a", 5, 40.0))
    assert engines_json(USES)["a"] == {"units": 5, "work_share": 0.4}
    assert engines_json([EngineUse("a", 1, 0.0)])["a"]["work_share"] == 0.0


@pytest.mark.parametrize(
    ("uses", "wanted", "text"),
    [
        (USES, "", "b 60 % of the work (1 unit), a 40 % of the work (5 units)"),
        (USES[:1], "a", "a 100 % of the work (2 units)"),
        (USES[:1], "b", "a 100 % of the work (2 units); b cannot do the layers of 2 units"),
        ((EngineUse("a", 3, 0.0),), "", "a 3 units"),
        ((), "", ""),
    ],
    ids=["auto", "forced", "fallen-back", "no-products", "nothing"],
)
def test_the_text_says_who_and_why_not(uses: tuple[EngineUse, ...], wanted: str, text: str) -> None:
    assert engines_text(uses, wanted) == text
