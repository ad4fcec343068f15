"""Writes docs/reference/ from the code: commands, configuration keys, file formats.

    python docs/generate_reference.py

The pages are committed, so that they can be read in the repository; a test compares them.
"""

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
from pathlib import Path

import numpy as np

from flair_jax import config
from flair_jax.cli.commands import COMMANDS
from flair_jax.cli.parser import Parser
from flair_jax.config_keys import SECTIONS
from flair_jax.data.nomenclature import nomenclature
from flair_jax.evaluation import evaluate, metrics
from flair_jax.inference import detection
from flair_jax.models.spec import ModelSpec
from tfds_builder.flair import records

FOLDER = Path(__file__).with_name("reference")
NOTE = "<!-- Written by docs/generate_reference.py: change the code, and run it again. -->\n\n"

TAGS = {  # of the GeoTIFF of detect
    "AREA_OF_INTEREST": "the vector file or the bounds (`--aoi`, `--bounds` only)",
    "ENGINE": "what computed the network, with its version, and the precision",
    "INPUTS": "the input files, the first ones",
    "LICENSE": "licence of the map (`--license` only)",
    "TIFFTAG_COPYRIGHT": "the same, where image viewers look for it",
    "TIFFTAG_DATETIME": "when the detection was begun",
    "TIFFTAG_SOFTWARE": "this package and its version",
    "MODEL": "network and nomenclature",
    "MODEL_CHECKPOINT": "folder of the checkpoint",
    "MODEL_STEP": "its step",
    "MODEL_WEIGHTS_SHA256": "SHA-256 of all weights and batch statistics",
    "MODEL_ADAPTED": "how the batch statistics were re-estimated (`--adapt` only)",
    "MODEL_BANDS": "bands that the model takes, in order",
    "MODEL_TRAINED_ON": "data set, and whether it is synthetic",
    "INPUT_BANDS": "which band of the raster fed which band of the model, and how that was decided",
    "INPUT_VALIDITY": "what valid pixels are known from: mask, alpha or NoData",
    "GROUND_SAMPLE_DISTANCE": "size of a pixel of the map in metres, or `unknown`",
    "FLAIR_JAX_VERSION": "version of this package",
    "FIRST_CLASS": "value of the first class, 0 or 1",
    "CLASS_NAMES": "value and name of every class, separated by `; `",
    "TILES": "tile, margin, blending, symmetries",
    "SETTINGS_SHA256": "SHA-256 of everything that the result depends on, by which `--resume` "
    "recognises it",
}
METRICS = {  # of metrics.json
    "definitions": "the definitions of the scores, in words",
    "challenge": "`miou`, and `iou` by class: [the definition](../explanation/scores.md)",
    "main": "`miou`, `accuracy`, `mean_precision`, `mean_recall`, `mean_fscore`; by class `iou`, "
    "`precision`, `recall`, `fscore`",
    "open_vocabulary": "`miou`, and `iou` by class",
    "intervals": "`level`, `resamples`, `zones`; [low, high] of `challenge_miou`, `main_miou` and, "
    "by class, `challenge_iou`; null for a single zone",
    "by_domain": "for each domain `num_patches`, `num_zones`, the scores by all definitions, and "
    "`challenge_miou_interval`; named after what the data set calls a group",
    "by_camera": "the same for each camera, if any is known",
    "by_month": "the same for each month, `01` to `12`, of any year, if any is known",
    "confusion_matrix": "counts of pixels; rows are the truth",
    "classes": "names of its rows and columns",
    "loss": "mean loss, by `config.loss_normalization`",
    "num_patches": "patches with a mask",
    "split": "train, val or test",
    "data": "name of the data set",
    "synthetic": "whether it is synthetic",
    "step": "of the checkpoint",
    "adapt": "`domain` for `--adapt=domain`, otherwise empty",
    "provenance": "`checkpoint` (folder, step, weights, checksums), `data` (fingerprint, folder), "
    "`definitions`, `command`, `versions`, `git_commit`",
}


def parser_of(name: str) -> Parser:
    """The parser of a subcommand."""
    module = importlib.import_module(f"flair_jax.cli.{name.replace('-', '_')}")
    parser = Parser(f"flair-jax {name}", COMMANDS[name], module.EXAMPLES)
    module.add_flags(parser)
    return parser


def commands() -> str:
    """The page of the commands and their flags."""
    parts = [
        "# Commands\n",
        "`flair-jax COMMAND --help` prints the same. Flags take their value after `=` or a space. "
        "Exit status: 0; 1 for an error; 2 for a command line that cannot be read.\n",
        *(f"- [`{name}`](#flair-jax-{name}): {text}" for name, text in COMMANDS.items()),
    ]
    for name, text in COMMANDS.items():
        parser = parser_of(name)
        examples = [line.strip() for line in str(parser.epilog).split("\n")[1:]]
        parts += [f"\n## flair-jax {name}\n", f"{text}\n", "```bash", *examples, "```\n"]
        parts += ["| flag | meaning |", "|---|---|"]
        parts += [_flag(action) for action in parser._actions if action.dest != "help"]
    return NOTE + "\n".join(parts) + "\n"


def _flag(action: argparse.Action) -> str:
    value = action.metavar or (
        "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
    )
    shown = [f"`{flag}`" if action.nargs == 0 else f"`{flag}={value}`"
             for flag in action.option_strings]  # fmt: skip
    if isinstance(action, argparse.BooleanOptionalAction):
        shown = [f"`{flag}`" for flag in action.option_strings]
    text = (action.help or "") + (" (required)" if action.required else "")
    return _row(", ".join(shown), text)


def _row(*cells: str) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def configuration() -> str:
    """The page of the configuration keys."""
    parts = [
        "# Configuration\n",
        "A configuration is a Python file that changes some of these keys; `--config=NAME` takes "
        f"one that is shipped ({', '.join(config.shipped())}), `--config=FILE` yours. "
        "`--config.KEY=VALUE` changes a key on the command line. The defaults are the published "
        "baseline's. `flair-jax config` prints this list, `flair-jax config --config=toy` what a "
        "configuration changes.\n",
        "*resume*: a run may resume with another value, since its weights do not depend on it. "
        "*model*: the trained model depends on it, so that an evaluation cannot choose another.\n",
    ]
    for section, keys in SECTIONS.items():
        parts += [f"\n## {section}\n", "| key | default | meaning | values |", "|---|---|---|---|"]
        for key in keys:
            notes = ["resume"] * key.changeable + ["model"] * key.of_model
            meaning = key.meaning + "".join(f" *{note}*" for note in notes)
            parts.append(_row(f"`{key.name}`", f"`{key.default!r}`", meaning, key.expected))
    return NOTE + "\n".join(parts) + "\n"


def files() -> str:
    """The page of the file formats."""
    parts = [
        "# Files\n",
        "## A run's folder\n",
        "The workdir is `runs/<name of the configuration>` unless `--workdir` is given.\n",
        "| file | content |",
        "|---|---|",
        *(_row(f"`{path}`", content) for path, content in WORKDIR.items()),
        "\nPredicted classes start at 0 (building), as the challenge requires; mask values start "
        "at 1.\n",
        "## metrics.json\n",
        "Scores of a split. A number that is not defined is null.\n",
        "| key | content |",
        "|---|---|",
        *(_row(f"`{key}`", _meaning(METRICS, key)) for key in _metrics_keys()),
        "\n`patches.json` has `step`, `split`, `provenance` and, in `patches`, for each patch "
        "`id`, `domain`, `zone`, `camera`, `date`, `place` (its index in the split), `classes` "
        "(scored classes in its mask), `pixels` (of these classes), `miou` (over these classes) "
        "and `accuracy` (of these pixels).\n",
        "## model.json\n",
        "The spec of a model, beside its checkpoints: all that is needed to build it and to feed "
        "it. `checksum` is that of the other fields: remove it after editing the file.\n",
        "| field | content |",
        "|---|---|",
        *(_row(names, text) for names, text in _attributes(ModelSpec)),
        "\nFurther fields: `architecture`, `first_class`, `written_by` (versions), `checksum`.\n",
        "## Maps of detect\n",
        "`OUT.tif` is a Cloud-Optimised GeoTIFF of one uint8 band with a colour table, overviews "
        f"(by mode) and NoData {_nodata()}. Class names are in `OUT.tif.aux.xml`, where GDAL keeps "
        "them; `OUT.qml` is a QGIS style, `OUT.png` a preview with legend. Its tags:\n",
        "| tag | content |",
        "|---|---|",
        *(_row(f"`{tag}`", _meaning(TAGS, tag)) for tag in _tags()),
        "\n`OUT_probabilities.tif` (`--probabilities`) has one uint8 band for each class, "
        "`OUT_confidence.tif` (`--confidence`) the probability of the class, its margin to the "
        "second most probable one, and the entropy. Both have a scale of 1/255 and a mask of valid "
        "pixels. `OUT.json` has pixels, hectares and share of each class, and what the map was "
        "made of and how; `OUT.stac.json` is a STAC item; a GeoPackage (`--polygons`) has the "
        "fields `class`, `name` and `area_m2`.\n",
        "## Data set\n",
        "TFDS data sets in ArrayRecord files, `<data_dir>/<name>/<config>/<version>`; layout and "
        "fingerprint are described in "
        "[the builder's README](https://github.com/flair-jax/flair-jax/blob/main/tfds_builder/"
        "README.md). Features of a patch, here those of FLAIR; texts are empty where something is "
        "not known:\n",
        "| feature | shape, type | content |",
        "|---|---|---|",
        *_features(),
    ]
    return NOTE + "\n".join(parts) + "\n"


WORKDIR = {
    "config.json": "the configuration",
    "run.json": "the data set and the devices that the run resumes with",
    "checkpoints/": "the latest two and the best, with `model.json`",
    "damaged_checkpoints/": "steps that were found damaged, if any",
    "metrics.jsonl": "losses, learning rates and scores over time, a JSON object a line",
    "tensorboard/": "the same, with validation patches and the confusion matrix of every epoch",
    "evaluation/SPLIT/metrics.json": "scores, see below; `SPLIT_ema` of the moving average, "
    "`SPLIT_adapted` with `--adapt=domain`",
    "evaluation/SPLIT/patches.json": "scores of every patch, see below",
    "evaluation/SPLIT/confusion_matrix.png": "the confusion matrix",
    "predictions/PRED_NUMBER.tif": "predicted classes, georeferenced, uint8, LZW "
    "(`flair-jax predict`, or `config.predict_after_training`)",
    "predictions.json": "what the predictions are of",
    "predictions_overlays/": "images overlaid with the predicted classes (`--overlays`)",
    "profile/": "profiles for TensorBoard (`config.profile`)",
    "index.html": "the HTML report",
}


def _metrics_keys() -> list[str]:
    classes = nomenclature("baseline")
    confusion = np.eye(len(classes), dtype=np.int64)
    scores = list(metrics.summary(confusion, classes.names, classes.weights))
    source = inspect.getsource(evaluate.evaluate_checkpoint)
    literal = re.findall(r'^        "(\w+)": ', source, re.MULTILINE)
    groups = ["intervals", "by_domain", "by_camera", "by_month"]
    return [literal[0], *scores, *groups, *literal[1:]]


def _tags() -> list[str]:
    source = inspect.getsource(detection)
    return sorted(set(re.findall(r'"([A-Z][A-Z0-9_]+)"(?:: |\] = )', source)))


def _meaning(of: dict[str, str], key: str) -> str:
    if key not in of:
        raise SystemExit(f"docs/generate_reference.py: write down what {key!r} holds, in the table")
    return of[key]


def _nodata() -> int:
    from flair_jax.inference.geotiff import NODATA

    return NODATA


def _attributes(kind: type) -> list[tuple[str, str]]:
    """Names and meanings in the section Attributes of a docstring, which has to be complete."""
    text = inspect.getdoc(kind).split("Attributes:\n")[1]  # type: ignore[union-attr]
    found: list[tuple[str, str]] = []
    named: list[str] = []
    for entry in re.split(r"\n(?=    \w)", text.rstrip()):
        names, meaning = entry.strip().split(": ", 1)
        named += names.split(", ")
        shown = ", ".join(f"`{name}`" for name in names.split(", "))
        found.append((shown, " ".join(meaning.split())))
    fields = [field.name for field in dataclasses.fields(kind)]
    assert sorted(named) == sorted(fields), f"docstring of {kind.__name__}: {named}, {fields}"
    return found


def _features() -> list[str]:
    lines = []
    for name, feature in records.features(None).items():
        shape = " x ".join(str(side or side_of) for side, side_of in
                           zip(feature.shape, ("rows", "columns", ""), strict=False))  # fmt: skip
        kind = np.dtype(feature.np_dtype).name if feature.np_dtype is not np.object_ else "text"
        kind = "text" if kind in ("object", "str") else kind
        where = f"{shape} {kind}".strip()
        extra = f" ({feature.doc.value_range})" if feature.doc.value_range else ""
        text = f"{feature.doc.desc}{extra}".replace("<", "&lt;")
        lines.append(_row(f"`{name}`", where, text))
    return lines


PAGES = {"commands.md": commands, "configuration.md": configuration, "files.md": files}


def main() -> int:
    """Writes the pages that are not up to date; returns the exit status."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        path = FOLDER / name
        text = page()
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
