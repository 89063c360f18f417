"""Fitting: equation 3 on pairs, resumable to the same weights, the base untouched."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import SPLITS, Interrupt

from fixpatch import features as feature_room
from fixpatch.classifier import KerasClassifier
from fixpatch.config import FixerConfig, TrainingConfig
from fixpatch.craft import Pairs, craft_pairs
from fixpatch.epochs import WEIGHTS, best_epoch, cut_history, read_history
from fixpatch.errors import FixpatchError
from fixpatch.features import PairFeatures
from fixpatch.fit import InOrder, fit_modules, shuffled
from fixpatch.graft import build_modules
from fixpatch.models import Base
from fixpatch.pairmodel import Tapped, build_pair_models
from fixpatch.patches import read_weights
from fixpatch.places import choose_places
from fixpatch.results import Listener
from fixpatch.threats import attack_named

CONFIG = TrainingConfig(epochs=4, batch_size=16, patience=2)


@pytest.fixture(scope="module")
def pairs(model_file: Path, small: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pairs, Pairs]:
    import fixpatch

    base = fixpatch.load(model_file)
    classifier = KerasClassifier(base.logits)
    attack = attack_named("fgsm", eps="40/255")
    kept = {"fingerprint": "f", "folder": tmp_path_factory.mktemp("pairs")}
    made = [craft_pairs(classifier, attack, small.take(rows), **kept) for rows in (range(40), range(40, 60))]
    return made[0], made[1]


def fitted(base: Base, pairs: tuple, config: TrainingConfig, folder: Path, listener: Listener | None = None) -> tuple:
    keras.utils.set_random_seed(0)
    modules = build_modules(base.model, choose_places(base.model, SPLITS, "base"), FixerConfig())
    folder.mkdir(exist_ok=True)
    history, chosen = fit_modules(base, modules, *pairs, config, folder, listener or Listener())
    return read_weights(modules), history, chosen


def plainly(tensor: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def same(one: dict, other: dict) -> bool:
    return all(np.array_equal(one[path][name], other[path][name]) for path in one for name in one[path])


@pytest.mark.parametrize(
    ("steps", "holdout"), [*(pytest.param(steps, True, marks=pytest.mark.slow) for steps in (62, 64)), (47, False)]
)
def test_interrupted_anywhere_ends_in_the_same_weights(
    base: Base, pairs: tuple, tmp_path: Path, steps: int, holdout: bool
) -> None:
    used = pairs if holdout else (pairs[0], Pairs((), (), np.zeros(0, int)))
    whole, history, chosen = fitted(base, used, CONFIG, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):  # after the features of 60 or 40 pairs, within an epoch
        fitted(base, used, CONFIG, tmp_path / "cut", Interrupt(steps))
    resumed, again, chosen_again = fitted(base, used, CONFIG, tmp_path / "cut")
    assert same(whole, resumed)
    assert (history, chosen) == (again, chosen_again)
    finished, _, _ = fitted(base, used, CONFIG, tmp_path / "cut")
    assert same(whole, finished), "a run that was cut off after its last epoch gives the same too"


@pytest.mark.slow
def test_interrupted_inside_a_checkpoint_resumes_from_the_one_before(
    base: Base, pairs: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = fitted(base, pairs, CONFIG, tmp_path / "whole")
    save, calls = keras.Model.save_weights, []

    def cut_off(model: keras.Model, filepath: Path, *args: object, **kwargs: object) -> None:
        calls.append(filepath)
        save(model, filepath, *args, **kwargs)
        if len(calls) == 2:
            Path(filepath).write_bytes(Path(filepath).read_bytes()[:1000])
            raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save_weights", cut_off)
    with pytest.raises(KeyboardInterrupt):
        fitted(base, pairs, CONFIG, tmp_path / "cut")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "cut").glob("epoch-*")] == ["epoch-000001"]
    resumed, _, _ = fitted(base, pairs, CONFIG, tmp_path / "cut")
    assert same(whole, resumed)


def test_only_the_last_and_the_best_epoch_are_kept(base: Base, pairs: tuple, tmp_path: Path) -> None:
    """The best weights are a checkpoint like any other: what is cut off leaves none but those of its history."""
    weights, _, chosen = fitted(base, pairs, CONFIG, tmp_path / "fit")
    assert {path.name for path in (tmp_path / "fit").glob("epoch-*")} == {f"epoch-{n:06d}" for n in (chosen, 4)}
    assert [path.name for path in (tmp_path / "fit").rglob("*.weights.h5")] == [WEIGHTS] * len({chosen, 4})
    again, _, _ = fitted(base, pairs, CONFIG, tmp_path / "fit")
    assert same(weights, again)


def test_the_best_epoch_is_the_first_of_equals_and_the_last_without_a_holdout() -> None:
    assert best_epoch([{"val_score": score} for score in (0.1, 0.3, 0.3, 0.2)]) == 2
    assert best_epoch([{"loss": 1.0}] * 3) == 3


def test_a_history_without_a_fault_is_not_written_anew(tmp_path: Path) -> None:
    """It was, at every start: cut off there, the epochs were there and their history was not."""
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss\n0,2\n1,1\n")
    before = path.stat().st_ino, path.stat().st_mtime_ns
    cut_history(tmp_path, 2)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    cut_history(tmp_path, 1)
    assert read_history(tmp_path) == [{"epoch": 0.0, "loss": 2.0}]


@pytest.mark.slow
def test_stops_early_but_never_in_the_first_half(base: Base, pairs: tuple, tmp_path: Path) -> None:
    never_better = TrainingConfig(epochs=8, batch_size=40, patience=1, learning_rate=1e-12)
    _, history, chosen = fitted(base, pairs, never_better, tmp_path / "fit")
    assert (len(history), chosen) == (6, 1), "epochs 1 to 4 do not count, 5 sets the mark, 6 is no better"
    assert TrainingConfig().patience < TrainingConfig().epochs / 2, "the default can stop early"


def test_divergence_is_an_error_with_a_remedy(base: Base, pairs: tuple, tmp_path: Path) -> None:
    with pytest.raises(FixpatchError, match="--learning-rate"):
        fitted(base, pairs, TrainingConfig(epochs=3, learning_rate=1e30), tmp_path / "fit")


def test_features_are_matched_by_split_however_branches_run() -> None:
    """A fixer makes its branch deeper, so that the patched graph runs the branches in another order."""
    image = keras.Input((4, 4, 2))
    long = keras.layers.Conv2D(3, 1, activation="relu", name="a")(image)
    long = keras.layers.Conv2D(3, 1, activation="relu", name="b")(keras.layers.ReLU()(keras.layers.ReLU()(long)))
    short = keras.layers.Conv2D(3, 1, activation="relu", name="c")(image)
    scores = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([long, short])))
    model = keras.Model(image, scores)
    splits = ("c", "b", "a")
    deep = {path: keras.Sequential([keras.layers.ReLU() for _ in range(n)]) for n, path in enumerate(splits, 1)}
    x = keras.ops.convert_to_tensor(np.random.default_rng(0).random((2, 4, 4, 2), np.float32))
    fixed, plain = (Tapped(model, modules) for modules in (deep, dict.fromkeys(splits, lambda features: features)))
    found = (tapped.run(tapped.model, x)[1] for tapped in (fixed, plain))
    for one, other, path in zip(*found, splits, strict=True):
        alone = keras.Model(model.inputs[0], model.get_layer(path).output)(x)
        assert np.array_equal(plainly(one), plainly(alone))
        assert np.array_equal(plainly(other), plainly(alone))


def test_base_is_bit_identical_and_fixers_moved(base: Base, pairs: tuple, tmp_path: Path) -> None:
    before = [np.array(weight) for weight in base.model.get_weights()]
    flags = [layer.trainable for layer in base.model.layers]
    weights, _, _ = fitted(base, pairs, CONFIG, tmp_path / "fit")
    assert all(np.array_equal(one, other) for one, other in zip(before, base.model.get_weights(), strict=True))
    assert flags == [layer.trainable for layer in base.model.layers]
    assert all(np.abs(weights[path]["up/kernel"]).max() > 0 for path in SPLITS)


def test_first_loss_is_equation_3_by_hand(base: Base, pairs: tuple) -> None:
    """A fresh fixer changes nothing: the distillation is the base's own drift, the focal terms are the base's."""
    modules = build_modules(base.model, choose_places(base.model, SPLITS, "base"), FixerConfig())
    fixed, model = build_pair_models(base.logits, modules, TrainingConfig(distill_weight=2.0))
    clean, adversarial, y = pairs[0].take(np.arange(8))
    out = model(fixed((clean, adversarial)))
    value = float(plainly(model.compute_loss(y=keras.ops.convert_to_tensor(y), y_pred=out)))

    def focal(x: np.ndarray) -> np.ndarray:
        z = base.model.predict(x, verbose=0).astype(np.float64)
        p = (np.exp(z - z.max(1, keepdims=True)) / np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))[
            range(8), y
        ]
        return -((1 - p) ** 2) * np.log(p)

    features = [base.model.get_layer(path).output for path in SPLITS]
    natural, attacked = (
        [plainly(h).astype(np.float64).reshape(8, -1) for h in keras.Model(base.model.inputs[0], features)(images)]
        for images in (clean, adversarial)
    )
    drift = sum(
        np.linalg.norm(a - n, axis=1) / np.linalg.norm(n, axis=1) for a, n in zip(attacked, natural, strict=True)
    )
    floor = 2 * 1e-3  # the constant under each of the two roots on clean images
    by_hand = (focal(clean) + focal(adversarial) + 2.0 * (drift + floor)).mean()
    assert value == pytest.approx(by_hand, rel=1e-4)


def test_same_input_target_starts_at_zero_drift(base: Base, pairs: tuple) -> None:
    modules = build_modules(base.model, choose_places(base.model, SPLITS, "base"), FixerConfig())
    fixed, model = build_pair_models(base.logits, modules, TrainingConfig(distill_target="same-input"))
    out = model(fixed(pairs[0].take(np.arange(4))[:2]))
    assert np.allclose(plainly(out["distill"]), 2e-3), "two splits, each the root of the constant"


@pytest.mark.slow
def test_features_too_large_to_keep_train_alike(
    base: Base, pairs: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = TrainingConfig(epochs=1, batch_size=20)
    kept, _, _ = fitted(base, pairs, once, tmp_path / "kept")
    monkeypatch.setattr(feature_room, "MOST_BYTES", 0)
    fresh, _, _ = fitted(base, pairs, once, tmp_path / "fresh")
    assert all(np.allclose(kept[path][name], fresh[path][name], atol=1e-3) for path in kept for name in kept[path])


@pytest.fixture
def features(base: Base, pairs: tuple, tmp_path: Path) -> PairFeatures:
    modules = build_modules(base.model, choose_places(base.model, SPLITS, "base"), FixerConfig())
    fixed, _ = build_pair_models(base.logits, modules, CONFIG)
    return PairFeatures(pairs[0], fixed, tmp_path, lambda done: None)


def test_each_epoch_has_its_own_order_and_every_pair_once(features: PairFeatures, pairs: tuple) -> None:
    stream, steps = shuffled(features, 16, seed=0, first_epoch=0), 3
    first = [next(stream)[1] for _ in range(steps)]
    second = [next(stream)[1] for _ in range(steps)]
    later = shuffled(features, 16, seed=0, first_epoch=1)
    assert np.array_equal(np.concatenate(second), np.concatenate([next(later)[1] for _ in range(steps)]))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    assert sorted(np.concatenate(first)) == sorted(pairs[0].y)


def test_validation_batches_cover_all_pairs(features: PairFeatures, pairs: tuple) -> None:
    batches = InOrder(features, 16)
    assert np.array_equal(np.concatenate([batches[i][1] for i in range(len(batches))]), pairs[0].y)
