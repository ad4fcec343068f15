import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from flair_jax.report import figures, formats, gallery, tables

STYLE = Path(gallery.__file__).with_name("templates").joinpath("style.css").read_text()


def patch(place, miou, zone="Z1", classes=3):
    return {"place": place, "miou": miou, "domain": "D1", "zone": zone, "classes": classes}


def places(chosen):
    return {kind: [p["place"] for p in patches] for kind, patches in chosen.items()}


def test_choice_of_patches():
    patches = [patch(i, i / 8, zone=f"Z{i}") for i in range(9)]
    assert places(gallery.choose(patches, 3)) == {
        "best": [8, 7, 6], "typical": [4, 3, 5], "worst": [0, 1, 2],
    }  # fmt: skip
    assert places(gallery.choose(patches[:4], 3)) == {"best": [3], "typical": [1], "worst": [0]}


def test_choice_prefers_different_zones_and_more_classes():
    patches = [patch(i, 0.9 - i / 100, zone="A") for i in range(5)]
    patches += [patch(5, 0.1, "B"), patch(6, 0.2, "C"), patch(7, 0.1, "D", classes=5)]
    patches += [patch(8, None, "E"), patch(9, 0.5, "F")]
    chosen = places(gallery.choose(patches, 3))
    assert chosen["best"] == [0, 9, 6]
    assert chosen["worst"] == [7, 5, 4]  # two are as bad: the one with more classes goes first
    assert 8 not in {*itertools.chain(*chosen.values())}
    assert gallery.choose([patch(0, None)], 3) == {}


def test_choice_passes_over_patches_that_are_mostly_ignored():
    patches = [patch(i, i / 8, zone=f"Z{i}") | {"pixels": 100} for i in range(9)]
    patches[8]["pixels"] = patches[0]["pixels"] = 49
    patches[7]["pixels"] = 50
    chosen = places(gallery.choose(patches, 2))
    assert (chosen["best"], chosen["worst"]) == ([7, 6], [1, 2])


def test_ticks():
    assert figures.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert figures.ticks(0, 2.37) == [0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert figures.ticks(0, 200) == [0, 50, 100, 150, 200]
    assert figures.ticks(0.02, 0.02)[0] <= 0.02 <= figures.ticks(0.02, 0.02)[-1]
    assert figures.ticks(-0.3, 0.3) == [-0.4, -0.2, 0, 0.2, 0.4]


def test_labels_do_not_cover_each_other():
    assert figures.spread([10, 50], 12) == [10, 50]
    assert figures.spread([20, 20, 20], 12) == [8, 20, 32]
    assert figures.spread([31, 20, 100, 22], 10) == pytest.approx(
        [34 + 1 / 3, 14 + 1 / 3, 100, 24 + 1 / 3]
    )


def test_what_earlier_versions_logged_is_put_into_words():
    logged = "1 x cpu (cpu), 1 host(s), global batch 8, 24 steps an epoch"
    assert formats.in_words(logged) == (
        "1 device (CPU) on 1 host; 24 steps an epoch, each of a batch of 8 patches"
    )
    logged = "16 x NVIDIA H100 80GB HBM3 (gpu), 2 host(s), global batch 128, 1 steps an epoch"
    assert formats.in_words(logged) == (
        "16 devices (NVIDIA H100 80GB HBM3) on 2 hosts; 1 step an epoch, each of a batch of "
        "128 patches"
    )
    old, new = (
        "192 train, 32 val patches of 96 x 96",
        "192 train and 32 val patches of 96 x 96 pixels",
    )
    assert formats.in_words(f"/data: {old}") == formats.in_words(f"/data: {new}") == f"/data: {new}"
    old, new = f"{old}, crops of 64", f"{new}, in crops of 64 x 64"
    assert formats.in_words(old) == formats.in_words(new) == new


def test_the_style_of_tables_and_print():
    """The legend and the first columns stay in sight; no table is split between pages."""
    screen, paper = STYLE.split("@media print {")[0], STYLE.split("@media print {")[-1]
    assert re.search(r"\.legend \{ position: sticky; top: 0;", screen)
    assert re.search(r"\.wide tbody th[^{]*\{ position: sticky; left: 0;", screen)
    assert re.search(r"\.wide \{[^}]*break-inside: avoid", paper)
    assert "break-after: avoid" in paper


def luminance(colour):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def contrast(a, b):
    """By the Web Content Accessibility Guidelines 2.2."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_texts_are_readable_on_their_ground():
    """At least 4.5 : 1, by day, by night and on paper, in every cell of the confusion matrix."""
    schemes = [
        {
            name: np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
            for name, colour in re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)
        }
        for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    ]
    assert len(schemes) == 3
    for scheme in schemes:
        for ground in ("ground", "panel"):
            for ink in ("text", "muted", "accent"):
                assert contrast(scheme[ground], scheme[ink]) >= 4.5
        for line in range(figures.STYLES):
            assert contrast(scheme["ground"], scheme[f"c{line}"]) >= 4.5
        for share in np.linspace(0, 1, 1001):
            ink = scheme["cell-strong" if share > tables.STRONG else "cell-weak"]
            cell = scheme["panel"] + share * (scheme["cell"] - scheme["panel"])
            assert contrast(cell, ink) >= 4.5
