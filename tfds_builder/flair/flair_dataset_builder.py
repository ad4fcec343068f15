"""The TFDS builder of FLAIR #1."""

import collections
import dataclasses
import pathlib
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from tfds_builder.flair import source as source_lib
from tfds_builder.flair.faults import BuildError, printable
from tfds_builder.flair.patch_builder import PatchBuilder, Plan
from tfds_builder.flair.patches import common_size
from tfds_builder.flair.records import features
from tfds_builder.flair.reference import (
    BANDS,
    CLASSES,
    DOMAIN_PATCHES,
    DOMAINS,
    DOMAINS_2,
    NAME,
    NAME_2,
    VAL_DOMAINS,
    VAL_DOMAINS_D077,
)
from tfds_builder.flair.selection import SPLITS, Patch, check_domains_2, check_masks, select
from tfds_builder.flair.shards import PatchFormat

SHUFFLE_SEED = 0
DOMAINS_NAMED = 5


@dataclasses.dataclass(eq=False, kw_only=True)
class FlairConfig(tfds.core.BuilderConfig):
    """How the patches are split: by domain, or by lists.

    Attributes:
      val_domains: the domains of the validation split; those of test are fixed, train is the rest.
      flair_2: whether the test split is FLAIR #2's.
      lists: {"train" | "val" | "test": CSV file of image and mask paths}, instead of the domains.
    """

    val_domains: Iterable[str] = VAL_DOMAINS
    flair_2: bool = False
    lists: Mapping[str, str] | None = None


class Flair(PatchBuilder):
    """FLAIR #1: aerial image patches of France and their land-cover masks.

    Patches are read from the folder of the download, zipped or unpacked, and stored in the order
    of domain, zone and number.

    Paper: https://arxiv.org/abs/2211.12979
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {  # noqa: RUF012
        "1.0.0": "FLAIR #1, 5 bands and 19 classes, with metadata.",
        "1.1.0": "One patch size in the shapes, names of classes, a fingerprint of the source.",
    }
    BUILDER_CONFIGS = [  # noqa: RUF012
        FlairConfig(
            name="published", description="Split by domain as in the published path lists."
        ),
        FlairConfig(
            name="d077",
            description="Validates on D077_2021 in place of D070_2020, as some code bases do.",
            val_domains=VAL_DOMAINS_D077,
        ),
        FlairConfig(
            name="flair2", description="Tests on the test split of FLAIR #2.", flair_2=True
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Download FLAIR #1 from https://ignf.github.io/FLAIR/ into the manual folder, zipped or
    unpacked: flair_aerial_train.zip, flair_1_aerial_test.zip, flair_labels_train.zip,
    flair_1_labels_test.zip and flair-1_metadata_aerial.zip; or flair_1_toy_dataset.zip.
    """

    def __init__(self, *, source: str | None = None, shuffle: bool = False, **kwargs: Any) -> None:
        """Takes the options of `PatchBuilder`, and these.

        Args:
          source: the folder of the download; None for TFDS's manual folder.
          shuffle: whether patches are stored in a random order, always the same, so that a part
            such as `train[:10%]` is from all domains.
          **kwargs: see `PatchBuilder`.
        """
        self._shuffle = shuffle
        super().__init__(source=source, **kwargs)
        self._original_state.update(shuffle=shuffle)  # what TFDS pickles

    def _info(self) -> tfds.core.DatasetInfo:
        # The patches' size is known once the data set is built, or its source is scanned.
        is_built = (self.data_path / "features.json").exists()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict.from_config(self.data_dir)
            if is_built
            else features(None),
            supervised_keys=("image", "mask"),
            homepage="https://ignf.github.io/FLAIR/",
            license="Etalab Open Licence 2.0 (https://www.etalab.gouv.fr/licence-ouverte-open-licence/)",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _make_plan(self, source: str) -> Plan:
        config = self.builder_config
        lists = config.lists or {}
        scanned = source_lib.scan(source, config.flair_2)
        source_lib.check_buildable(scanned, skip_damaged=self._skip)
        splits, faults = select(scanned, config.val_domains, lists)
        check_masks(scanned, splits)
        if config.flair_2:
            check_domains_2(scanned)
        if not splits and not faults:
            raise BuildError("no patch is left to build: the lists are empty")
        if self._shuffle:
            for patches in splits.values():
                random.Random(SHUFFLE_SEED).shuffle(patches)
        options = {
            "file_format": self.info.file_format.value,
            "shard_mb": self._shard_mb,
            "shuffle": self._shuffle,
            "lists": {
                split: zlib.crc32(pathlib.Path(path).read_bytes()) for split, path in lists.items()
            },
        }
        return Plan(
            folders=[scanned.root, *(str(pathlib.Path(path).parent) for path in lists.values())],
            splits=splits,
            faults=faults,
            notes=[printable(note) for note in (*scanned.notes, *_notes(splits, config))],
            format=PatchFormat(common_size([p for patches in splits.values() for p in patches])),
            options=options,
            facts={
                "name": NAME_2 if config.flair_2 else NAME,
                "synthetic": scanned.synthetic,
                "grouped_by": "domain",
                "bands": list(BANDS),
                "classes": [
                    {"value": value, "name": name, "colour": colour}
                    for value, (name, colour) in CLASSES.items()
                ],
            },
        )


def _notes(splits: Mapping[str, Sequence[Patch]], config: FlairConfig) -> Iterable[str]:
    """Yields what is missing of the splits and of the published data set."""
    lists = config.lists
    for split in SPLITS:
        if lists and split not in lists:
            yield f"no list was given for {split}: it is not built"
        elif split not in splits:
            yield f"no patches of {split}: it is not built"
    unlabelled = sum(patch.mask is None for patch in splits.get("test", ()))
    if unlabelled:
        yield f"{unlabelled:,} test patches have no mask; has_mask is false"
    if lists:
        return
    known = ("train", "val") if config.flair_2 else SPLITS  # of FLAIR #2's test only the sum is
    here = collections.Counter(
        patch.key.domain for split in known for patch in splits.get(split, ())
    )
    domains = DOMAINS_2 if config.flair_2 else DOMAINS
    if absent := sorted(domains - here.keys()):
        name = f"{NAME_2}'s train and val" if config.flair_2 else NAME
        yield f"absent domains of {name}, {len(absent)} of {len(domains)}: {_some(absent)}"
    incomplete = [
        f"{domain} ({here[domain]:,} of {count:,} patches)"
        for split, of_split in DOMAIN_PATCHES.items()
        if split in known
        for domain, count in of_split.items()
        if 0 < here[domain] < count
    ]
    if incomplete:
        which = "val" if config.flair_2 else "val and test"
        yield f"incomplete domains of {which}, {len(incomplete)}: {_some(incomplete)}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - DOMAINS_NAMED} more" if len(names) > DOMAINS_NAMED else ""
    return ", ".join(names[:DOMAINS_NAMED]) + more
