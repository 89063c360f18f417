"""Settings check themselves, and say what they expected."""

from __future__ import annotations

import contextlib
import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixpatch.config import MODULES, RECIPE, DataConfig, FixerConfig, TrainingConfig, build_recipe
from fixpatch.errors import SettingError
from fixpatch.parsing import parse_fraction, require_choice, require_range
from fixpatch.threats import PAPER_ATTACKS, AttackConfig, attack_named

HUGE = 10**400  # an integer that no float holds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.03", 0.03),
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("1e-2", 0.01),
        ("-1", -1.0),
        ("0.5/2", 0.25),
        ("1e-999", 0.0),
        (0.25, 0.25),
        (1, 1.0),
    ],
)
def test_number_is_read(text: str | float, value: float) -> None:
    assert parse_fraction(text, "--eps") == value


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9))
def test_fraction_is_the_quotient(top: int, bottom: int) -> None:
    assert parse_fraction(f"{top}/{bottom}", "--eps") == top / bottom


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "abc", "8/", "/255", "1/2/3", "8/0", "0/0", "0.03,", "8:255", "0x10", "50%"),
        *("nan", "inf", "-inf", "1e400", "1/1e-400", "1e999999999", "1" * 5000, "nan/1", "1/inf/"),
        *(math.nan, math.inf, HUGE, None, [1], b"8/255"),
    ],
    ids=lambda text: repr(text)[:20],
)
def test_anything_else_is_refused(text: Any) -> None:
    with pytest.raises(SettingError) as caught:
        parse_fraction(text, "--eps")
    assert caught.value.message == f"--eps is '{text}', not a number."
    assert caught.value.hint == "Write 0.03 or 8/255."


@given(st.text(max_size=12))
def test_any_text_is_a_finite_number_or_refused(text: str) -> None:
    with contextlib.suppress(SettingError):
        assert math.isfinite(parse_fraction(text, "--eps"))


def test_unknown_choice_lists_the_known_ones() -> None:
    with pytest.raises(SettingError, match=r"--x is 'reed', which .* Did you mean 'red'\? Known: red, blue\."):
        require_choice("reed", ("red", "blue"), "--x")
    with pytest.raises(SettingError, match=r"does not know\. Known: red, blue\.$"):
        require_choice("", ("red", "blue"), "--x")


@pytest.mark.parametrize("value", [0, 1, 0.5])
def test_range_takes_its_ends(value: float) -> None:
    require_range(value, 0, 1, "--delta")


@pytest.mark.parametrize(
    ("value", "high", "message"),
    [
        (1.5, 1, r"--delta is 1\.5; it has to be from 0 to 1\."),
        (-1e-9, 1, r"--delta is -1e-09; it has to be from 0 to 1\."),
        (math.nan, 1, r"--delta is nan; it has to be from 0 to 1\."),
        (-1, math.inf, r"--delta is -1; it has to be a number of at least 0\."),
        (math.inf, math.inf, r"--delta is inf; it has to be a number of at least 0\."),
        (HUGE, 1, r"--delta is beyond 1e308; it has to be from 0 to 1\."),
        (-HUGE, math.inf, r"--delta is beyond -?1e308; it has to be a number of at least 0\."),
        (2**31, 2**31 - 1, r"--delta is 2147483648; it has to be from 0 to 2147483647\."),
    ],
    ids=lambda value: str(value)[:12],
)
def test_value_outside_its_range_is_refused(value: float, high: float, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        require_range(value, 0, high, "--delta")


REFUSED = [
    (FixerConfig, "module", "fixr", "--module"),
    *((FixerConfig, "similarity", value, "--similarity") for value in ("dot", "dot-product")),
    (FixerConfig, "activation", "relu", "--activation"),
    (FixerConfig, "final_relu", "sometimes", "--final-relu"),
    (FixerConfig, "initializer", "ones", "--initializer"),
    *((FixerConfig, "delta", value, "--delta") for value in (-0.1, 1.1, math.nan, math.inf, HUGE)),
    *((FixerConfig, "compression", value, "--compression") for value in (0, -1, math.nan, math.inf)),
    (AttackConfig, "name", "autopdg", "--attack"),
    (AttackConfig, "attack_labels", "wrong", "--attack-labels"),
    (AttackConfig, "loss", "ce", "--loss"),
    (AttackConfig, "precision", "float16", "--precision"),
    (AttackConfig, "norm", "1", "--norm"),
    *((AttackConfig, "targets", value, "--targets") for value in (-1, math.inf)),
    (TrainingConfig, "precision", "double", "--precision"),
    (TrainingConfig, "attacker", "black-box", "--attacker"),
    *((AttackConfig, "eps", value, "--eps") for value in (0, -0.1, 1.0001, math.nan, math.inf, HUGE)),
    *((AttackConfig, "eps_step", value, "--eps-step") for value in (0, -0.1, 1.0001, math.nan, HUGE)),
    *((AttackConfig, "steps", value, "--steps") for value in (0, -1, math.inf)),
    *((AttackConfig, "restarts", value, "--restarts") for value in (-1, math.inf)),
    (DataConfig, "augment", "shfit", "--augment"),
    *((DataConfig, "views", value, "--views") for value in (0, -1, math.inf)),
    *((DataConfig, "holdout", value, "--holdout") for value in (-0.1, 1, 1.5, math.nan, HUGE)),
    *((DataConfig, "group_by", value, "--group-by") for value in ("(", "[a", "*", "(?P<a>x)(?P<a>y)")),
    (TrainingConfig, "distill_target", "same", "--distill-target"),
    *((TrainingConfig, "epochs", value, "--epochs") for value in (0, -1, math.inf)),
    *((TrainingConfig, "batch_size", value, "--batch-size") for value in (0, math.inf)),
    *((TrainingConfig, "learning_rate", value, "--learning-rate") for value in (0, -1, math.nan, math.inf)),
    *((TrainingConfig, "distill_weight", value, "--distill-weight") for value in (-1, math.nan, math.inf)),
    *((TrainingConfig, "patience", value, "--patience") for value in (0, math.inf)),
    *((TrainingConfig, "seed", value, "--seed") for value in (-1, 2**31, HUGE)),
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "flag"), REFUSED, ids=lambda part: getattr(part, "__name__", repr(part)[:16])
)
def test_setting_names_its_flag_when_it_is_refused(kind: type, name: str, value: Any, flag: str) -> None:
    with pytest.raises(SettingError) as caught:
        kind(**{name: value})
    assert caught.value.message.startswith(f"{flag} ")


def test_every_setting_of_a_dataclass_can_be_refused() -> None:
    kinds = (FixerConfig, AttackConfig, DataConfig, TrainingConfig)
    every = {(kind, field.name) for kind in kinds for field in fields(kind)}
    assert {(kind, name) for kind, name, _, _ in REFUSED} == every


def test_eps_error_explains_its_unit() -> None:
    with pytest.raises(SettingError, match=r"--eps is 8; .* fraction of the input range: 8/255"):
        attack_named("autopgd", eps="8")


@pytest.mark.parametrize("name", [name for name in PAPER_ATTACKS if name != "cw"])  # which takes no step
def test_step_scales_with_eps(name: str) -> None:
    paper = attack_named(name)
    half = attack_named(name, eps=paper.eps / 2)
    assert half.eps_step == pytest.approx(paper.eps_step / 2)
    assert (half.steps, half.restarts, half.attack_labels) == (paper.steps, paper.restarts, paper.attack_labels)


def test_papers_settings() -> None:
    found = {name: attack_named(name) for name in PAPER_ATTACKS}
    assert {name: (round(config.eps * 255), config.steps) for name, config in found.items()} == {
        "autopgd": (8, 25),
        "autopgd-16": (16, 25),
        "fgsm": (8, 1),
        "pgd": (8, 50),
        "cw": (8, 25),
    }
    assert found["fgsm"].eps_step == found["fgsm"].eps


def test_own_step_is_not_scaled() -> None:
    assert attack_named("pgd", eps="1/2", eps_step=0.25).eps_step == 0.25
    assert attack_named("pgd", eps_step="1/4").eps_step == 0.25
    with pytest.raises(SettingError, match="--eps-step is 'far', not a number"):
        attack_named("pgd", eps_step="far")


def test_scaled_step_stays_within_the_range() -> None:
    assert attack_named("fgsm", eps=1).eps_step == 1.0
    assert 0 < attack_named("pgd", eps=5e-324).eps_step <= 1


def test_none_stands_for_the_default() -> None:
    assert attack_named("pgd", eps=None, steps=None) == attack_named("pgd")
    assert build_recipe(["a"], eps=None, epochs=None, attacker=None) == build_recipe(["a"])


def test_recipe_sorts_settings_into_their_places() -> None:
    recipe = build_recipe(
        ["a", "b"], attack="pgd", eps="1/255", attack_labels="predicted", delta=0.5, views=7, epochs=2, seed=3
    )
    assert recipe.splits == ("a", "b")
    assert (recipe.attack.name, recipe.attack.eps, recipe.attack.attack_labels) == ("pgd", 1 / 255, "predicted")
    assert (recipe.fixer.delta, recipe.data.views, recipe.training.epochs, recipe.training.seed) == (0.5, 7, 2, 3)


def test_attacks_take_turns_over_the_views_with_one_budget() -> None:
    recipe = build_recipe(["a"], attack="pgd, fgsm", eps="1/255", steps=3)
    assert recipe == build_recipe(["a"], attack=("pgd", "fgsm"), eps="1/255", steps=3)
    assert [(attack.name, attack.eps, attack.steps) for attack in recipe.attacks] == [
        ("pgd", 1 / 255, 3),
        ("fgsm", 1 / 255, 1),
    ]
    names = "autopgd,autopgd-dlr,pgd,fgsm"
    assert build_recipe(["a"], attack=names).data.views == 4, "a view for each attack"
    assert build_recipe(["a"], attack="pgd,fgsm").data.views == 3, "the default has enough"
    with pytest.raises(SettingError, match=r"--views is 3 with 4 attacks.*Pass --views 4 or more"):
        build_recipe(["a"], attack=names, views=3)
    with pytest.raises(SettingError, match="names an attack twice"):
        build_recipe(["a"], attack="fgsm,pgd,fgsm")
    with pytest.raises(SettingError, match="--attack is ''"):
        build_recipe(["a"], attack="fgsm,")


def test_pairs_are_made_on_the_base_or_on_the_patched_model_which_has_a_view_each_epoch() -> None:
    assert build_recipe(["a"]).training.attacker == "base"
    moving = build_recipe(["a"], attacker="patched", attack="pgd,fgsm")
    assert (moving.training.attacker, moving.data.views) == ("patched", 1)
    default = build_recipe(["a"])
    assert moving.training.epochs == default.training.epochs * default.data.views, "as many steps"
    assert build_recipe(["a"], attacker="patched", epochs=7).training.epochs == 7
    with pytest.raises(SettingError, match=r"--views is 3 with --attacker patched.*Leave it out"):
        build_recipe(["a"], attacker="patched", views=3)
    with pytest.raises(SettingError, match=r"--attacker of a training is 'surrogate'.*Known: base, patched"):
        build_recipe(["a"], attacker="surrogate")


def test_precision_is_that_of_attack_and_training() -> None:
    recipe = build_recipe(["a"], precision="bfloat16", loss="dlr")
    assert (recipe.attack.precision, recipe.training.precision) == ("bfloat16", "bfloat16")
    assert (recipe.attack.loss, attack_named("fgsm", loss="dlr").loss) == ("dlr", "dlr")
    assert (build_recipe(["a"]).attack.precision, build_recipe(["a"]).training.precision) == ("float32", "float32")


@pytest.mark.parametrize(("name", "meant"), [("epoch", "epochs"), ("epss", "eps"), ("restart", "restarts")])
def test_unknown_setting_is_refused(name: str, meant: str) -> None:
    with pytest.raises(SettingError, match=rf"There is no setting '{name}'\. Did you mean '{meant}'\?"):
        build_recipe(["a"], **{name: 1})


def test_setting_unlike_any_is_refused_without_a_guess() -> None:
    with pytest.raises(SettingError) as caught:
        build_recipe(["a"], zzzzzz=1)
    assert caught.value.hint == ""


def test_every_name_of_a_recipe_is_accepted() -> None:
    values: dict[str, Any] = {"attack": "pgd", "eps": 0.1, "eps_step": 0.1, "attack_labels": "true", "steps": 1}
    values |= {"restarts": 1, "group_by": "a", "loss": "dlr", "norm": "inf", "targets": 0}
    for kind in (FixerConfig, DataConfig, TrainingConfig):
        values |= {field.name: field.default for field in fields(kind) if field.name not in values}
    assert set(values) == RECIPE
    for name, kind in MODULES.items():
        foreign = {field.name for field in fields(FixerConfig)} - {"module", *kind.settings}
        own = {key: value for key, value in values.items() if key not in foreign}
        assert build_recipe(["a"], **own | {"module": name}).attack.name == "pgd"


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("fgsm", "steps", 50),
        ("fgsm", "eps_step", 0.01),
        ("cw", "restarts", 5),
        ("cw", "eps_step", 0.1),
        ("cw", "loss", "dlr"),
    ],
)
def test_what_an_attack_does_not_use_is_not_recorded(name: str, field: str, value: float) -> None:
    assert attack_named(name, **{field: value}) == attack_named(name)
    with pytest.raises(SettingError):
        attack_named(name, **{field: "x" if field == "loss" else -1})


def test_autopgd_always_starts_at_random() -> None:
    with pytest.raises(SettingError, match="--restarts"):
        attack_named("autopgd", restarts=0)
    assert attack_named("pgd", restarts=0).restarts == 0
