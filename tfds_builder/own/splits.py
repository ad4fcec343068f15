"""Assigns groups of patches to splits: as given, or at random by whole groups."""

import random
from collections.abc import Mapping, Sequence

from tfds_builder.flair.faults import BuildError

GROUPS_NAMED = 20


def assign(
    counts: Mapping[str, int],
    *,
    val_groups: Sequence[str] = (),
    test_groups: Sequence[str] = (),
    val_share: float = 0.15,
    test_share: float = 0.15,
    seed: int = 0,
) -> dict[str, str]:
    """Returns the split of each group.

    Args:
      counts: {group: number of its patches}.
      val_groups: the groups of val; the rest of the arguments is not used then.
      test_groups: those of test. What is in neither is train.
      val_share: the share of the patches that val gets at least, in whole groups.
      test_share: that of test.
      seed: of the order in which groups are drawn.

    Raises:
      BuildError: if a group does not exist, or there are too few of them.
    """
    listed = ", ".join(sorted(counts)[:GROUPS_NAMED])
    listed += f" and {len(counts) - GROUPS_NAMED} more" if len(counts) > GROUPS_NAMED else ""
    if val_groups or test_groups:
        for flag, groups in (("val_groups", val_groups), ("test_groups", test_groups)):
            if unknown := [group for group in groups if group not in counts]:
                raise BuildError(f"--{flag}: there is no group {unknown[0]!r}; there are {listed}")
        if both := set(val_groups) & set(test_groups):
            raise BuildError(f"{min(both)!r} is in --val_groups and in --test_groups")
        return {
            group: "test" if group in test_groups else "val" if group in val_groups else "train"
            for group in counts
        }
    shares = {split: s for split, s in (("test", test_share), ("val", val_share)) if s > 0}
    if len(counts) <= len(shares):
        raise BuildError(
            f"{len(shares) + 1} splits need as many groups, and there are {len(counts)}: {listed}."
            " Patches of one group are neighbours, and are not divided at random. Put the images"
            " into a folder for each place, give a column `group` or `split` in --pairs=pairs.csv,"
            " or divide the map into blocks with --split_by=blocks and, if there are too few, a"
            " smaller --block_size"
        )
    order = sorted(counts)
    random.Random(seed).shuffle(order)
    total = sum(counts.values())
    splits = {}
    for number, (split, share) in enumerate(shares.items(), 1):
        taken = 0
        # Each of the splits that follow needs a group.
        while len(order) > len(shares) + 1 - number and (taken == 0 or taken < share * total):
            group = order.pop()
            splits[group] = split
            taken += counts[group]
    return splits | dict.fromkeys(order, "train")
