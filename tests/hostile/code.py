"""Models whose configuration names code, files or addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hostile.good import (
    FLOAT32,
    Config,
    good_config,
    h5_file,
    keras_file,
    lambda_layer,
    layer,
    layer_of,
    nested,
    python_lambda,
    tensor,
    with_layer,
    with_setting,
)
from hostile.traps import Build, Registry, Traps

CODE = Registry()


@CODE.kind("lambda with Python code", harm="code")
def _(folder: Path, traps: Traps) -> Path:
    """Run marshalled Python code when the layer is built."""
    return keras_file(folder, with_layer(lambda_layer(traps)))


@CODE.kind("lambda with Python code in h5", harm="code")
def _(folder: Path, traps: Traps) -> Path:
    """Run marshalled Python code, as Keras 2 stored it."""
    code = python_lambda(traps)["config"]["code"]
    entry = layer("Lambda", {"function": [code, None, None], "function_type": "lambda", "arguments": {}}, None)
    config = with_layer({key: value for key, value in entry.items() if key not in ("module", "registered_name")})
    return h5_file(folder, config)


@CODE.kind("lambda in a nested model", harm="code")
def _(folder: Path, traps: Traps) -> Path:
    """Hide the code two levels down."""
    return keras_file(folder, with_layer(nested(nested(lambda_layer(traps), "innermost"), "inner")))


@CODE.kind("lambda in a Sequential", harm="code")
def _(folder: Path, traps: Traps) -> Path:
    """Hide the code in a Sequential model, whose layers are a plain list."""
    image = layer("InputLayer", {"batch_shape": [None, 8, 8, 4]}, name="inner_image")
    del image["config"]["trainable"]
    stack = {"name": "stack", "layers": [image, lambda_layer(traps)]}
    return keras_file(folder, with_layer(layer("Sequential", stack, "keras", "stack")))


@CODE.kind("lambda in TimeDistributed", harm="code")
def _(folder: Path, traps: Traps) -> Path:
    """Hide the code in the setting of a wrapper."""
    return keras_file(folder, with_layer(layer("TimeDistributed", {"layer": lambda_layer(traps, "inside")})))


@CODE.kind("lambda as output shape", harm="code")
def _(folder: Path, traps: Traps) -> Path:
    """Use the other function of a Lambda layer: the one that tells the shape."""
    shape = {**python_lambda(traps)}
    function = {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "relu"}
    return keras_file(folder, with_layer(layer("Lambda", {"function": function, "output_shape": shape})))


@CODE.kind("Python code as activation")
def _(folder: Path, traps: Traps) -> Path:
    """Give Python code where an activation belongs."""
    return keras_file(folder, with_setting("dense", activation=python_lambda(traps)))


@CODE.kind("Python code as activation in h5")
def _(folder: Path, traps: Traps) -> Path:
    """Give Python code where an activation belongs, in the other format."""
    return h5_file(folder, with_setting("dense", activation=python_lambda(traps)))


def function(module: str, name: str) -> Config:
    """Return a reference to a function."""
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def calling(module: str, name: str, argument: Any) -> Config:
    """Return a configuration in which a Lambda layer calls a function of Keras with what the file says."""
    entry = layer("Lambda", {"function": function(module, name), "arguments": {}})
    return with_layer(entry, args=[], kwargs={"inputs": argument})


# What each would do: a function of Keras' own, run at load with an argument from the file.
FUNCTIONS: dict[str, tuple[str, str, str]] = {
    "changes floatx": ("keras.config", "set_floatx", "float16"),
    "changes the data format": ("keras.config", "set_image_data_format", "channels_first"),
    "changes the dtype policy": ("keras.config", "set_dtype_policy", "mixed_float16"),
    "writes backend settings": ("keras.config", "set_backend", "jax"),
    "fetches a file": ("keras.utils", "get_file", "URL"),
    "reads an image": ("keras.utils", "load_img", "WORDS"),
    "reads a folder": ("keras.utils", "text_dataset_from_directory", "SECRET"),
    "loads another model": ("keras.saving", "load_model", "MODEL"),
    "loads another model under another name": ("keras.models", "load_model", "MODEL"),
    "turns safe mode off": ("keras.config", "enable_unsafe_deserialization", ""),
    "runs a system command": ("os", "system", "COMMAND"),
    "evaluates text": ("builtins", "eval", "PYTHON"),
    "imports a module": ("importlib", "import_module", "antigravity"),
}
SEEN = {"changes floatx": "settings", "changes the data format": "settings", "changes the dtype policy": "settings"}


def _function_kind(spec: tuple[str, str, str]) -> Build:
    def build(folder: Path, traps: Traps) -> Path:
        """Call a function with text from the file."""
        module, name, argument = spec
        values = {
            "URL": traps.url,
            "WORDS": str(traps.secret / "words.txt"),
            "SECRET": str(traps.secret),
            "MODEL": str(traps.secret / "model.keras"),
            "COMMAND": f"touch {traps.mark}",
            "PYTHON": traps.python,
        }
        return keras_file(folder, calling(module, name, values.get(argument, argument)))

    return build


for _name, _spec in FUNCTIONS.items():
    CODE.kind(f"function that {_name}", SEEN.get(_name, ""))(_function_kind(_spec))


@CODE.kind("function with a number")
def _(folder: Path, traps: Traps) -> Path:
    """Set the fuzz factor of the process: there is no text in the call to notice."""
    return keras_file(folder, calling("keras.config", "set_epsilon", 0.5))


@CODE.kind("function in h5", harm="settings")
def _(folder: Path, traps: Traps) -> Path:
    """Change floatx from an HDF5 file."""
    return h5_file(folder, calling("keras.config", "set_floatx", "float16"))


@CODE.kind("function as activation")
def _(folder: Path, traps: Traps) -> Path:
    """Name a function that is no activation where one belongs."""
    return keras_file(folder, with_setting("dense", activation=function("keras.config", "set_floatx")))


@CODE.kind("function as initializer")
def _(folder: Path, traps: Traps) -> Path:
    """Name a function that is no initializer where one belongs: it is called with the shape."""
    return keras_file(folder, with_setting("dense", kernel_initializer=function("keras.utils", "get_file")))


def popen(traps: Traps) -> Config:
    """Return an object that is made by starting a program."""
    arguments = {"args": ["touch", str(traps.mark)]}
    return {"module": "subprocess", "class_name": "Popen", "config": arguments, "registered_name": None}


PLACES = {
    "an activation": ("dense", "activation"),
    "an initializer": ("dense", "kernel_initializer"),
    "a regularizer": ("conv2d", "kernel_regularizer"),
    "a constraint": ("conv2d", "kernel_constraint"),
    "a dtype policy": ("dense", "dtype"),
    "a quantization": ("dense", "quantization_config"),
}


def _place_kind(where: tuple[str, str]) -> Build:
    def build(folder: Path, traps: Traps) -> Path:
        """Start a program where a part of a layer belongs."""
        return keras_file(folder, with_setting(where[0], **{where[1]: popen(traps)}))

    return build


for _name, _where in PLACES.items():
    CODE.kind(f"program for {_name}")(_place_kind(_where))


@CODE.kind("program as a layer")
def _(folder: Path, traps: Traps) -> Path:
    """Start a program where a layer belongs."""
    return keras_file(folder, with_layer({**popen(traps), "name": "extra"}))


@CODE.kind("program as the model")
def _(folder: Path, traps: Traps) -> Path:
    """Start a program instead of the whole model."""
    return keras_file(folder, popen(traps))


@CODE.kind("program in the nested compile settings")
def _(folder: Path, traps: Traps) -> Path:
    """Start a program as the optimizer of an inner model, which Keras compiles even with `compile=False`."""
    inner = nested(layer("ReLU", {}, name="inner_relu"))
    return keras_file(folder, with_layer({**inner, "compile_config": {"optimizer": popen(traps), "loss": "mse"}}))


@CODE.kind("program in the build settings")
def _(folder: Path, traps: Traps) -> Path:
    """Start a program where the shapes for building a layer belong."""
    config = good_config()
    layer_of(config, "dense")["build_config"] = {"input_shape": popen(traps)}
    return keras_file(folder, config)


@CODE.kind("program in a call")
def _(folder: Path, traps: Traps) -> Path:
    """Start a program where an argument of a call belongs."""
    return keras_file(folder, with_layer(layer("ReLU", {}), kwargs={"training": popen(traps)}))


@CODE.kind("module beside the model")
def _(folder: Path, traps: Traps) -> Path:
    """Import a Python file that came along with the model."""
    (folder / "evil.py").write_text(f"{traps.python}\nclass Layer:\n    pass\n")
    return keras_file(folder, with_layer(layer("Layer", {}, "evil")))


@CODE.kind("module named like Keras' own")
def _(folder: Path, traps: Traps) -> Path:
    """Import a Python file that came along and pretends to be one of Keras' packages."""
    (folder / "keras_hub").mkdir()
    (folder / "keras_hub" / "__init__.py").write_text(f"{traps.python}\n")
    return keras_file(folder, with_layer(layer("Layer", {}, "keras_hub")))


@CODE.kind("registered name of another class")
def _(folder: Path, traps: Traps) -> Path:
    """Say ReLU and mean Lambda."""
    entry = layer("ReLU", {"function": python_lambda(traps)})
    return keras_file(folder, with_layer({**entry, "registered_name": "Lambda"}))


@CODE.kind("class by its whole path")
def _(folder: Path, traps: Traps) -> Path:
    """Name a class by a dotted path in another module than the one that is said."""
    return keras_file(folder, with_layer({**lambda_layer(traps), "class_name": "layers.Lambda", "module": "keras"}))


@CODE.kind("class by its inner module", harm="code")
def _(folder: Path, traps: Traps) -> Path:
    """Name Lambda by the module that it is defined in."""
    return keras_file(folder, with_layer({**lambda_layer(traps), "module": "keras.src.layers.core.lambda_layer"}))


@CODE.kind("class name that is no text")
def _(folder: Path, traps: Traps) -> Path:
    """Give a list where a class name belongs."""
    return keras_file(folder, with_layer({**lambda_layer(traps), "class_name": ["Lambda"]}))


@CODE.kind("type specification")
def _(folder: Path, traps: Traps) -> Path:
    """Let Keras look up a class for a TensorFlow type."""
    spec = {"class_name": "__typespec__", "spec_name": "Lambda", "module": "keras.layers", "registered_name": None}
    return keras_file(folder, with_layer(layer("ReLU", {}), kwargs={"training": {**spec, "config": [[1], "float32"]}}))


@CODE.kind("SavedModel in a layer")
def _(folder: Path, traps: Traps) -> Path:
    """Load a SavedModel, whose graph can read and write files, from a path in the file."""
    return keras_file(folder, with_layer(layer("TFSMLayer", {"filepath": str(traps.secret)})))


@CODE.kind("SavedModel in a layer in h5")
def _(folder: Path, traps: Traps) -> Path:
    """Load a SavedModel from the other format."""
    return h5_file(folder, with_layer(layer("TFSMLayer", {"filepath": str(traps.secret)})))


@CODE.kind("PyTorch module in a layer")
def _(folder: Path, traps: Traps) -> Path:
    """Unpickle a PyTorch module."""
    return keras_file(folder, with_layer(layer("TorchModuleWrapper", {"module": "gASVAAAAAAAAAIwA"})))


@CODE.kind("JAX function in a layer")
def _(folder: Path, traps: Traps) -> Path:
    """Run a JAX function."""
    return keras_file(folder, with_layer(layer("JaxLayer", {"call_fn": python_lambda(traps), "init_fn": None})))


@CODE.kind("Flax module in a layer")
def _(folder: Path, traps: Traps) -> Path:
    """Run a Flax module."""
    return keras_file(folder, with_layer(layer("FlaxLayer", {"module": popen(traps), "method": "apply"})))


@CODE.kind("vocabulary from a file")
def _(folder: Path, traps: Traps) -> Path:
    """Read a file of words into the model, from which they can be sent on."""
    words = {
        "vocabulary": str(traps.secret / "words.txt"),
        "max_tokens": None,
        "num_oov_indices": 1,
        "mask_token": None,
    }
    return keras_file(folder, with_layer(layer("StringLookup", {**words, "oov_token": "[UNK]"})))


@CODE.kind("vocabulary of numbers from a file")
def _(folder: Path, traps: Traps) -> Path:
    """Read a file of numbers into the model."""
    words = {"vocabulary": str(traps.secret / "words.txt"), "max_tokens": None, "num_oov_indices": 1}
    return keras_file(folder, with_layer(layer("IntegerLookup", words)))


@CODE.kind("vocabulary from an address")
def _(folder: Path, traps: Traps) -> Path:
    """Read the words of a text layer from an address."""
    return keras_file(folder, with_layer(layer("TextVectorization", {"vocabulary": traps.url})))


@CODE.kind("vocabulary from a file in h5")
def _(folder: Path, traps: Traps) -> Path:
    """Read a file of words from the other format."""
    words = {
        "vocabulary": str(traps.secret / "words.txt"),
        "max_tokens": None,
        "num_oov_indices": 1,
        "mask_token": None,
    }
    return h5_file(folder, with_layer(layer("StringLookup", {**words, "oov_token": "[UNK]"})))


@CODE.kind("operation that takes a function")
def _(folder: Path, traps: Traps) -> Path:
    """Let an operation of Keras apply a function to each element."""
    entry = layer("Map", {}, "keras.src.ops.core")
    return keras_file(folder, with_layer(entry, args=[function("keras.config", "set_floatx"), tensor("relu")]))


@CODE.kind("class that is no operation")
def _(folder: Path, traps: Traps) -> Path:
    """Name a class from Keras' inner modules that is no layer and no operation."""
    return keras_file(folder, with_layer(layer("Progbar", {"target": 1}, "keras.src.utils.progbar")))


@CODE.kind("text in a call")
def _(folder: Path, traps: Traps) -> Path:
    """Give a harmless layer a path as an argument."""
    entry = layer("ReLU", {})
    return keras_file(folder, with_layer(entry, args=[tensor("relu"), str(traps.secret / "words.txt")]))


@CODE.kind("custom class in h5")
def _(folder: Path, traps: Traps) -> Path:
    """Name a class that nobody knows, hoping that it is registered where the file is opened."""
    entry = layer("Backdoor", {})
    return h5_file(folder, with_layer({**entry, "registered_name": "evil>Backdoor", "module": None}))


@CODE.kind("TensorFlow operation in h5")
def _(folder: Path, traps: Traps) -> Path:
    """Run a TensorFlow operation that reads a file, as Keras 2 stored operations."""
    node = {"name": "ReadFile", "op": "ReadFile", "input": ["words"]}
    entry = layer("TensorFlowOpLayer", {"node_def": node, "constants": {"0": str(traps.secret / "words.txt")}}, None)
    return h5_file(folder, with_layer({key: value for key, value in entry.items() if key != "module"}))


@CODE.kind("dtype policy by a made-up class")
def _(folder: Path, traps: Traps) -> Path:
    """Name an unknown class as the policy of a layer."""
    return keras_file(folder, with_setting("dense", dtype={**FLOAT32, "class_name": "system", "module": "os"}))
