"""The main job through the Python API: train a patch, apply it, measure it.

fixpatch demo && python examples/patch_a_model.py fixpatch-demo/model.keras fixpatch-demo/small fixpatch-demo/test
"""

import sys

import fixpatch


def main(model: str, small: str, test: str, splits: str = "res_block_1,res_block_2", **settings: object) -> None:
    base = fixpatch.load(model)
    print(f"{base.name}: {base.classes} classes, input {base.input_shape}, head {base.head}")

    patch = fixpatch.train(base, small, splits.split(","), attack="autopgd", **{"eps": "40/255", **settings})
    patch.save("patch.h5", force=True)

    patched = fixpatch.load_patch("patch.h5").apply(base)  # an ordinary keras.Model
    patched.save("patched.keras")

    scores = fixpatch.evaluate(base, patch, test, attacks=[patch.manifest.attack], attackers=["base", "patched"])
    for score in scores.scores:
        made = f"{score.attack:<8} made on {score.attacker:<8}"
        print(f"{score.model:<6} {made} accuracy {100 * score.accuracy.value:5.1f} %")
    for warning in scores.warnings:
        print("warning:", warning)


if __name__ == "__main__":
    main(*sys.argv[1:])
