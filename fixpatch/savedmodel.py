"""Convert a SavedModel folder that Keras 2 wrote into an HDF5 file, in a process of its own and without running it.

A SavedModel is a program: `saved_model.pb` holds graphs that TensorFlow would run. Keras 2 put the model's
configuration beside it, in `keras_metadata.pb`. From that the model is built anew, and its weights come from the
checkpoint in `variables/`; the program is never opened.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fixpatch.allowlist import count_calls, read_config, require_known
from fixpatch.apart import command_for, limit_resources
from fixpatch.errors import FixpatchError, ModelError
from fixpatch.legacy import modernise, renew_file
from fixpatch.vetting import has_holes

INSTALL = "Install it with `pip install 'fixpatch[saved-model]'`."
REWRITE = "Load it where it was made and save the Keras model itself: model.save('model.keras')."
SECONDS = 600
LARGEST, LARGEST_CONFIG = 2**32, 2**24
MEMORY, MEMORY_PER_BYTE = 2**31, 8


def convert_saved_model(folder: Path, out: Path) -> None:
    """Write the Keras 2 model in `folder` to the HDF5 file `out`.

    Raises:
        ModelError: No Keras 2 model, nothing that fixpatch opens, weights that do not fit it, or tf-keras is missing.
    """
    _require_files(folder)
    if importlib.util.find_spec("tf_keras") is None:
        raise ModelError(f"'{folder}' is a SavedModel of Keras 2; reading it needs the package tf-keras.", INSTALL)
    line = command_for("savedmodel", str(folder.absolute()), str(out.absolute()))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False)
        said = json.loads(done.stdout.strip().rpartition("\n")[2])
    except (subprocess.TimeoutExpired, ValueError) as error:  # it was ended before it could say why
        raise ModelError(f"'{folder}' cannot be converted: it takes too much time or memory.", REWRITE) from error
    if said:
        raise ModelError(said["fault"], said["hint"])


def _require_files(folder: Path) -> None:
    """Check that the files to be read are there, and are files."""
    if not (folder / "keras_metadata.pb").exists():
        raise ModelError(
            f"'{folder}' is a SavedModel without keras_metadata.pb: Keras 3 or TensorFlow alone wrote it, "
            "and the layers are not in it.",
            REWRITE,
        )
    data = [folder / "keras_metadata.pb", *_weight_files(folder)]
    links = any(path.is_symlink() for path in (folder / "variables", *data))
    if len(data) < 3 or links or not all(path.is_file() for path in data):
        raise ModelError(f"'{folder}' has no weights in its folder 'variables'.", "Is it complete? Copy it again.")
    size = sum(path.stat().st_size for path in data)
    if size > LARGEST or data[0].stat().st_size > LARGEST_CONFIG or any(map(has_holes, data)):
        raise ModelError(f"'{folder}' has {size:,} bytes, or holes where they should be.", "Is it a model?")


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of the checkpoint: TensorFlow reads these and no others."""
    return sorted((folder / "variables").glob("variables.*"))


def convert_here(folder: Path, out: Path) -> None:
    """Do the work of `convert_saved_model` in this process, which takes in tf-keras."""
    importlib.import_module("tf_keras")  # its own memory is not the file's
    size = sum(path.stat().st_size for path in _weight_files(folder))
    limit_resources(seconds=SECONDS, memory=MEMORY + MEMORY_PER_BYTE * size, largest_file=2 * size + 2**26)
    config = config_of(folder)
    count_calls(config, str(folder))
    require_known(config, str(folder))  # this is built here
    require_known(modernise(config), str(folder))  # and this is what is written
    model = build(config, folder)
    load_weights(model, folder)
    model.save(out, save_format="h5", include_optimizer=False)
    renew_file(out)


def config_of(folder: Path) -> dict[str, Any]:
    """Read the model's configuration from the first node of `keras_metadata.pb`."""
    from tf_keras.protobuf import saved_metadata_pb2

    data = (folder / "keras_metadata.pb").read_bytes()
    nodes = saved_metadata_pb2.SavedMetadata.FromString(data).nodes
    roots = [node for node in nodes if node.node_path == "root"]
    config = read_config(roots[0].metadata.encode(), str(folder)) if roots else {}
    config = config.get("model_config") if isinstance(config, dict) else None
    if not isinstance(config, dict) or "class_name" not in config:
        raise ModelError(
            f"'{folder}' holds no configuration of a model with a graph of layers: it is a subclassed model or none.",
            "Rebuild it with the functional API or as a built Sequential, and save it again.",
        )
    return dict(_without_tuples(config))


def _without_tuples(value: Any) -> Any:
    """Return the JSON with plain lists where Keras 2 marked tuples and shapes."""
    if isinstance(value, dict) and value.get("class_name") in ("__tuple__", "TensorShape"):
        value = value["items"]
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    return [_without_tuples(item) for item in value] if isinstance(value, list) else value


def build(config: dict[str, Any], folder: Path) -> Any:
    """Build the model with tf-keras."""
    import tf_keras

    try:
        model = tf_keras.models.model_from_config(config)
    except Exception as error:  # Keras raises every kind for what it cannot rebuild
        raise ModelError(f"Keras 2 cannot rebuild the model in '{folder}': {_first_line(error)}", REWRITE) from error
    if not model.built:
        raise ModelError(f"The model in '{folder}' was saved without the shape of its input.", REWRITE)
    return model


def load_weights(model: Any, folder: Path) -> None:
    """Load the checkpoint, and check that it holds just the model's weights, in the order that it lists them.

    TensorFlow finds each weight by its path through the layers. A path that leads nowhere is passed over in silence,
    and so is a stored weight that no path leads to; hence the second look, at the list of all weights.
    """
    import numpy as np
    import tensorflow as tf

    try:
        prefix = str(folder / "variables" / "variables")
        model.load_weights(prefix).assert_existing_objects_matched()
        stored = _listed_weights(tf.train.load_checkpoint(prefix))
    except Exception as error:  # TensorFlow has many kinds for a damaged checkpoint
        raise ModelError(f"The weights in '{folder}' do not fit its layers: {_first_line(error)}", REWRITE) from error
    loaded = model.get_weights()
    if len(stored) != len(loaded) or not all(map(np.array_equal, stored, loaded)):
        raise ModelError(
            f"'{folder}' lists {len(stored)} weights; expected the {len(loaded)} of its layers, in their order.",
            REWRITE,
        )


def _listed_weights(reader: Any) -> list[Any]:
    """Return the arrays under `variables` of the root of an object-based checkpoint."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    text = reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    nodes = trackable_object_graph_pb2.TrackableObjectGraph.FromString(text).nodes
    root = {child.local_name: child.node_id for child in nodes[0].children}
    listed = {int(child.local_name): child.node_id for child in nodes[root["variables"]].children}
    return [reader.get_tensor(nodes[listed[index]].attributes[0].checkpoint_key) for index in sorted(listed)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]


def main() -> None:
    """Convert, and say on the last line of stdout what went wrong, as JSON."""
    said: dict[str, str] = {}
    try:
        convert_here(Path(sys.argv[1]), Path(sys.argv[2]))
    except FixpatchError as error:
        said = {"fault": error.message, "hint": error.hint}
    except Exception as error:  # a stranger's file can fail in any way; no traceback, the file is at fault
        said = {"fault": f"'{sys.argv[1]}' cannot be converted: {_first_line(error)}", "hint": REWRITE}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
