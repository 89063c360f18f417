"""A patch's model card: Markdown that says what it is for, how it was made, what was measured and what was not."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fixpatch.errors import DataError
from fixpatch.meaning import group_scores, list_attacks
from fixpatch.results import Rate
from fixpatch.scores import PASS, Evaluation, Score
from fixpatch.wording import (
    KNOWLEDGE,
    describe_attack,
    name_attack,
    per_cent,
    printable,
    size_of,
    with_interval,
)

# What Hugging Face's model cards have; a licence is for the author to name.
FRONT = """---
library_name: keras
pipeline_tag: image-classification
tags:
- adversarial-robustness
- fixpatch
---"""
NAMES = 100  # classes that are listed
Table = Iterable[Sequence[str]]


def write_card(facts: Mapping[str, Any], name: str, evaluation: Evaluation | None = None) -> str:
    """Return the card as Markdown.

    Args:
        facts: What the patch says about itself (`patchfile.describe`).
        name: Of its file.
        evaluation: What `eval` measured of this very patch.
    """
    sections = [
        *(FRONT, "", f"# Model card: {escaped(name)}", ""),
        *_introduce(facts),
        *("", "## Intended use", "", *_intend(facts)),
        *("", "## How to apply it", "", *_apply(name)),
        *("", "## Base", "", *_describe_base(facts)),
        *("", "## Data", "", *_describe_data(facts)),
        *("", "## Attacks used in training", "", *_describe_training(facts)),
        *("", "## Figures", "", *_recorded(facts), "", *_measured(evaluation)),
        *("", "## Limits", "", *_limit(facts, evaluation)),
        *("", "## Made with", "", _versions(facts["versions"])),
        *("", "## Licence", "", "The patch names none. Whoever publishes it has to, as the base's own licence allows."),
    ]
    return "\n".join(sections) + "\n"


def read_figures(path: Path, digest: str) -> Evaluation:
    """Read the document that `fixpatch eval --json` printed about the patch with that digest.

    Raises:
        DataError: It is no such document, or it is about another patch.
    """
    again = "Make it with `fixpatch eval --patch PATCH --json`."
    try:
        found = _evaluation_in(path.read_text())
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}.", again) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is no document of `fixpatch eval --json`: {error}.", again) from None
    if found.patch != digest:
        whose = "no patch" if found.patch is None else f"the patch with digest {printable(found.patch[:12])}"
        raise DataError(f"'{path}' is about {whose}; this one has {digest[:12]}.", again)
    return found


def _evaluation_in(text: str) -> Evaluation:
    from pydantic import TypeAdapter, ValidationError  # slow to import

    document = json.loads(text)
    if not isinstance(document, dict) or document.get("command") != "eval" or "result" not in document:
        raise ValueError("it has no result of that command")
    try:
        return TypeAdapter(Evaluation).validate_json(json.dumps(document["result"]), strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, ("result", *fault["loc"])))
        raise ValueError(f"{printable(place)}: {fault['msg'].lower()}") from None


def escaped(text: str) -> str:
    """Write a name so that Markdown shows it as it is, within a line, a list or a table, and makes no link of it."""
    return re.sub(r"([\\`*_\[\]<>|~$&@]|:(?=//)|(?<=www)\.)", r"\\\1", printable(text))


def _table(head: Sequence[str], rows: Table) -> Iterator[str]:
    """Write a table; the cells are Markdown already."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def _introduce(facts: Mapping[str, Any]) -> Iterator[str]:
    splits, base = facts["splits"], facts["base"]
    parameters = sum(split["parameters"] for split in splits)
    after = ", ".join(escaped(split["path"]) for split in splits)
    yield (
        f"{len(splits)} small *{facts['fixer']['module']}* module{'s' * (len(splits) > 1)} for one image classifier, "
        f"grafted after {after}: "
        f"{parameters:,} parameters, {per_cent(parameters / max(1, base['parameters']))} % of the base's "
        f"{base['parameters']:,}. The base's own weights are neither in this file nor changed by it."
    )


def _intend(facts: Mapping[str, Any]) -> Iterator[str]:
    attack = describe_attack(**facts["attack"])
    yield (
        f"To make the base below, and no other model, answer more often right on images that were perturbed on "
        f"purpose (in training: {escaped(attack)})."
    )
    yield ""
    yield (
        "It is not a model by itself, no proof of robustness, and no protection against larger or other changes of an "
        "image. Measure it on images of your own, by attackers who have the patched model, before anything depends on "
        "it."
    )


def _apply(name: str) -> Iterator[str]:
    file = shlex.quote(printable(name))
    yield from ("```sh", f"fixpatch apply base.keras {file}", "```")
    yield from ("", "This writes `patched.keras`, an ordinary Keras model; whoever loads that needs no fixpatch.")


def _describe_base(facts: Mapping[str, Any]) -> Iterator[str]:
    base, (low, high) = facts["base"], facts["input_range"]
    yield from _table(
        ("fact", "value"),
        [
            ("fingerprint", escaped(base["fingerprint"])),
            ("input", f"{size_of(base['input_shape'])}, values from {low:g} to {high:g}"),
            ("classes", f"{base['classes']:,}"),
            ("parameters", f"{base['parameters']:,}"),
        ],
    )


def _describe_data(facts: Mapping[str, Any]) -> Iterator[str]:
    data, names = facts["data"], facts["class_names"]
    again = " in every epoch" if facts["training"].get("attacker") == "patched" else ""
    kept_back = f"{per_cent(data['holdout'])} % of what there was had" if data["holdout"] else "none had"
    yield (
        f"The {facts['fixer']['module']} modules were trained on {facts['images']:,} labelled images; "
        f"{kept_back} been kept back. Each was augmented {data['views']} time{'s' * (data['views'] > 1)}{again} "
        f"(preset `{data['augment']}`) and attacked."
    )
    yield ""
    listed = ", ".join(escaped(name) for name in names[:NAMES])
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    yield f"Classes: {listed}{more}." if names else "The classes have no names."
    yield ""
    yield (
        "The file holds a hash of each training image's content: whoever has an image can find out whether it was used."
        if facts["hashes"]
        else "The file holds no hashes of the training images: nobody can tell from it which were used."
    )


def _describe_training(facts: Mapping[str, Any]) -> Iterator[str]:
    training = facts["training"]
    for attack in (facts["attack"], *facts.get("more_attacks", ())):
        yield f"- {escaped(describe_attack(**attack))}"
    attacker = training.get("attacker", "base")
    knows = KNOWLEDGE[attacker, attacker]
    yield ""
    yield (
        f"Attacker: `{attacker}` ({knows}). Up to {training['epochs']} epochs in batches of {training['batch_size']}, "
        f"learning rate {training['learning_rate']:g}, seed {training['seed']}."
    )


def _recorded(facts: Mapping[str, Any]) -> Iterator[str]:
    figures, attacker = facts["figures"], facts["training"].get("attacker", "base")
    yield "### In the patch"
    yield ""
    if figures is None:
        yield "The patch holds no figures."
        return
    held = figures["measured_on"] == "holdout"
    where = "images kept back, which chose the epoch" if held else "images that it was trained on"
    yield (
        f"Accuracy in % with 95 % intervals, under the attack of training by the attacker of training (`{attacker}`), "
        f"on {figures['patch_clean']['n']} {where}: **optimistic**."
    )
    yield ""
    rows = [
        (model, *(with_interval(Rate(**figures[f"{model}_{kind}"])) for kind in ("clean", "robust")))
        for model in ("base", "patch")
    ]
    yield from _table(("", "clean", "under attack"), rows)


def _measured(evaluation: Evaluation | None) -> Iterator[str]:
    yield "### Evaluation"
    yield ""
    if evaluation is None:
        yield (
            "None is attached: how the patch fares on other images, or against an attacker who has the patched model, "
            "is **not established** here. `fixpatch eval --json` measures it."
        )
        return
    origin = "held-out images, which chose the epoch (optimistic)" if evaluation.images == "holdout" else "images"
    yield (
        f"{evaluation.n:,} {origin}, seed {evaluation.seed}, budget {escaped(evaluation.budget)}; accuracy in % "
        "with 95 % intervals. Robust: right when clean and when attacked. Worst: per image, over all of these."
    )
    yield ""
    heads = ("attacker", "made on", "attack", "base", "patch", "patch, robust")
    yield from _table(heads, [*_score_rows(evaluation.scores), _worst_row(evaluation)])
    yield ""
    for line in list_attacks(evaluation.scores):
        yield f"- {escaped(line)}"
    yield from _verdict(evaluation)


def _score_rows(scores: Sequence[Score]) -> Iterator[Sequence[str]]:
    rows = ((key, found) for key, group in group_scores(scores).items() for found in group.values())
    for (attacker, made_on), found in rows:
        first = next(iter(found.values()))
        patch = found.get("patch", first)
        figures = [found["base"].accuracy if "base" in found else first.accuracy, patch.accuracy, patch.robust_accuracy]
        names = [attacker, made_on, name_attack(first.attack, first.targets)]
        yield *map(escaped, names), *map(with_interval, figures)


def _worst_row(evaluation: Evaluation) -> Sequence[str]:
    return "**worst**", "", "", "", "", f"**{with_interval(evaluation.worst)}**"


def _verdict(evaluation: Evaluation) -> Iterator[str]:
    passed, verdict = sum(check.verdict == PASS for check in evaluation.checks), escaped(evaluation.verdict)
    yield ""
    yield f"Verdict on these figures: **{verdict}**; {passed} of {len(evaluation.checks)} checks pass."
    if evaluation.checks:
        yield ""
        rows = [
            (str(check.number), escaped(check.name), escaped(check.verdict), escaped(check.finding))
            for check in evaluation.checks
        ]
        yield from _table(("check", "question", "verdict", "finding"), rows)


def _limit(facts: Mapping[str, Any], evaluation: Evaluation | None) -> Iterator[str]:
    if evaluation is None or "patched" not in evaluation.attackers:
        yield "- Against an attacker who has the patched model, robustness is **not established**."
    else:
        worst = with_interval(evaluation.worst)
        yield f"- The figure that counts is the worst row: {worst} %. A stronger attack may do better."
        if evaluation.verdict != PASS:
            yield f"- The checks of these figures say **{evaluation.verdict}**."
    yield "- The defence is best against the attack that it was trained on."
    yield "- The figures hold for images like those that were measured, and for perturbations no larger."
    yield "- The digest in the file shows damage, not who made it: a stranger's patch can carry a backdoor."
    for warning in evaluation.warnings if evaluation else ():
        yield f"- {escaped(warning)}"


def _versions(versions: Mapping[str, str]) -> str:
    listed = ", ".join(f"{escaped(name)} {escaped(version)}" for name, version in sorted(versions.items()))
    return f"Packages: {listed}."  # a name at the start of a line could make it a heading
