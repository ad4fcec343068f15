"""Published facts of FLAIR-HUB: modalities, and its classes (COSIA's) beside FLAIR #1's."""

from tfds_builder.flair.reference import CLASSES as FLAIR

NAME = "FLAIR-HUB"
# In the names of files and folders.
IMAGE, ELEVATION, MASK = "AERIAL_RGBI", "DEM_ELEV", "AERIAL_LABEL-COSIA"
IMAGE_BANDS = 4  # red, green, blue, near infrared
ELEVATION_BANDS = 2  # metres above sea level of the surface (DSM) and of the terrain (DTM)
STEPS_PER_METRE = 5  # of FLAIR #1's height band

# FLAIR #1's value of each value of the masks, 0 to 18.
FLAIR_VALUES = (1, 18, 13, 3, 2, 4, 5, 14, 10, 11, 12, 9, 7, 6, 8, 15, 17, 16, 19)
SCORED = 15  # the first classes; the others have weight 0
# Name and colour by mask value; the last is called "other" in FLAIR #1.
CLASSES = {
    value: FLAIR[flairs] if flairs != max(FLAIR) else ("undefined", FLAIR[flairs][1])
    for value, flairs in enumerate(FLAIR_VALUES)
}
WEIGHTS = {value: float(value < SCORED) for value in CLASSES}
