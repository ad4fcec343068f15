"""The table of configuration keys: default, meaning, allowed values, when each may change."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from flair_jax.data.bands import BANDS
from flair_jax.data.metadata import SIZES
from flair_jax.data.nomenclature import NOMENCLATURES, OF_DATA
from flair_jax.models.choices import FUSIONS, LOSS_NORMALIZATIONS


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must be: in words, and as a test of values of the default's type."""

    expected: str
    holds: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: dotted.
        default: its value in the published baseline; its type is the key's.
        meaning: what it does, in a sentence or two.
        rule: which values it takes; None: all of the default's type.
        changeable: a run may resume with another value, since its weights do not depend on it.
        of_model: the trained model depends on it, so that an evaluation cannot choose another.
    """

    name: str
    default: Any
    meaning: str
    rule: Rule | None = None
    _: dataclasses.KW_ONLY
    changeable: bool = False
    of_model: bool = False

    @property
    def expected(self) -> str:
        """Which values it takes, in words."""
        return self.rule.expected if self.rule else KINDS[type(self.default)]

    def takes(self, value: Any) -> bool:
        """Whether a value is of the default's type, and as the rule wants it."""
        kind = type(self.default)
        # Exact types, since a bool is an int to Python; but an int may stand for a float.
        if type(value) is not kind and not (kind is float and type(value) is int):
            return False
        try:
            return self.rule is None or self.rule.holds(value)
        except TypeError:  # an element of a tuple that cannot be compared
            return False


KINDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "a tuple",
}


def one_of(*values: str) -> Rule:
    """One of several strings."""
    return Rule(" or ".join(map(repr, values)), lambda value: value in values)


def at_least(lowest: int, meaning_of_lowest: str = "") -> Rule:
    """A finite number from `lowest` on."""
    note = f" ({meaning_of_lowest})" if meaning_of_lowest else ""
    text = f"{lowest}{note} or more" if note else f"at least {lowest}"
    return Rule(text, lambda value: lowest <= value < math.inf)


def _numbers(what: str, *, above: float = -math.inf) -> Rule:
    def holds(value: tuple) -> bool:
        return all(
            isinstance(number, int | float) and above < number < math.inf for number in value
        )

    return Rule(what, holds)


def _are_steps(value: tuple) -> bool:
    return (
        len(value) == 2
        and all(isinstance(step, int) for step in value)
        and 0 <= value[0] <= value[1]
    )


def _are_classes(value: tuple) -> bool:
    """Whether the parts of all classes are there; `nomenclature` checks them."""
    return all(
        isinstance(entry, tuple | list) and len(entry) == 4 and isinstance(entry[3], tuple | list)
        for entry in value
    )


POSITIVE = Rule("more than 0", lambda value: 0 < value < math.inf)
PROBABILITY = Rule("a probability, 0 to 1", lambda value: 0 <= value <= 1)
TEXTS = Rule("a tuple of strings", lambda value: all(isinstance(element, str) for element in value))

MONITORS = ("val_loss", "val_miou", "val_loss_ema", "val_miou_ema")

SECTIONS: dict[str, tuple[Key, ...]] = {
    "Data": (
        Key(
            "data_dir", "",
            "The --data_dir of the build; '' is TFDS's own, ~/tensorflow_datasets.",
            changeable=True,
        ),
        Key("data_config", "published", "The --config of the build, or the --name of your own."),
        Key(
            "bands", BANDS,
            "The bands that the model sees, in this order, such as red,green,blue; () are all of "
            "the data set.",
            Rule(
                f"names of bands, each once: of FLAIR's {', '.join(BANDS)}",
                lambda value: len(value) == len(set(value)) and all(
                    isinstance(name, str) and name.strip() for name in value
                ),
            ),
            of_model=True,
        ),
        Key(
            "normalization", "scaling",
            "'scaling': pixel / 255; 'custom': (pixel - mean) / standard deviation.",
            one_of("scaling", "custom"), of_model=True,
        ),
        Key(
            "normalization_means", (105.08, 110.87, 101.82, 106.38, 53.26),
            f"Means for 'custom', always of all bands of the data set: {', '.join(BANDS)}.",
            _numbers("numbers, one a band"), of_model=True,
        ),
        Key(
            "normalization_stds", (52.17, 45.38, 44.0, 39.69, 79.3),
            "Standard deviations for 'custom', always of all bands of the data set.",
            _numbers("numbers, one a band, above 0", above=0),
            of_model=True,
        ),
        Key(
            "num_workers", 0, "Processes that read patches; 0 reads in threads.",
            at_least(0), changeable=True,
        ),
        Key(
            "num_threads", 0, "Threads that read patches, in each process.",
            at_least(0, "one per CPU, four at most"), changeable=True,
        ),
        Key(
            "prefetch_mb", 256,
            "MiB of batches that are read ahead, of training and of validation each, but one batch "
            "at least.",
            at_least(1), changeable=True,
        ),
    ),
    "Classes": (
        Key(
            "nomenclature", "baseline",
            "'baseline': 12 classes and 'other'; 'full': all 19; 'cosia': FLAIR-HUB's 15, and 4 of "
            "weight 0; 'data': the data set's own; any other name: the list in `classes`.",
            Rule(
                " or ".join(map(repr, (*NOMENCLATURES, OF_DATA)))
                + ", or the name of your `classes`",
                lambda value: bool(value.strip()),
            ),
            of_model=True,
        ),
        Key(
            "classes", (),
            "Your own classes, in the order of their labels.",
            Rule("((name, '#rrggbb', weight, (mask values, ...)), ...)", _are_classes),
            of_model=True,
        ),
        Key(
            "disabled_classes", (),
            "Names of classes of weight 0: they count neither in the loss nor in the mean scores.",
            TEXTS, of_model=True,
        ),
        Key(
            "unlisted_values", "error",
            "Mask values that map to no class: 'error' stops, 'ignore' leaves the pixels out.",
            one_of("error", "ignore"), of_model=True,
        ),
    ),
    "Batches": (
        Key(
            "batch_size", 0, "Global batch size, over all devices of all hosts.",
            at_least(0, "10 for each device of the run's first start"),
        ),
        Key(
            "eval_batch_size", 0, "Global batch size of validation, evaluation and prediction.",
            at_least(0, "as batch_size, rounded up for the devices"), changeable=True,
        ),
        Key(
            "crop_size", 0, "Side of random square crops to train on, in pixels.",
            at_least(0, "whole patches"),
        ),
        Key("augment", False, "Flip and rotate training patches at random."),
        Key(
            "augment_probability.vertical_flip", 0.5, "Probability of a vertical flip.",
            PROBABILITY,
        ),
        Key(
            "augment_probability.horizontal_flip", 0.5, "Probability of a horizontal flip.",
            PROBABILITY,
        ),
        Key(
            "augment_probability.rotation", 0.5,
            "Probability of a rotation by 0, 90, 180 or 270 degrees.", PROBABILITY,
        ),
        Key(
            "augment_radiometry", False,
            "Change brightness, contrast and gamma of training patches at random, each band by "
            "itself.",
        ),
        Key(
            "radiometry.keep", ("height", "elevation", "dsm", "dtm", "dem", "ndsm", "chm"),
            "Bands with one of these words in their names are left as they are.",
            Rule(
                "words in lower case, without spaces",
                lambda value: all(isinstance(word, str) and re.fullmatch(r"[^\W_A-Z]+", word)
                                  for word in value),
            ),
        ),
        Key(
            "radiometry.brightness", 0.1,
            "Largest value that is added or subtracted, as a share of the range 0 to 255.",
            Rule("0 to 1", lambda value: 0 <= value <= 1),
        ),
        Key(
            "radiometry.contrast", 0.2,
            "Largest c of a factor between exp(-c) and exp(c) for the distance from the mean.",
            Rule("0 to 2", lambda value: 0 <= value <= 2),
        ),
        Key(
            "radiometry.gamma", 0.2,
            "Largest g of an exponent between exp(-g) and exp(g) for values / 255.",
            Rule("0 to 2", lambda value: 0 <= value <= 2),
        ),
    ),
    "Model": (
        Key(
            "dtype", "float32", "Data type of the activations.", one_of("float32", "bfloat16"),
            of_model=True,
        ),
        Key(
            "matmul_precision", "highest",
            "On NVIDIA GPUs, with float32: 'tf32' rounds the factors of products to 10 bits, at a "
            "peak 7 to 8 times as high; 'highest' rounds nothing. Not for detect.",
            one_of("highest", "tf32"),
        ),
        Key(
            "deterministic", False,
            "On GPUs: sum in a fixed order, so that a run that is stopped and resumed gives the "
            "same weights to the bit; may be slower. Other platforms always do.",
        ),
        Key(
            "batch_norm", "sync",
            "Statistics of the global batch ('sync'), or of each device's part ('per_device', as "
            "in the reference's distributed training).",
            one_of("sync", "per_device"),
        ),
        Key("remat", False, "Recompute activations in the backward pass, to save memory."),
        Key("metadata.use", False, "Feed position, date and camera to the model.", of_model=True),
        Key(
            "metadata.encoding", "reference",
            "'reference': the baseline's 45 numbers, which hardly encode position and season; "
            "'corrected' encodes them.",
            one_of(*SIZES), of_model=True,
        ),
        Key(
            "metadata.fusion", "rows",
            "'rows': the baseline's, for 512 x 512 pixels only; 'channels': any size.",
            one_of(*FUSIONS), of_model=True,
        ),
    ),
    "Initial weights": (
        Key(
            "init_from", "",
            "A workdir, a checkpoint, a file of PyTorch weights or hf://organisation/repository to "
            "start from; '' for random weights.",
        ),
        Key(
            "encoder_weights", "",
            "A file of a bare ResNet34, or 'imagenet' (from the Hugging Face hub, extra `hub`), "
            "with which the published baseline starts.",
        ),
    ),
    "Optimisation": (
        Key(
            "loss_normalization", "pixels",
            "Divide the loss by the number of pixels (as in the challenge) or by the sum of their "
            "class weights (as in IGN's later code).",
            one_of(*LOSS_NORMALIZATIONS),
        ),
        Key(
            "optimizer", "sgd", "'sgd': without momentum; 'adamw': with betas 0.9 and 0.999.",
            one_of("sgd", "adamw"),
        ),
        Key(
            "weight_decay", 0.0,
            "Share of the weights, times the learning rate, that is subtracted in a step.",
            at_least(0),
        ),
        Key(
            "schedule", "plateau",
            "'plateau': the learning rate is reduced when the monitored value stalls; 'one_cycle' "
            "and 'warmup_cosine': it rises, and falls to 0 along a cosine until num_epochs, which "
            "cannot be changed then.",
            one_of("plateau", "one_cycle", "warmup_cosine"),
        ),
        Key(
            "warmup", 0.2,
            "Share of all steps in which 'one_cycle' and 'warmup_cosine' let the rate rise.",
            Rule("0 or more, and less than 1", lambda value: 0 <= value < 1),
        ),
        Key(
            "learning_rate", 0.02, "Initial learning rate; of the rising schedules the largest.",
            POSITIVE,
        ),
        Key(
            "learning_rate_limit", 0.0,
            "Upper bound of the learning rate from this start on, for a run that has diverged; of "
            "the rising schedules a bound of the largest, with which all are scaled.",
            at_least(0, "none"), changeable=True,
        ),
        Key(
            "clip_norm", 0.0, "Upper bound of the gradients' global norm.", at_least(0, "none")
        ),
        Key(
            "accumulate_steps", 1,
            "Split each batch into so many parts and accumulate gradients, to save memory.",
            at_least(1),
        ),
        Key(
            "ema_decay", 0.0,
            "Decay of an exponential moving average (EMA) of the weights, which is evaluated too; "
            "0 for none, or 0.999.",
            Rule("0 (none) or more, and less than 1", lambda value: 0 <= value < 1),
        ),
        Key(
            "plateau.factor", 0.5, "Factor of a reduction of the learning rate.",
            Rule("between 0 and 1", lambda value: 0 < value < 1),
        ),
        Key(
            "plateau.patience", 10, "Epochs without improvement before a reduction.", at_least(0)
        ),
        Key(
            "plateau.cooldown", 4, "Epochs after a reduction in which none are counted.",
            at_least(0),
        ),
        Key(
            "plateau.threshold", 1e-4,
            "Smallest relative improvement of the monitored value that counts.",
            at_least(0),
        ),
        Key("plateau.min_lr", 1e-7, "Lower bound of the learning rate.", at_least(0)),
        Key(
            "monitor", "val_loss",
            "The validation value by which the best checkpoint is chosen, the learning rate "
            "reduced and training stopped: loss or mIoU, of the weights or of their EMA.",
            one_of(*MONITORS),
        ),
        Key("num_epochs", 200, "Largest number of epochs.", at_least(1), changeable=True),
        Key(
            "early_stop_patience", 30,
            "Stop after so many epochs without improvement of the monitored value.", at_least(1),
            changeable=True,
        ),
        Key(
            "seed", 2022, "Random seed of weights, shuffling, augmentation and dropout.",
            Rule("0 to 4294967295", lambda value: 0 <= value < 2**32),
        ),
    ),
    "Run": (
        Key("log_every_steps", 50, "Steps between logs.", at_least(1), changeable=True),
        Key(
            "tensorboard_patches", 4,
            "Validation patches shown in TensorBoard after each epoch, with the confusion matrix.",
            at_least(0, "no images"), changeable=True,
        ),
        Key(
            "checkpoint_every_steps", 0, "Save within epochs too, every so many steps.",
            at_least(0, "after each epoch only"), changeable=True,
        ),
        Key(
            "max_to_keep", 2, "Latest checkpoints to keep, beside the best.",
            # Orbax removes the oldest before the newest is complete: one must be left if it fails.
            at_least(2), changeable=True,
        ),
        Key(
            "predict_after_training", False, "Predict the test split after training.",
            changeable=True,
        ),
        Key(
            "report_after_training", True, "Write the report, index.html, after training.",
            changeable=True,
        ),
        Key(
            "profile", (0, 0), "First and last step to profile, for TensorBoard, in profile/.",
            Rule("(first step, last step), or (0, 0) for none", _are_steps), changeable=True,
        ),
        Key(
            "compilation_cache", "default",
            "Folder that keeps compiled programs for the next start; 'default': one in ~/.cache; "
            "'': none.",
            changeable=True,
        ),
    ),
    "Synthetic data, made and built on first use": (
        Key("synthetic.use", False, "Train on synthetic data."),
        Key(
            "synthetic.patch_size", 128, "Side of the patches in pixels.",
            Rule(
                "a multiple of 32, at least 64", lambda value: value >= 64 and value % 32 == 0
            ),
        ),
        Key("synthetic.train", 192, "Training patches.", at_least(1)),
        Key("synthetic.val", 32, "Validation patches.", at_least(1)),
        Key("synthetic.test", 48, "Test patches.", at_least(1)),
        Key("synthetic.seed", 0, "Random seed of the patches.", at_least(0)),
    ),
}  # fmt: skip

KEYS = {key.name: key for section in SECTIONS.values() for key in section}

# Keys of version 0.1 by the names they have now.
RENAMED = {
    "keep_latest": "max_to_keep",
    "normalization_deviations": "normalization_stds",
    "plateau.min_rate": "plateau.min_lr",
}
