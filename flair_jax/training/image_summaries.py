"""Pictures of every epoch for TensorBoard: some validation patches, and the confusion matrix."""

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from flair_jax.data.bands import BANDS, band_indices
from flair_jax.data.input_pipeline import PADDING, Split, as_text, batches, on_device
from flair_jax.evaluation.predict import make_predict_step
from flair_jax.models.functional import Arrays
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import to_global
from flair_jax.training.metric_writer import MetricWriter
from flair_jax.viz import figures, images


class ImageSummaries:
    """The same few patches of a split at every epoch, as the weights of the day see them.

    Args:
        split: where the patches are from.
        count: how many: the middle ones of so many equal parts of the split.
        graphdef, spec: of the model.
        mesh: the devices.
    """

    def __init__(
        self, split: Split, count: int, graphdef: nnx.GraphDef, spec: ModelSpec, mesh: Mesh
    ) -> None:
        count = min(count, len(split))
        self.places = [(2 * i + 1) * len(split) // (2 * count) for i in range(count)]
        self._split, self._spec, self._mesh = split, spec, mesh
        self._predict = make_predict_step(graphdef, spec, mesh, everywhere=True)
        # As many as the devices share evenly, so that all hosts take part.
        order = np.full(-(-count // mesh.size) * mesh.size, PADDING)
        order[:count] = self.places
        (batch,) = batches(
            split, order[None], metadata_encoding=spec.metadata_encoding,
            bands=band_indices(spec.bands), process_index=jax.process_index(),
            process_count=jax.process_count(),
        )  # fmt: skip
        self._batch = on_device(batch)
        self._names = [as_text(split.records[place]["id"]) for place in self.places]

    def write(
        self,
        writer: MetricWriter,
        step: int,
        params: Arrays,
        batch_stats: Arrays,
        confusion: np.ndarray,
        *,
        first: bool,
    ) -> None:
        """Predicts and writes; every host must call.

        Args:
            writer: takes the pictures on the first host.
            step: that the pictures are of.
            params, batch_stats: of the model.
            confusion: (classes, classes) counts over the split, rows are the truth.
            first: write also what does not change, the images and their truth.
        """
        batch = to_global(self._batch, self._mesh)
        predicted = np.asarray(self._predict(params, batch_stats, batch))
        if jax.process_index() != 0:
            return
        nomenclature = self._spec.nomenclature
        for place, name, classes in zip(self.places, self._names, predicted, strict=False):
            shown = {"prediction": images.paint(classes, nomenclature)}
            if first:
                shown |= self._unchanging(place)
            for what, picture in shown.items():
                writer.write_image(step, f"patches/{name}_{what}", picture)
        matrix = figures.confusion_image(confusion, nomenclature)
        writer.write_image(step, "confusion_matrix", matrix)

    def _unchanging(self, place: int) -> dict[str, np.ndarray]:
        record, nomenclature, shown = self._split.records[place], self._spec.nomenclature, {}
        colour = images.composite(record["image"], BANDS, "colour")
        if colour is not None:
            shown["colour"] = colour
        if record["has_mask"]:
            shown["truth"] = images.paint(nomenclature.labels[record["mask"]], nomenclature)
        return shown
