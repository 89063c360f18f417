"""Several models attacked as one: the joint loss is the sum of theirs, exact and through the lean copy."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from fixpatch.attacks import attack_images
from fixpatch.classifier import KerasClassifier
from fixpatch.data import ImageSet
from fixpatch.ensemble import joint_model
from fixpatch.errors import ModelError
from fixpatch.models import Base, as_base
from fixpatch.patches import load_patch
from fixpatch.threats import attack_named


@pytest.fixture
def members(base: Base, patch_file: str) -> list[keras.Model]:
    """The base and a patched model, which share layers."""
    return [base.logits, as_base(load_patch(patch_file).apply(base), input_range=base.input_range).logits]


@pytest.mark.slow
def test_joint_loss_and_gradient_are_the_sums_of_the_members(members: list, unseen: ImageSet) -> None:
    x, y = unseen.to_range((0, 1))[:10], unseen.y[:10]
    each = [KerasClassifier(member, lean=False) for member in members]
    for lean in (False, True):
        joint = KerasClassifier(joint_model(members), joint=True, lean=lean)
        loss = sum(one.compute_loss(x, y) for one in each)
        assert np.allclose(joint.compute_loss(x, y), loss, rtol=1e-3, atol=1e-4)
        gradient = sum(one.loss_gradient(x, y) for one in each)
        assert np.mean(np.isclose(joint.loss_gradient(x, y), gradient, rtol=1e-2, atol=1e-4)) > 0.95
        log_p = sum(keras.ops.convert_to_numpy(keras.ops.log_softmax(one.predict(x))) for one in each)
        assert np.allclose(joint.predict(x), log_p, rtol=1e-3, atol=1e-3)
        with joint.tracking(x, y, 0.1) as tracker:
            joint.predict(x)
        assert np.allclose(tracker.loss, loss, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"targets": 2, "loss": "dlr"}, {}, {"targets": 1, "precision": "bfloat16"}])
def test_attack_on_both_weakens_both(members: list, unseen: ImageSet, settings: dict) -> None:
    x, y, keys = unseen.to_range((0, 1))[:20], unseen.y[:20], unseen.hashes()[:20]
    joint = KerasClassifier(joint_model(members), joint=True)
    found = attack_images(attack_named("autopgd", eps="45/255", steps=6, **settings), joint, x, y, keys)
    for member in members:
        judge = KerasClassifier(member, lean=False)
        before, after = ((judge.predict(part).argmax(1) == y).mean() for part in (x, found))
        assert after <= before - 0.2


def test_of_a_single_model_nothing_changes_but_a_constant(base: Base, unseen: ImageSet) -> None:
    x, y = unseen.to_range((0, 1))[:4], unseen.y[:4]
    alone, joint = KerasClassifier(base.logits), KerasClassifier(joint_model([base.logits]), joint=True)
    assert np.allclose(joint.compute_loss(x, y), alone.compute_loss(x, y), rtol=1e-3, atol=1e-5)


def test_models_of_other_images_or_classes_are_refused(base: Base) -> None:
    image = keras.Input((8, 8, 1))
    other = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(image)))
    with pytest.raises(ModelError, match=r"\(8, 8, 1\) to \(10,\); \(8, 8, 1\) to \(3,\)"):
        joint_model([base.logits, other])
