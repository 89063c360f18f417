"""The patched model as one function from pairs to the loss of equation 3, for Keras' own `fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from fixpatch.config import TrainingConfig
from fixpatch.graft import graft
from fixpatch.losses import distillation, focal_loss
from fixpatch.trunk import Tap, cut


class Tapped:
    """A model with `modules` grafted in, whose outputs can be read wherever they sit.

    Attributes:
        model: The grafted model.
    """

    def __init__(self, model: keras.Model, modules: Mapping[str, Callable]) -> None:
        self._seen: dict[str, list[Any]] = {path: [] for path in modules}
        self._taps = {path: Tap(module, self._seen[path].append) for path, module in modules.items()}
        self.model = graft(model, self._taps)

    def run(self, model: keras.Model, inputs: Any, learning: bool = False) -> tuple[Any, list[Any]]:
        """Return the output of `model`, the whole or its rest, for `inputs`, and the modules' outputs.

        These come in the order of the modules, a layer's calls in theirs, also from inside nested models. (Two graphs
        with different modules run parallel branches in different orders.)

        Args:
            learning: The modules run in training mode: BatchNormalization on the batch's own statistics.
        """
        for path, tap in self._taps.items():
            self._seen[path].clear()
            tap.learning = learning
        out = model(inputs, training=False)  # the base stays in inference mode: no dropout, fixed statistics
        return out, [features for found in self._seen.values() for features in found]


def build_pair_models(
    base: keras.Model, modules: Mapping[str, Callable], config: TrainingConfig
) -> tuple[FixedPart, PairModel]:
    """Return what never changes and what training runs, for `modules` in `base` (frozen, giving logits)."""
    tapped = Tapped(base, modules)
    trunk, rest = cut(tapped.model)
    return FixedPart(base, trunk, modules, config), PairModel(tapped, rest, config)


class FixedPart(keras.Model):
    """What a pair gives that no fixer changes: from `(clean, adversarial)`, each `(B, ...)`, to `PairModel`'s inputs.

    These are the features where the first fixers begin, of the clean and then of the adversarial images, and the
    targets of equation 4 in the order of the splits.
    """

    def __init__(
        self, base: keras.Model, trunk: keras.Model, splits: Mapping[str, Any], config: TrainingConfig
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.tapped = Tapped(base, dict.fromkeys(splits, lambda features: features))
        self.base = self.tapped.model
        self.config = config
        self.built = True  # every layer is

    def call(self, inputs: tuple[Any, Any], training: bool | None = None) -> tuple[Any, ...]:
        """Return features `(B, ...)`, float32."""
        clean, adversarial = inputs
        found = [tensor for images in inputs for tensor in keras.tree.flatten(self.trunk(images, training=False))]
        for images in self._targets(clean, adversarial):
            found += self.tapped.run(self.base, images)[1]
        return tuple(ops.cast(features, "float32") for features in found)

    def _targets(self, clean: Any, adversarial: Any) -> tuple[Any, ...]:
        if not self.config.distill_weight:
            return ()
        return (clean,) if self.config.distill_target == "natural" else (clean, adversarial)


class PairModel(keras.Model):
    """What of the patched model the fixers reach, as a function from pairs to the loss of equation 3, for `fit`.

    Its inputs are the outputs of `FixedPart`; the label is `(B,)`.
    """

    def __init__(self, tapped: Tapped, rest: keras.Model, config: TrainingConfig) -> None:
        super().__init__()
        self.tapped, self.rest, self.config = tapped, rest, config
        self.borders = len(rest.inputs)
        self.means = [keras.metrics.Mean(name=name) for name in ("distill", "clean", "robust")]
        self.built = True  # every layer is

    def call(self, inputs: tuple[Any, ...], training: bool | None = None) -> dict[str, Any]:
        """Return logits `(2 B, classes)`, clean first, and equation 4's term `(2 B,)`."""
        clean, adversarial = inputs[: self.borders], inputs[self.borders : 2 * self.borders]
        both = [ops.concatenate(pair) for pair in zip(clean, adversarial, strict=True)]
        logits, features = self.tapped.run(self.rest, both, learning=bool(training))
        if not self.config.distill_weight:
            return {"logits": logits, "distill": ops.zeros_like(logits[:, 0])}
        natural = inputs[2 * self.borders :][: len(features)]
        attacked = inputs[-len(features) :]  # with target `natural` the same
        targets = [ops.concatenate(pair) for pair in zip(natural, attacked, strict=True)]
        return {"logits": logits, "distill": distillation(features, targets)}

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return equation 3, averaged over the pairs of the batch."""
        pairs = ops.cast(ops.shape(y)[0], "float32")
        focal = focal_loss(y_pred["logits"], ops.concatenate([y, y]))
        return ops.sum(focal + self.config.distill_weight * y_pred["distill"]) / pairs

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Take in a batch: share right when clean, and right when clean and when attacked."""
        right = ops.cast(ops.argmax(y_pred["logits"], -1), "int32") == ops.cast(ops.concatenate([y, y]), "int32")
        clean, attacked = ops.split(ops.cast(right, "float32"), 2)
        distill = ops.sum(ops.stack(ops.split(y_pred["distill"], 2)), axis=0)
        for mean, value in zip(self.means, (distill, clean, clean * attacked), strict=True):
            mean.update_state(value)
        return self.get_metrics_result()

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the means so far, with `score`: the mean of clean and robust accuracy, which chooses the epoch."""
        result = super().get_metrics_result()
        return {**result, "score": (result["clean"] + result["robust"]) / 2}
