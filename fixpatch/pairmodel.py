"""The patched model as one function from pairs to the loss of equation 3, for Keras' own `fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from fixpatch.config import TrainingConfig
from fixpatch.graft import graft
from fixpatch.losses import distillation, focal_loss
from fixpatch.models import Base


class Tap(keras.layers.Layer):
    """Pass features on and hand them to `record`, wherever in the graph and however often the layer is called."""

    def __init__(self, record: Callable[[Any], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._record = record

    def call(self, features: Any) -> Any:
        """Return `features` as they are."""
        self._record(features)
        return features


def with_features(model: keras.Model, modules: Mapping[str, Callable]) -> tuple[keras.Model, Callable[[Any], tuple]]:
    """Graft `modules` and return the grafted model and a function from images to its output and the modules' outputs.

    The features come in the order of `modules`, a layer's calls in theirs, also from inside nested models. (Two graphs
    with different modules run parallel branches in different orders.)
    """
    seen: dict[str, list[Any]] = {path: [] for path in modules}

    def tapped(path: str, module: Callable) -> Callable:
        tap = Tap(seen[path].append)
        return lambda features: tap(module(features))

    grafted = graft(model, {path: tapped(path, module) for path, module in modules.items()})

    def run(x: Any) -> tuple[Any, list[Any]]:
        for found in seen.values():
            found.clear()
        out = grafted(x, training=False)  # the base stays in inference mode: no dropout, fixed statistics
        return out, [features for found in seen.values() for features in found]

    return grafted, run


class PairModel(keras.Model):
    """The patched model as a function from pairs to the loss of equation 3, for `fit`.

    Inputs are `(clean, adversarial)`, each `(B, ...)`; the label is `(B,)`.
    """

    def __init__(self, base: Base, modules: Mapping[str, keras.Model], config: TrainingConfig) -> None:
        super().__init__()
        self.patched, self._patched = with_features(base.logits, modules)
        self.natural, self._natural = with_features(base.logits, dict.fromkeys(modules, lambda features: features))
        self.config = config
        self.means = [keras.metrics.Mean(name=name) for name in ("distill", "clean", "robust")]
        self.built = True  # every layer is

    def call(self, inputs: tuple[Any, Any], training: bool | None = None) -> dict[str, Any]:
        """Return logits `(2 B, classes)`, clean first, and equation 4's term `(2 B,)`."""
        clean, adversarial = inputs
        both = ops.concatenate([clean, adversarial])
        logits, features = self._patched(both)
        if not self.config.distill_weight:
            return {"logits": logits, "distill": ops.zeros_like(logits[:, 0])}
        if self.config.distill_target == "natural":
            _, targets = self._natural(clean)
            targets = [ops.concatenate([target, target]) for target in targets]
        else:
            _, targets = self._natural(both)
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
