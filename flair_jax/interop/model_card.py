"""The model card of an exported model: a README.md as the Hugging Face hub shows it."""

import json
import re
from collections.abc import Mapping
from typing import Any

import flair_jax
from flair_jax.interop.stac_item import data_name
from flair_jax.models.spec import ModelSpec, stretch_text
from tfds_builder.hub.reference import STEPS_PER_METRE

TAGS = (
    "remote-sensing", "aerial-imagery", "land-cover", "semantic-segmentation", "unet", "resnet34",
    "jax", "pytorch",
)  # fmt: skip
_DEFINITIONS = {"challenge": "FLAIR's challenge", "main": "the reference's later code"}


def text(
    name: str,
    spec: ModelSpec,
    record: Mapping[str, Any],
    parameters: int,
    *,
    license: str = "",
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """The card: YAML front matter, then Markdown.

    Args:
        name: of the model.
        spec: of the model.
        record: its `step`, and in `weights` "raw" or "ema".
        parameters: their number.
        license: its SPDX identifier; "" if it is not known.
        metrics: the scores on the test split, see `evaluate.evaluate_checkpoint`; None if they are
            not known.
    """
    trained = f" after step {record['step']} of its training" if record["step"] else ""
    ema = " (their exponential moving average)" if record["weights"] == "ema" else ""
    parts = [
        _front_matter(name, spec, license, metrics),
        f"# {name}",
        f"Land cover of aerial images, pixel by pixel: a U-Net with a ResNet34 encoder, "
        f"{parameters:,} parameters, trained on {data_name(spec)}. The weights{ema}{trained} were "
        f"exported by flair-jax {flair_jax.__version__}.",
        *([_SYNTHETIC] if spec.synthetic else []),
        _input(spec),
        _output(spec),
        _scores(spec, metrics),
        _use(name, spec),
        _license(license),
    ]
    return "\n\n".join(parts) + "\n"


_SYNTHETIC = (
    "> **Trained on synthetic data.** The images that this model was trained on are drawn by a "
    "program. It is of no use on real images, and its scores say nothing of them."
)


def _front_matter(
    name: str, spec: ModelSpec, license: str, metrics: Mapping[str, Any] | None
) -> str:
    """The YAML: a value is written as JSON, which YAML includes."""
    values: dict[str, Any] = {}
    if license:
        values["license"] = license.lower()
    values["library_name"] = "flair-jax" if spec.takes_metadata else "segmentation-models-pytorch"
    values["pipeline_tag"] = "image-segmentation"
    values["tags"] = [*TAGS, "flair-jax"]
    if metrics:
        values["metrics"] = ["mean_iou"]
        values["model-index"] = [{"name": name, "results": [_result(spec, metrics)]}]
    lines = []
    for key, value in values.items():
        if isinstance(value, list):
            items = (f"- {json.dumps(item, ensure_ascii=False)}" for item in value)
            lines += [f"{key}:", *items]
        else:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(["---", *lines, "---"])


def _result(spec: ModelSpec, metrics: Mapping[str, Any]) -> dict[str, Any]:
    data = data_name(spec)
    return {
        "task": {"type": "image-segmentation", "name": "Land-cover segmentation"},
        "dataset": {
            "type": re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-"),
            "name": data,
            "split": metrics["split"],
        },
        "metrics": [
            {
                "type": "mean_iou",
                "name": f"mIoU, definition of {by}",
                "value": round(metrics[key]["miou"], 4),
            }
            for key, by in _DEFINITIONS.items()
        ],
    }


def _input(spec: ModelSpec) -> str:
    custom = spec.normalization == "custom"
    header = ["", "band"] + (["mean", "standard deviation"] if custom else [])
    rows = [
        [str(number), band] + ([f"{mean:g}", f"{std:g}"] if custom else [])
        for number, (band, mean, std) in enumerate(
            zip(spec.bands, spec.means, spec.stds, strict=True), 1
        )
    ]
    stretch = dict(zip(spec.bands, spec.stretch, strict=False))
    kinds = " and ".join(spec.image_types)
    lines = [
        f"- Pixels of {kinds} images, {stretch_text(stretch)}"
        + (" to 0..255." if stretch else ": digital numbers from 0 to 255."),
        "- Normalisation: "
        + (
            "(digital number - mean) / standard deviation, of each band."
            if custom
            else "digital number / 255."
        ),
        "- Pixel size: "
        + (
            f"{spec.pixel_size:g} m; images of another have to be resampled."
            if spec.pixel_size
            else "not known."
        ),
        "- Height and width: "
        + ("512 pixels." if spec.metadata_fusion == "rows" else "multiples of 32 pixels.")
        + (
            f" Trained on patches of {spec.patch_size[0]} x {spec.patch_size[1]} pixels."
            if all(spec.patch_size)
            else ""
        ),
    ]
    if spec.is_flairs and "height" in spec.bands:
        lines.append(
            f"- height: above ground, in steps of {1 / STEPS_PER_METRE:g} m, at most 255 of them."
        )
    if spec.takes_metadata:
        lines.append(
            f"- Metadata of each image: position, camera and date in flair-jax's encoding "
            f"{spec.metadata_encoding!r}."
        )
    return "## Input\n\n" + _table(header, rows) + "\n\n" + "\n".join(lines)


def _output(spec: ModelSpec) -> str:
    rows = [
        [
            str(number),
            c.name,
            f"`{c.colour}`",
            ", ".join(map(str, c.values)),
            f"{c.weight:g}",
        ]
        for number, c in enumerate(spec.nomenclature.classes)
    ]
    untrained = not all(c.weight for c in spec.nomenclature.classes)
    note = "\n\nA class with the weight 0 in the loss is not trained." if untrained else ""
    return (
        "## Output\n\nLogits of these classes, in this order; mask values are those of the "
        "training's masks.\n\n"
        + _table(["", "class", "colour", "mask values", "weight in the loss"], rows)
        + note
    )


def _scores(spec: ModelSpec, metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "## Scores\n\nNone are known."
    intervals = metrics["intervals"]
    level = f"{intervals['level']:.0%} interval"
    challenge, main = metrics["challenge"], metrics["main"]
    rows = [
        [
            name,
            _percent(value),
            _interval(intervals["challenge_iou"].get(name)),
            _percent(main["iou"].get(name)),
        ]
        for name, value in challenge["iou"].items()
    ]
    rows.append(
        [
            "**mIoU**",
            f"**{_percent(challenge['miou'])}**",
            _interval(intervals["challenge_miou"]),
            f"**{_percent(main['miou'])}**",
        ]
    )
    definitions = metrics["definitions"]
    return (
        f"## Scores\n\nIoU in per cent, on {metrics['num_patches']:,} patches of the "
        f"{metrics['split']} split of {data_name(spec)}. "
        f'Overall accuracy (definition "main"): {_percent(main["accuracy"])} %.\n\n'
        + _table(["class", "challenge", level, "main"], rows)
        + f"\n\n- challenge: {definitions['challenge']}.\n- main: {definitions['main']}.\n"
        f"- The intervals are of {intervals['resamples']:,} bootstrap resamples of "
        f"{intervals['zones']} zones. They show how far the score depends on which zones were "
        "scored, not how it differs from one training to another."
    )


def _use(name: str, spec: ModelSpec) -> str:
    address, bands, classes = f"hf://ORGANISATION/{name}", len(spec.bands), len(spec.nomenclature)
    detect = f"flair-jax detect --checkpoint={address} --input=ortho.tif --output=cover.tif"
    metadata = ", metadata" if spec.takes_metadata else ""
    with_flair_jax = f"""## Use

With flair-jax (`pip install 'flair-jax[hub]'`), which normalises. `{address}` can also be the path
of a copy of this folder.

```python
import flair_jax

model = flair_jax.load_model("{address}")
# images: (N, H, W, {bands}) uint8; probabilities: (N, H, W, {classes})
probabilities = model(images{metadata})
```
"""
    if spec.takes_metadata:
        return (
            with_flair_jax
            + "\nsegmentation-models-pytorch has no network that takes metadata, and "
            "cannot load these weights."
        )
    scaled = "inputs = images.float() / 255"
    if spec.normalization == "custom":
        mean, std = (
            f"torch.tensor([{', '.join(map(repr, values))}]).view(-1, 1, 1)"
            for values in (spec.means, spec.stds)
        )
        scaled = f"mean = {mean}\nstd = {std}\ninputs = (images.float() - mean) / std"
    return f"""{with_flair_jax}
Rasters of any size, from the command line:

```
{detect}
```

With segmentation-models-pytorch:

```python
import segmentation_models_pytorch as smp
import torch

model = smp.from_pretrained("ORGANISATION/{name}").eval()
# images: (N, {bands}, H, W) uint8; probabilities: (N, {classes}, H, W)
{scaled}
with torch.no_grad():
    probabilities = model(inputs).softmax(1)
```"""


def _license(license: str) -> str:
    if license:
        return f"## Licence\n\n{license}, as whoever exported the model has stated."
    return (
        "## Licence\n\nNone was stated when the model was exported. Who uploads it has to state "
        "one here and as `license:` in the first lines of this file."
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _interval(bounds: list[float] | None) -> str:
    return "–" if bounds is None else f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}"
