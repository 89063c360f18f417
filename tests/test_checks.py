"""The twelve checks: judgement on figures made by hand, and on real models that are broken on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken import BROKEN
from hypothesis import given, settings
from hypothesis import strategies as st

import fixpatch
from fixpatch.arena import Run, enter
from fixpatch.attackchecks import PROBED
from fixpatch.checks import judge, verdict
from fixpatch.data import ImageSet
from fixpatch.evidence import Evidence
from fixpatch.models import Base, as_base
from fixpatch.patches import Patch, load_patch
from fixpatch.probes import Probes, are_probabilities, gives_base_back, look_at_outputs, measure_probes
from fixpatch.results import Listener, Rate
from fixpatch.scores import OPEN, PASS, WARN, Check
from fixpatch.threats import AttackConfig, attack_named
from fixpatch.variations import eps_sweep, probe_config, probe_cost, probe_runs, unbounded

N = 400
ATTACK = attack_named("autopgd", eps="40/255", steps=12)
BRIEF = attack_named("autopgd", eps="40/255", steps=7)


def right(count: int, n: int = N) -> np.ndarray:
    """Correctness with the first `count` of `n` images right."""
    return np.arange(n) < count


def run_of(attacker: str, made_on: str, base: int, patch: int, attack: str = "autopgd") -> Run:
    return Run(attacker, made_on, attack_named(attack), {"base": right(base), "patch": right(patch)}, 0)


def healthy_probes(**changes: Any) -> Probes:
    standing = {"attacked": 30, "unbounded": 0, "pgd": 31, "fgsm": 45, "longer": 30, "restarted": 29}
    plain = Probes(
        n=100,
        config=attack_named("autopgd"),
        clean=right(90, 100),
        eps=(0.01, 0.02, 0.03, 0.06, 0.12),
        by_eps=tuple(right(count, 100) for count in (75, 55, 30, 10, 0)),
        **{name: right(count, 100) for name, count in standing.items()},
        blind=0,
        probabilities=False,
        saturated=8,
        caught=8,
        faithful=True,
        again={"as evaluated": right(60, 100), "another seed": right(59, 100), "half the eps": right(70, 100)},
        outside=0,
        curves=(),
    )
    return replace(plain, **changes)


def healthy(**changes: Any) -> Evidence:
    """A patch whose figure every check believes."""
    runs = (
        run_of("base", "base", base=0, patch=240),
        run_of("patched", "patched", base=200, patch=120),
        run_of("black-box", "patched", base=300, patch=180, attack="square"),
        run_of("black-box", "patched", base=380, patch=350, attack="noise"),
    )
    plain = Evidence(
        clean={"base": right(380), "patch": right(360)},
        runs=runs,
        worst=Rate.of(right(120)),
        classes=10,
        probes=healthy_probes(),
        overlap=0,
        trained_with=("autopgd",),
    )
    return replace(plain, **changes)


def check(number: int, evidence: Evidence) -> Check:
    return judge(evidence)[number - 1]


def runs_without(*attackers: str) -> tuple[Run, ...]:
    return tuple(run for run in healthy().runs if run.attacker not in attackers)


def healthy_but(attacker: str, **changes: Any) -> Evidence:
    """The same with another run of one attacker."""
    return healthy(runs=(*runs_without(attacker), run_of(attacker, **changes)))


def probed(**changes: Any) -> Evidence:
    return healthy(probes=healthy_probes(**changes))


def alone(**changes: Any) -> Evidence:
    """The base without a patch."""
    runs = (
        Run("base", "base", ATTACK, {"base": right(0)}, 0),
        Run("black-box", "base", ATTACK, {"base": right(90)}, 0),
    )
    plain = Evidence(
        {"base": right(380)}, runs, Rate.of(right(0)), 10, probes=healthy_probes(again=None, faithful=None)
    )
    return replace(plain, **changes)


def test_a_figure_with_nothing_against_it_passes() -> None:
    checks = judge(healthy())
    assert [each.number for each in checks] == list(range(1, 13))
    assert {each.name: each.verdict for each in checks} == dict.fromkeys((each.name for each in checks), PASS)
    assert verdict(checks, ("base", "patched", "black-box")) == PASS


FAULTS = [
    (1, healthy_but("base", made_on="base", base=30, patch=240), "autopgd leaves the base 7.9 %"),
    (
        2,
        healthy_but("black-box", made_on="patched", base=0, patch=118, attack="square"),
        "black-box breaks 2 images of 400",
    ),
    (3, probed(pgd=right(50, 100)), "FGSM breaks 5 images more"),
    (3, probed(by_eps=tuple(right(count, 100) for count in (75, 40, 42, 10, 0))), "2 images come back"),
    (3, probed(unbounded=right(20, 100)), "with no bound on eps 20.0 % stand"),
    (4, probed(longer=right(15, 100)), "15.0 % after twice the iterations"),
    (4, probed(restarted=right(15, 100)), "15.0 % after twice the restarts"),
    (5, probed(blind=1), "No gradient at 1 image of 100"),
    (5, probed(probabilities=True), "probabilities"),
    (5, healthy(unrest=0.5), "random answers"),
    (6, healthy(runs=(*healthy().runs, replace(healthy().runs[0], outside=2))), "2 images left the ball"),
    (7, healthy(overlap=3), "trained on 3 of these 400 images"),
    (8, probed(faithful=False), "not the base's"),
    (9, healthy(worst=Rate.of(right(100, 200))), "200 images"),
    (10, healthy(trained_with=("autopgd", "square")), "autopgd, square"),
    (11, probed(caught=0), "blind"),
    (12, healthy_but("base", made_on="base", base=0, patch=362), "2 images more right under attack"),
    (12, probed(again={"as evaluated": right(60, 100), "another seed": right(54, 100)}), "6 images fewer"),
    (12, probed(again={"as evaluated": right(60, 100), "half the eps": right(50, 100)}), "10 images fewer"),
]


@pytest.mark.parametrize(("number", "evidence", "said"), FAULTS, ids=[f"{n}-{said[:24]}" for n, _, said in FAULTS])
def test_each_fault_is_flagged_by_its_check_alone(number: int, evidence: Evidence, said: str) -> None:
    checks = judge(evidence)
    assert [each.number for each in checks if each.verdict == WARN] == [number]
    assert said in checks[number - 1].finding
    assert verdict(checks, ("base", "patched", "black-box")) == WARN


UNKNOWN = [
    (1, healthy(runs=runs_without("base"))),
    (1, healthy_but("base", made_on="base", base=0, patch=240, attack="fgsm")),
    (2, healthy(runs=runs_without("patched"))),
    (2, healthy(runs=runs_without("base", "black-box"))),
    *((number, healthy(probes=None)) for number in (3, 4, 5, 8, 11, 12)),
    (6, healthy(runs=())),
    (7, healthy(overlap=None)),
    *((number, alone()) for number in (7, 8, 10, 12)),
    *((number, healthy(unrest=0.5)) for number in (4, 8)),
    (9, healthy(worst=Rate.of([]))),
    (10, healthy(trained_with=None)),
    (10, healthy(runs=runs_without("patched", "black-box"))),
    (11, probed(saturated=0, caught=0)),
    (12, probed(again=None)),
]


@pytest.mark.parametrize(("number", "evidence"), UNKNOWN)
def test_what_was_not_measured_is_not_established(number: int, evidence: Evidence) -> None:
    assert check(number, evidence).verdict == OPEN


def test_one_image_is_luck_and_one_in_five_hundred_of_many_too() -> None:
    assert check(2, healthy_but("black-box", made_on="patched", base=0, patch=119)).verdict == PASS
    assert check(3, probed(pgd=right(46, 100))).verdict == PASS
    assert check(12, healthy_but("base", made_on="base", base=0, patch=361)).verdict == PASS
    many = {"base": right(5000, 5000), "patch": right(5000, 5000)}
    patched = Run("patched", "patched", ATTACK, {"base": right(0, 5000), "patch": right(100, 5000)}, 0)
    for left, expected in ((90, PASS), (89, WARN)):
        square = Run("black-box", "patched", ATTACK, {"base": right(0, 5000), "patch": right(left, 5000)}, 0)
        assert check(2, healthy(clean=many, runs=(patched, square))).verdict == expected


def test_what_so_few_images_can_show_is_told() -> None:
    few = {"n": 32, "clean": right(30, 32), "pgd": right(10, 32), "fgsm": right(12, 32)}
    level = {"by_eps": (right(10, 32),) * 5, "unbounded": right(0, 32), "longer": right(10, 32)}
    converged = check(4, probed(**few, **level, attacked=right(10, 32), restarted=right(10, 32)))
    low = Rate.of(right(10, 32)).low
    first = next(drop for drop in range(11) if (10 - drop) / 32 < low)
    assert converged.numbers["seen_from"] == first / 32 and f"from {first} images" in converged.finding
    assert converged.numbers["missed"] == Rate.of(right(first - 1, 32)).high
    for drop, expected in ((first - 1, PASS), (first, WARN)):
        left = level | {"longer": right(10 - drop, 32)}
        found = check(4, probed(**few, **left, attacked=right(10, 32), restarted=right(10, 32)))
        assert found.verdict == expected
    none = check(4, probed(**few, **level | {"longer": right(0, 32)}, attacked=right(0, 32), restarted=right(0, 32)))
    assert (none.numbers["seen_from"], none.verdict) == (None, PASS) and "nothing is left" in none.finding
    stronger = check(3, probed(**few | {"fgsm": right(10, 32)}, **level))
    assert (stronger.numbers["seen_from"], stronger.numbers["images"]) == (2 / 32, 32)
    assert stronger.numbers["missed"] == Rate.of(right(1, 32)).high
    assert "on 32 a difference is seen from 2 images (6.2 %) on" in stronger.finding


def test_a_larger_ball_does_not_make_up_for_a_masked_attack_in_the_smaller() -> None:
    masked = run_of("patched", "patched", base=200, patch=340)
    wider = run_of("patched", "patched", base=100, patch=100, attack="autopgd-16")
    found = check(2, healthy(runs=(*runs_without("patched"), masked, wider)))
    assert (found.verdict, found.numbers["only black-box"]) == ("warn", 160)


def test_what_the_probes_break_and_the_table_does_not_is_found() -> None:
    feeble = run_of("patched", "patched", base=200, patch=358, attack="deepfool")
    others = (run_of("base", "base", base=0, patch=358),)
    found = check(2, healthy(runs=(*others, feeble), rows=np.arange(100)))
    assert found.verdict == "warn"
    assert "of the checks" in found.finding
    assert found.numbers[f"only {PROBED}"] == 60, "90 are right when clean, 30 stand under AutoPGD"
    strong = run_of("patched", "patched", base=200, patch=20)
    assert check(2, healthy(runs=(*others, strong), rows=np.arange(100))).verdict == "pass"


def test_the_base_alone_is_judged_by_the_checks_that_concern_it() -> None:
    checks = judge(alone())
    assert [each.number for each in checks if each.verdict == OPEN] == [7, 8, 10, 12]
    assert verdict(checks, ("base", "black-box"), patched=False) == PASS


@pytest.mark.parametrize(
    ("attackers", "evidence", "expected"),
    [
        (("base",), healthy(runs=runs_without("patched", "black-box")), OPEN),
        (("base",), healthy_but("base", made_on="base", base=30, patch=240), OPEN),
        (("base", "black-box"), healthy(runs=runs_without("patched")), OPEN),
        (("patched",), healthy(runs=runs_without("base", "black-box"), trained_with=("pgd",)), OPEN),
        (("base", "patched"), healthy(probes=None), OPEN),
        (("base", "patched"), probed(again=None), PASS),
        (("base", "patched"), probed(blind=1), WARN),
    ],
)
def test_no_verdict_passes_on_what_was_not_shown(attackers: Sequence[str], evidence: Evidence, expected: str) -> None:
    assert verdict(judge(evidence), attackers) == expected


def test_an_attack_that_was_trained_on_is_the_same_with_another_radius() -> None:
    larger = healthy(runs=(run_of("patched", "patched", 0, 100, attack="autopgd-16"),))
    assert check(10, larger).verdict == WARN


@settings(max_examples=25)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_findings_are_sentences_whatever_was_measured(clean: list[bool], data: st.DataObject) -> None:
    n = len(clean)
    some = st.lists(st.booleans(), min_size=n, max_size=n).map(np.array)
    draw = {name: data.draw(some) & np.array(clean) for name in ("attacked", "unbounded", "pgd", "fgsm")}
    probes = healthy_probes(
        n=n,
        clean=np.array(clean),
        by_eps=tuple(data.draw(some) for _ in range(5)),
        longer=draw["attacked"] & data.draw(some),
        restarted=draw["attacked"] & data.draw(some),
        again={"as evaluated": data.draw(some), "another seed": data.draw(some)},
        **draw,
    )
    run = Run("patched", "patched", ATTACK, {"base": data.draw(some), "patch": data.draw(some)}, 0)
    found = judge(healthy(clean={"base": np.array(clean), "patch": np.array(clean)}, runs=(run,), probes=probes))
    for each in found:
        assert each.verdict in (PASS, WARN, OPEN)
        assert each.finding.endswith(".") and "nan" not in each.finding and len(each.finding) < 200
        assert all(value is None or np.isfinite(value) for value in each.numbers.values())


def test_an_attack_is_varied_inside_the_input_range() -> None:
    for config in (attack_named("autopgd", eps=0.4), attack_named("pgd", eps=0.5, norm="2"), attack_named("autopgd")):
        radii = [each.eps for each in eps_sweep(config)]
        assert radii == sorted(set(radii)) and config in eps_sweep(config)
        assert unbounded(config, 64).eps == (1.0 if config.norm == "inf" else 8.0)
        crossed = {round(each.eps_step / each.eps, 9) for each in eps_sweep(config)}
        assert crossed == {round(config.eps_step / config.eps, 9)}, "a smaller ball would be crossed in one step"


def test_the_attack_that_is_varied_iterates_and_is_untargeted() -> None:
    dlr = attack_named("autopgd-dlr", eps="4/255")
    assert probe_config([attack_named("fgsm"), replace(dlr, targets=9), dlr]) == dlr
    assert probe_config([attack_named("cw", eps="4/255")]) == attack_named("autopgd", eps="4/255")
    assert probe_config([]) == attack_named("autopgd")


def test_the_cost_is_that_of_every_image_standing() -> None:
    config = attack_named("autopgd")
    # Five radii, no bound, PGD, other starts: 26 passes each; FGSM 2, twice the iterations 51, two looks at gradients.
    assert probe_cost(config, 32, thorough=False, patched=True) == 32 * (8 * 26 + 2 + 51 + 2)
    assert probe_runs(config, 32, thorough=False, patched=True) == 32 * 10
    assert probe_runs(config, 32, thorough=True, patched=False) == 32 * 12
    assert probe_runs(config, 32, thorough=True, patched=True) == 32 * (12 + 9)
    assert probe_runs(attack_named("autopgd", eps=0.5), 1, thorough=False, patched=True) == 8, "two radii are the whole"


class Counting(Listener):
    def __init__(self) -> None:
        self.done = 0

    def advance(self, steps: int) -> None:
        self.done += steps


def measure(
    base: Base, patch: Patch | None, images: ImageSet, attack: AttackConfig, *, queries: int = 0, thorough: bool = False
) -> tuple[Evidence, int]:
    """Evaluate with the white box, Square and the probes; return what the checks are shown, and the images counted."""
    counting = Counting()
    arena = enter(base, patch, images)
    target = arena.target("patch" if patch else "base")
    runs = [arena.attack("patched" if patch else "base", target, attack)]
    if queries:
        runs.append(arena.attack("black-box", target, attack_named("square", eps=attack.eps, steps=queries)))
    probes = measure_probes(replace(arena, listener=counting), attack, thorough=thorough)
    clean, defended = {name: model.clean for name, model in arena.models.items()}, arena.defended
    worst = Rate.of(np.all([defended.clean, *(run.right[defended.name] for run in runs)], axis=0))
    return Evidence(clean, runs, worst, base.classes, defended.unrest, probes), counting.done


@pytest.mark.slow
def test_what_the_evaluation_made_is_not_made_again(base: Base, patch_file: Path, unseen: ImageSet) -> None:
    counting = Counting()
    arena = replace(enter(base, load_patch(patch_file), unseen.take(range(0, 40, 10))), listener=counting)
    fallen = {name: np.zeros(4, bool) for name in arena.models}
    known = Run("patched", "patched", BRIEF, fallen, 0)
    probes = measure_probes(arena, BRIEF, thorough=False, known=known)
    assert not probes.attacked.any() and not probes.longer.any() and not probes.restarted.any(), "nothing was left"
    assert counting.done == probe_runs(BRIEF, 4, thorough=False, patched=True)


@pytest.fixture(scope="module")
def honest(model_file: Path, patch_file: Path, unseen: ImageSet) -> tuple[Evidence, int]:
    return measure(fixpatch.load(model_file), load_patch(patch_file), unseen.take(range(0, 40, 5)), BRIEF)


def test_an_honest_patch_is_not_accused(honest: tuple[Evidence, int]) -> None:
    checks = judge(honest[0])
    assert {each.number: each.finding for each in checks if each.verdict == WARN}.keys() <= {1, 4, 9}
    assert {each.number for each in checks if each.verdict == PASS} >= {3, 5, 6, 8, 11}


def test_probes_are_counted_and_drawn(honest: tuple[Evidence, int]) -> None:
    probes, done = honest[0].probes, honest[1]
    assert probes is not None and probes.n == 8
    assert done == probe_runs(BRIEF, 8, thorough=False, patched=True)
    (curve,) = probes.curves
    assert (curve.attacker, curve.made_on, curve.setting, curve.n) == ("patched", "patched", "eps", 8)
    assert curve.values == pytest.approx([0, 10 / 255, 20 / 255, 40 / 255, 80 / 255, 160 / 255])
    assert curve.patch[0] == Rate.of(probes.clean) and curve.patch[3] == Rate.of(probes.attacked)
    assert len(curve.base) == 6
    assert (probes.attacked >= probes.longer).all() and (probes.attacked >= probes.restarted).all()


def test_a_patch_that_is_not_the_base_at_delta_zero_is_found(base: Base, patch_file: Path, unseen: ImageSet) -> None:
    patch = load_patch(patch_file)
    assert gives_base_back(base, patch, unseen)
    weights = {path: dict(each) for path, each in patch.content.weights.items()}
    weights["res_block_1"]["up/kernel"] = np.full_like(weights["res_block_1"]["up/kernel"], np.inf)
    endless = Patch(replace(patch.content, weights=weights))
    assert not gives_base_back(base, endless, unseen), "zero times infinity is no number"


def test_rounded_features_have_no_gradient(base: Base, unseen: ImageSet) -> None:
    arena = enter(as_base(BROKEN["quantised"](base.model), input_range=(0, 1)), None, unseen.take(range(0, 40, 5)))
    found = check(5, alone(probes=healthy_probes(n=8, **look_at_outputs(arena))))
    assert found.verdict == WARN and "No gradient at 8 images of 8" in found.finding


def test_probabilities_are_no_logits(base: Base, unseen: ImageSet) -> None:
    x, broken = unseen.to_range((0, 1)), as_base(BROKEN["as probabilities"](base.model))
    assert are_probabilities(np.asarray(broken.logits(x, training=False)))
    assert not are_probabilities(np.asarray(base.logits(x, training=False)))


def test_random_answers_are_found_by_asking_twice(base: Base, unseen: ImageSet) -> None:
    arena = enter(as_base(BROKEN["at random"](base.model), input_range=(0, 1)), None, unseen.take(range(4)))
    assert "random answers" in check(5, alone(unrest=arena.defended.unrest)).finding


FLAGGED = {
    "quantised": {1, 2, 5},
    "saturated": {1, 2, 5},
    "at random": {5},
    "as probabilities": {5},
    "misleading": {1, 2},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "numbers"), FLAGGED.items())
def test_every_broken_defence_is_flagged(name: str, numbers: set[int], base: Base, unseen: ImageSet) -> None:
    broken = as_base(BROKEN[name](base.model), input_range=(0, 1))
    evidence, _ = measure(broken, None, unseen.take(range(0, 40, 3)), ATTACK, queries=100)
    assert {each.number for each in judge(evidence) if each.verdict == WARN} >= numbers
    assert verdict(judge(evidence), ("base", "black-box"), patched=False) == WARN


@pytest.mark.slow
def test_a_thorough_look_makes_the_pairs_again(base: Base, patch_file: Path, unseen: ImageSet) -> None:
    evidence, done = measure(base, load_patch(patch_file), unseen, ATTACK, queries=100, thorough=True)
    probes = evidence.probes
    assert probes is not None and probes.again is not None
    assert done == probe_runs(ATTACK, 40, thorough=True, patched=True)
    assert [(curve.made_on, curve.setting) for curve in probes.curves] == [
        (made_on, setting) for made_on in ("patched", "base") for setting in ("eps", "steps")
    ]
    assert [curve.values for curve in probes.curves if curve.setting == "steps"] == [(3.0, 6.0, 12.0, 24.0)] * 2
    assert set(probes.again) == {"as evaluated", "another seed", "half the eps"}
    assert {each.number for each in judge(evidence) if each.verdict == WARN} <= {1, 4, 9}
    assert check(12, evidence).verdict == PASS
