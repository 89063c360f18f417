"""What an evaluation runs: which attacker makes which attack on which model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fixpatch.errors import SettingError
from fixpatch.parsing import require_choice
from fixpatch.threats import ALL_ATTACKS, ATTACKERS, BUDGETS, NAMED_ATTACKS, AttackConfig, Budget, attack_named

OUTPUTS_ONLY = ("square", "noise")
NEEDS_PATCH = ("surrogate", "patched")
NO_SQUARE = "Square did not run: in the 2-norm it needs square images of at least 10 x 10 pixels, else of 2 x 2"
NO_SURROGATE = "the attacker surrogate did not run: there were no images to train it on, and no second patch"
OWN_SURROGATE = "the attacker surrogate did not run: it trains a patch of its own, and what defends here is no patch"


@dataclass(frozen=True)
class Step:
    """One attack by one attacker on the model that it is made on (see `arena.Target`)."""

    attacker: str
    made_on: str
    config: AttackConfig


@dataclass(frozen=True)
class Plan:
    """All steps, in the order of the table.

    Attributes:
        budget: Its name.
        attackers: Those that run.
        probes: How many images those see; None for all.
        notes: What was left out, and why; what else a reader has to know who has not seen the run.
    """

    budget: str
    attackers: tuple[str, ...]
    steps: tuple[Step, ...]
    probes: int | None
    notes: tuple[str, ...] = ()

    @property
    def thorough(self) -> bool:
        """Whether the checks that cost most run too."""
        return self.budget != "quick"

    @property
    def made_on(self) -> tuple[str, ...]:
        """Every model that is attacked, once."""
        return tuple(dict.fromkeys(step.made_on for step in self.steps))


def make_plan(
    budget: str,
    attacks: Sequence[AttackConfig],
    attackers: Sequence[str] | None,
    *,
    classes: int,
    patched: bool,
    surrogate: bool,
    own: bool = False,
    square: bool = True,
) -> Plan:
    """Return the steps of an evaluation.

    Args:
        attackers: None takes those of the budget that can run.
        classes: Of the model: with few, an attack's loss may have no meaning.
        patched: Whether there is a defended model.
        surrogate: Whether there is a second patch, or images to train one on.
        own: Whether what defends is a classifier of its own and no patch.
        square: Whether Square can be made on the images; `black-box` does without where it cannot.

    Raises:
        SettingError: An unknown budget or attacker, or one that was named and cannot run, or no attack.
    """
    require_choice(budget, tuple(BUDGETS), "--budget")
    if not attacks:
        raise SettingError("No attack is named.", f"Known: {', '.join(NAMED_ATTACKS)}.")
    spent, notes = BUDGETS[budget], []
    if not square:
        notes.append(NO_SQUARE)
    if attackers is None:
        attackers = spent.attackers
        if patched and not surrogate and "surrogate" in attackers:
            notes.append(OWN_SURROGATE if own else NO_SURROGATE)
            attackers = [attacker for attacker in attackers if attacker != "surrogate"]
    else:
        require_attackers(attackers, patched=patched, surrogate=surrogate, own=own)
    chosen = [each for each in dict.fromkeys(attackers) if patched or each not in NEEDS_PATCH]
    steps = [step for each in chosen for step in _steps(each, list(attacks), spent, chosen, classes, patched)]
    steps = [step for step in steps if square or step.config.name != "square"]
    if not steps:  # Square is all that is ever left out
        raise SettingError(f"No attack is left to run. {NO_SQUARE}.", "Name another attack.")
    return Plan(budget, who_attacks(steps), tuple(steps), spent.probes, tuple(notes))


def who_attacks(steps: Sequence[Step]) -> tuple[str, ...]:
    """Return the attackers of the steps; `patched` only where one of its attacks uses what it has, the gradient."""
    blind = [step for step in steps if step.attacker == "patched" and step.config.name in OUTPUTS_ONLY]
    return tuple(dict.fromkeys(step.attacker for step in steps if step not in blind))


def name_attacks(names: Sequence[str] | None, budget: str, classes: int) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the attacks that `names` stands for, and the restarts that the budget gives where none are named.

    `all` stands for every way to search. What a model with few classes has no use for is left out unless it is named.
    """
    require_choice(budget, tuple(BUDGETS), "--budget")
    spent = BUDGETS[budget]
    listed = spent.attacks if names is None else names
    found = [each for name in listed for each in (ALL_ATTACKS if name == "all" else (name,))]
    asked = names or ()
    kept = tuple(name for name in dict.fromkeys(found) if classes > 2 or name != "autopgd-dlr" or name in asked)
    return kept, {"restarts": spent.restarts} if spent.restarts > 1 else {}


def require_attackers(attackers: Sequence[str], *, patched: bool, surrogate: bool, own: bool = False) -> None:
    """Check the attackers that were named.

    Args:
        patched, surrogate, own: As for `make_plan`.

    Raises:
        SettingError: One is unknown, or cannot run.
    """
    for attacker in attackers:
        require_choice(attacker, ATTACKERS, "--attacker")
    if not attackers:
        raise SettingError("No attacker is named.", f"Known: {', '.join(ATTACKERS)}.")
    without = [attacker for attacker in attackers if attacker in NEEDS_PATCH and not patched]
    if without:
        raise SettingError(f"--attacker {without[0]} needs a patch.", "Pass --patch, or attack the base alone.")
    if own and "surrogate" in attackers:
        raise SettingError(
            "--attacker surrogate needs a patch: it trains fixers with the patch's own settings.",
            "Leave it out; base, patched and black-box attack a classifier of its own.",
        )
    if patched and "surrogate" in attackers and not surrogate:
        raise SettingError(
            "--attacker surrogate needs images to train fixers of its own, or a second patch.",
            "Pass --surrogate-data DIR, or --surrogate FILE with a patch that was trained with another --seed.",
        )


def _steps(
    attacker: str, attacks: list[AttackConfig], budget: Budget, attackers: Sequence[str], classes: int, patched: bool
) -> Iterator[Step]:
    if attacker == "black-box":
        for config in _outputs_only(attacks, budget):
            yield Step(attacker, "patched" if patched else "base", config)
        return
    gradient = [config for config in attacks if "black-box" not in attackers or config.name not in OUTPUTS_ONLY]
    white_box = "patched" if patched else "base"
    if attacker == white_box and budget.targets and classes > 3:
        gradient += [replace(each, targets=budget.targets) for each in attacks if each.name == "autopgd-dlr"]
    for made_on in ("surrogate", "base+surrogate") if attacker == "surrogate" else (attacker,):
        for config in gradient:
            yield Step(attacker, made_on, config)


def _outputs_only(attacks: Sequence[AttackConfig], budget: Budget) -> list[AttackConfig]:
    """Return Square and noise in the ball of the other attacks, as they were named or as the budget says."""
    named = {config.name: config for config in attacks}
    first = attacks[0]
    shared: dict[str, Any] = {"eps": first.eps, "norm": first.norm, "attack_labels": first.attack_labels}
    return [
        named.get("square") or attack_named("square", steps=budget.queries, **shared),
        named.get("noise") or attack_named("noise", **shared),
    ]
