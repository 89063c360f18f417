"""Several models as one, for an attacker who wants to fool them all."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from fixpatch.errors import ModelError


def joint_model(models: Sequence[keras.Model]) -> keras.Model:
    """Return a model whose output is the sum of the models' log-probabilities.

    The sum of their cross-entropies is then minus the output of the true class: `KerasClassifier(joint_model(models),
    joint=True)` attacks just that, and DLR and predictions are of what the models say together.

    Args:
        models: Give logits `(B, classes)` for images of one shape; they may share layers.

    Raises:
        ModelError: They take other images than each other, or know other numbers of classes.
    """
    shapes = {(model.inputs[0].shape[1:], model.outputs[0].shape[1:]) for model in models}
    if len(shapes) != 1:
        found = "; ".join(f"{tuple(image)} to {tuple(scores)}" for image, scores in sorted(shapes, key=str))
        raise ModelError(
            f"The models map images to scores as {found}; expected one shape of images and one number of classes.",
            "An attack on several models at once needs models that take the same images.",
        )
    image = keras.Input(models[0].inputs[0].shape[1:], name="image")
    scores = [_member(model, f"member_{index}")(image) for index, model in enumerate(models)]
    log_p = [
        keras.layers.Activation("log_softmax", dtype="float32", name=f"log_p_{i}")(z) for i, z in enumerate(scores)
    ]
    joint = log_p[0] if len(log_p) == 1 else keras.layers.Add(dtype="float32", name="joint")(log_p)
    return keras.Model(image, joint, name="joint")


def _member(model: keras.Model, name: str) -> keras.Model:
    """Return the model under a name of its own: those that are grafted on one base are called alike."""
    return keras.Model(model.inputs[0], model.outputs[0], name=name)
