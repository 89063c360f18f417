"""Put modules after named layers of a model, without touching its layers or weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import keras

from fixpatch.config import FixerConfig
from fixpatch.fixers import FIXERS, final_relu
from fixpatch.graph import as_functional, calls, is_graph
from fixpatch.manifest import SplitFacts, expected_shapes
from fixpatch.models import Base
from fixpatch.places import Place, why_not
from fixpatch.results import LayerFacts, ModelFacts

Modules = Mapping[str, Callable[[Any], Any]]


def graft(model: keras.Model, modules: Modules) -> keras.Model:
    """Return a model that shares every layer of `model` and sends the output of each named layer through a module.

    All consumers of a split layer's output receive the module's output, skip connections too. A layer that is called
    several times shares one module.

    Args:
        model: A Functional or built Sequential model.
        modules: By layer path (`outer/inner/layer`): what to call on the layer's output.

    Raises:
        ValueError: A path that does not occur in `model`.
    """
    reached: set[str] = set()
    grafted = _rebuild(model, modules, "", {}, reached)
    if reached != set(modules):
        raise ValueError(f"no such layers: {sorted(set(modules) - reached)}")
    return grafted


def _rebuild(
    model: keras.Model, modules: Modules, prefix: str, rebuilt: dict[str, keras.Model], reached: set[str]
) -> Any:
    if prefix in rebuilt:  # a nested model that is called twice stays one model
        return rebuilt[prefix]
    graph = as_functional(model)
    graph = keras.Model(
        graph.input, graph.output, name=graph.name
    )  # as it was never compiled: its loss may be anything

    def keep_or_enter(layer: Any) -> Any:
        path = prefix + layer.name
        inside = is_graph(layer) and any(split.startswith(path + "/") for split in modules)
        return _rebuild(layer, modules, path + "/", rebuilt, reached) if inside else layer

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        out, path = layer(*args, **kwargs), prefix + layer.name
        if path not in modules or not isinstance(layer, keras.layers.Layer):
            return out
        reached.add(path)
        return modules[path](out)

    rebuilt[prefix] = keras.models.clone_model(
        graph, input_tensors=graph.input, clone_function=keep_or_enter, call_function=call
    )
    return rebuilt[prefix]


def build_modules(
    model: keras.Model,
    places: tuple[Place, ...],
    config: FixerConfig,
    seed: int = 0,
    beside: Iterable[keras.Model] = (),
) -> dict[str, keras.Model]:
    """Build one fresh module per place, named after its path (`fixer_res_block_1`) and unlike any layer of `model`.

    Args:
        beside: Modules that are grafted in too, whose names are taken.
    """
    taken = (
        {module.name for module in beside}
        | {layer.name for layer in model._flatten_layers()}
        | {call.operation.name for call in calls(model)}
    )
    modules = {}
    for index, place in enumerate(places):
        name = f"{config.module}_{place.path.replace('/', '_')}"
        while name in taken:
            name += "_next"
        taken.add(name)
        modules[place.path] = FIXERS[config.module](place, config, name=name, seed=seed + 2 * index)
    return modules


@contextmanager
def frozen(model: keras.Model) -> Iterator[None]:
    """Freeze every layer of `model` inside the block and restore each layer's own flag after it.

    Frozen BatchNormalization keeps its statistics even when a caller asks for training mode.
    """
    flags = [(layer, layer._trainable) for layer in model._flatten_layers(include_self=True)]
    variables = [(variable, variable.trainable) for variable in model.variables]
    model.trainable = False
    try:
        yield
    finally:
        for layer, flag in flags:
            layer._trainable = flag
        for variable, flag in variables:
            variable.trainable = flag


def split_facts(place: Place, config: FixerConfig) -> SplitFacts:
    """Describe the module at `place` for the patch file."""
    return SplitFacts(
        path=place.path,
        shape=place.shape,
        rank=place.rank,
        channels_axis=place.channels_axis,
        data_format="channels_first" if place.channels_axis == 1 and place.rank > 2 else "channels_last",
        dtype_policy=place.dtype_policy,
        final_relu=final_relu(place, config),
    )


def survey(base: Base, config: FixerConfig | None = None) -> ModelFacts:
    """Return the facts of a model, with each layer and what a module of that kind there would cost."""
    config = config or FixerConfig()
    return ModelFacts(
        classes=base.classes,
        input_shape=base.input_shape,
        input_range=base.input_range,
        input_range_source=base.range_source,
        data_format="channels_first" if base.channels_first else "channels_last",
        dtype_policy=_main_policy(base),
        head=base.head,
        parameters=base.parameters,
        fingerprint=base.fingerprint,
        module=config.module,
        layers=tuple(_layer_facts(place, config, base.parameters) for place in base.layers),
    )


def _main_policy(base: Base) -> str:
    """Return the policy of most layers; the model's own is lost in its file."""
    policies = [place.dtype_policy for place in base.layers] or [base.model.dtype_policy.name]
    return Counter(policies).most_common(1)[0][0]


def _layer_facts(place: Place, config: FixerConfig, total: int) -> LayerFacts:
    cost, reason = None, why_not(place, config)
    if not reason:
        shapes = expected_shapes(split_facts(place, config), config)
        cost = sum(prod(shape) for shape in shapes.values())
    share = cost / total if cost is not None and total else None
    return LayerFacts(place.path, place.kind, place.shape, place.non_negative, cost, share, reason)
