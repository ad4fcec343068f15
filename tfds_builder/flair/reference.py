"""Published facts of FLAIR #1 and #2: bands, classes, domains and numbers of patches."""

NAME, NAME_2 = "FLAIR #1", "FLAIR #2"
BANDS = ("red", "green", "blue", "nir", "height")

# The 19 values of the masks: name and colour (FLAIR #1 data paper, table 1).
CLASSES = {
    1: ("building", "#db0e9a"),
    2: ("pervious surface", "#938e7b"),
    3: ("impervious surface", "#f80c00"),
    4: ("bare soil", "#a97101"),
    5: ("water", "#1553ae"),
    6: ("coniferous", "#194a26"),
    7: ("deciduous", "#46e483"),
    8: ("brushwood", "#f3a60d"),
    9: ("vineyard", "#660082"),
    10: ("herbaceous vegetation", "#55ff00"),
    11: ("agricultural land", "#fff30d"),
    12: ("plowed land", "#e4df7c"),
    13: ("swimming pool", "#3de6eb"),
    14: ("snow", "#ffffff"),
    15: ("clear cut", "#8ab3a0"),
    16: ("mixed", "#6b714f"),
    17: ("ligneous", "#c5dc42"),
    18: ("greenhouse", "#9999ff"),
    19: ("other", "#000000"),
}

# fmt: off
TRAIN_DOMAINS = frozenset({
    "D006_2020", "D007_2020", "D008_2019", "D009_2019", "D013_2020", "D016_2020", "D017_2018",
    "D021_2020", "D023_2020", "D030_2021", "D032_2019", "D033_2021", "D034_2021", "D035_2020",
    "D038_2021", "D041_2021", "D044_2020", "D046_2019", "D049_2020", "D051_2019", "D052_2019",
    "D055_2018", "D060_2021", "D063_2019", "D072_2019", "D074_2020", "D077_2021", "D078_2021",
    "D080_2021", "D081_2020", "D086_2020", "D091_2021",
})
# Patches of the domains by split, from the published path lists; for train only the sum is known,
# TRAIN_PATCHES.
DOMAIN_PATCHES = {
    "val": {
        "D004_2021": 1800, "D014_2020": 1750, "D029_2021": 1800, "D031_2019": 1725,
        "D058_2020": 1800, "D066_2021": 1750, "D067_2021": 1725, "D070_2020": 1775,
    },
    "test": {
        "D012_2019": 1750, "D022_2021": 500, "D026_2020": 1825, "D064_2021": 1775,
        "D068_2021": 1775, "D071_2020": 1800, "D075_2021": 750, "D076_2019": 1750,
        "D083_2020": 2025, "D085_2019": 1750,
    },
}
# fmt: on
TRAIN_PATCHES = 47_587
TEST_PATCHES = sum(DOMAIN_PATCHES["test"].values())
VAL_DOMAINS = frozenset(DOMAIN_PATCHES["val"])
TEST_DOMAINS = frozenset(DOMAIN_PATCHES["test"])
DOMAINS = TRAIN_DOMAINS | VAL_DOMAINS | TEST_DOMAINS
# FLAIR #2 has the domains of train and val, and another test split.
DOMAINS_2 = TRAIN_DOMAINS | VAL_DOMAINS
TEST_PATCHES_2 = 16_050
PATCHES = TRAIN_PATCHES + sum(sum(domains.values()) for domains in DOMAIN_PATCHES.values())
# Several public code bases validate on D077_2021 in place of D070_2020.
VAL_DOMAINS_D077 = VAL_DOMAINS - {"D070_2020"} | {"D077_2021"}
