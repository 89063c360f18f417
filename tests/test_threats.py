"""Attacks by name and budget: what each takes, and how what it cannot take is refused."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from fixpatch.errors import SettingError
from fixpatch.threats import ALL_ATTACKS, ATTACKERS, BUDGETS, NAMED_ATTACKS, TAKES, TUNED, AttackConfig, attack_named
from fixpatch.wording import describe_attack

OTHER = {"eps": 0.3, "eps_step": 0.2, "steps": 7, "restarts": 3, "loss": "dlr", "norm": "2", "targets": 2}


@pytest.mark.parametrize("name", NAMED_ATTACKS)
def test_an_attack_records_what_it_takes_and_nothing_else(name: str) -> None:
    assert tuple(OTHER) == TUNED or set(OTHER) == set(TUNED)
    config, usual = attack_named(name, **OTHER), attack_named(name)
    for field, value in OTHER.items():
        taken = field in TAKES.get(name, TUNED)
        step = name == "fgsm" and field == "eps_step"  # its one step is the radius
        assert getattr(config, field) == (0.3 if step else value if taken else getattr(usual, field)), field


@pytest.mark.parametrize("name", NAMED_ATTACKS)
@pytest.mark.parametrize(("field", "value"), [("norm", "1"), ("targets", -1), ("targets", math.nan), ("loss", "mse")])
def test_a_wrong_setting_is_refused_even_where_it_is_not_used(name: str, field: str, value: float | str) -> None:
    with pytest.raises(SettingError, match=f"--{field} is "):
        attack_named(name, **{field: value})


def test_unknown_attack_and_norm_say_what_is_known() -> None:
    with pytest.raises(SettingError, match=r"'deepfol'.*Did you mean 'deepfool'"):
        attack_named("deepfol")
    with pytest.raises(SettingError, match=r"--norm is '1'.*Known: inf, 2\."):
        AttackConfig(norm="1")


def test_radius_is_bounded_by_the_range_in_the_one_norm_only() -> None:
    assert attack_named("pgd", norm="2", eps=3).eps == 3
    for eps, norm in ((3, "inf"), (0, "2"), (-1, "2")):
        with pytest.raises(SettingError, match="--eps is "):
            attack_named("pgd", norm=norm, eps=eps)


def test_two_norm_has_its_own_usual_radius() -> None:
    assert (attack_named("pgd", norm="2").eps, attack_named("pgd").eps) == (0.5, 8 / 255)
    assert attack_named("pgd", norm="2").eps_step == pytest.approx(0.5 * 0.005 * 255 / 8)
    assert attack_named("pgd", norm=2) == attack_named("pgd", norm="2")
    assert attack_named("pgd", norm=math.inf) == attack_named("pgd")


def test_the_name_says_the_loss() -> None:
    assert attack_named("autopgd-dlr", loss="cross-entropy").loss == "dlr"
    assert attack_named("autopgd", loss="dlr").loss == "dlr"


def test_budgets_name_what_there_is() -> None:
    assert set(ALL_ATTACKS) <= set(NAMED_ATTACKS)
    for budget in BUDGETS.values():
        assert set(budget.attackers) <= set(ATTACKERS)
        assert set(budget.attacks) <= set(NAMED_ATTACKS)
    assert [budget.queries for budget in BUDGETS.values()] == [100, 1000, 5000]


@pytest.mark.parametrize("name", NAMED_ATTACKS)
@pytest.mark.parametrize("changes", [{}, {"eps": "2/255"}, {"norm": "2", "eps": 3}])
def test_the_usual_first_step_is_not_written(name: str, changes: dict[str, str | float]) -> None:
    assert "first step" not in describe_attack(**asdict(attack_named(name, **changes)))


def test_another_first_step_is_written() -> None:
    told = describe_attack(**asdict(attack_named("pgd", eps_step="2/255")))
    assert told == "pgd: l_inf eps 8/255, 50 steps, first step 2/255"
