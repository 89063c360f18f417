"""What an evaluation runs: each budget, with and without a patch, and what is named against what a budget says."""

from __future__ import annotations

from typing import Any

import pytest

from fixpatch.errors import SettingError
from fixpatch.estimate import written
from fixpatch.plan import Plan, make_plan, name_attacks
from fixpatch.threats import ALL_ATTACKS, BUDGETS, attack_named

AUTOPGD = attack_named("autopgd", eps="4/255")


def plan(budget: str = "quick", attackers: list[str] | None = None, attacks: Any = (AUTOPGD,), **facts: Any) -> Plan:
    return make_plan(budget, attacks, attackers, **{"classes": 10, "patched": True, "surrogate": True, **facts})


def steps(found: Plan) -> list[tuple[str, str, str]]:
    return [(step.attacker, step.made_on, step.config.name) for step in found.steps]


def test_quick_attacks_base_and_patched_model_and_asks_for_outputs() -> None:
    found = plan()
    assert steps(found) == [
        ("base", "base", "autopgd"),
        ("patched", "patched", "autopgd"),
        ("black-box", "patched", "square"),
        ("black-box", "patched", "noise"),
    ]
    assert {step.config.eps for step in found.steps} == {4 / 255}
    assert (found.steps[2].config.steps, found.probes, found.thorough) == (100, 32, False)


def test_a_surrogate_is_attacked_alone_and_with_the_base() -> None:
    found = plan("standard")
    assert [made_on for attacker, made_on, _ in steps(found) if attacker == "surrogate"] == [
        "surrogate",
        "base+surrogate",
    ]


def test_what_a_budget_cannot_run_is_left_out_and_said_and_what_is_named_is_refused() -> None:
    found = plan("standard", surrogate=False)
    assert "surrogate" not in found.attackers
    assert "surrogate" in found.notes[0]
    assert plan("standard", patched=False).attackers == ("base", "black-box")
    assert {step.made_on for step in plan("standard", patched=False).steps} == {"base"}
    with pytest.raises(SettingError, match="needs images"):
        plan(attackers=["surrogate"], surrogate=False)
    with pytest.raises(SettingError, match="needs a patch"):
        plan(attackers=["patched"], patched=False)
    with pytest.raises(SettingError, match="--attacker patched needs a patch"):
        plan(attackers=["base", "patched"], patched=False)
    with pytest.raises(SettingError, match="No attacker is named"):
        plan(attackers=[])
    with pytest.raises(SettingError, match="No attack is left to run"):
        plan(attackers=["patched"], attacks=(attack_named("square", norm="2"),), square=False)
    with pytest.raises(SettingError, match="black-bx"):
        plan(attackers=["black-bx"])
    with pytest.raises(SettingError, match="--budget"):
        plan("cheap")


@pytest.mark.parametrize(("patched", "white_box"), [(True, "patched"), (False, "base")])
def test_the_white_box_aims_at_classes_with_the_full_budget(patched: bool, white_box: str) -> None:
    found = plan("full", attacks=(attack_named("autopgd-dlr"),), patched=patched, surrogate=False)
    assert {step.attacker for step in found.steps if step.config.targets} == {white_box}


def test_square_as_it_was_named_is_that_of_the_black_box() -> None:
    own = attack_named("square", steps=7)
    assert steps(plan(attacks=(AUTOPGD, own))) == steps(plan())
    assert [step.config.steps for step in plan(attacks=(AUTOPGD, own)).steps if step.config.name == "square"] == [7]
    assert steps(plan(attackers=["base"], attacks=(own,))) == [("base", "base", "square")]


def test_who_attacks_with_answers_only_has_not_attacked_the_model_itself() -> None:
    only = plan(attacks=(attack_named("square"),))
    assert only.attackers == ("black-box",)
    assert plan(attackers=["patched"], attacks=(attack_named("noise"),)).attackers == ()
    assert plan(attackers=["patched"], attacks=(attack_named("noise"), AUTOPGD)).attackers == ("patched",)


def test_where_square_cannot_be_made_the_black_box_does_without_and_says_so() -> None:
    found = plan(square=False)
    assert [step.config.name for step in found.steps if step.attacker == "black-box"] == ["noise"]
    assert "Square" in found.notes[0]


def test_something_has_to_be_run() -> None:
    with pytest.raises(SettingError, match="No attack"):
        plan(attacks=())


def test_full_aims_at_classes_too() -> None:
    names, restarts = name_attacks(None, "full", classes=10)
    attacks = [attack_named(name, **restarts) for name in names]
    aimed = [step for step in plan("full", attacks=attacks).steps if step.config.targets]
    assert [(step.made_on, step.config.name, step.config.targets) for step in aimed] == [("patched", "autopgd-dlr", 9)]
    assert {step.config.restarts for step in aimed} == {5}
    assert not any(step.config.targets for step in plan("full", attacks=attacks, classes=3).steps)


def test_names_of_attacks() -> None:
    assert name_attacks(None, "quick", classes=10) == (("autopgd",), {})
    assert name_attacks(["fgsm", "all"], "quick", classes=10)[0] == ("fgsm", *(n for n in ALL_ATTACKS if n != "fgsm"))
    assert "autopgd-dlr" not in name_attacks(["all"], "quick", classes=2)[0], "it compares the first with the third"
    assert name_attacks(["autopgd-dlr"], "quick", classes=2)[0] == ("autopgd-dlr",), "named, it is refused, not dropped"


def test_no_budget_saves_iterations() -> None:
    for budget in BUDGETS:
        names, restarts = name_attacks(None, budget, classes=10)
        assert all(attack_named(name, **restarts).steps == attack_named(name).steps for name in names)


def test_a_time_is_written_as_precisely_as_it_is_known() -> None:
    assert [written(seconds) for seconds in (0.2, 41.4, 200, 7000)] == ["1 s", "41 s", "3 min", "1.9 h"]
