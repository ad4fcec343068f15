"""Image summaries of every epoch for TensorBoard: validation patches and the confusion matrix."""

from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from flair_jax.data.dataset import Split, as_text
from flair_jax.data.input_pipeline import PADDING, batches, on_device
from flair_jax.evaluation.predict import make_predict_step
from flair_jax.models.functional import Arrays
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import process_rows, to_global
from flair_jax.training.metric_writer import MetricWriter
from flair_jax.viz import figures, images


class ImageSummaries:
    """Writes the predictions of a few fixed patches, and the confusion matrix, after each epoch.

    Args:
        split: source of the patches.
        count: number of patches, spread evenly: each is the middle one of an equal part.
        graphdef, spec: of the model.
        mesh: the devices.
    """

    def __init__(
        self, split: Split, count: int, graphdef: nnx.GraphDef, spec: ModelSpec, mesh: Mesh
    ) -> None:
        count = min(count, len(split))
        self.indices = [(2 * i + 1) * len(split) // (2 * count) for i in range(count)]
        self._split, self._spec, self._mesh = split, spec, mesh
        self._predict = make_predict_step(graphdef, spec, mesh, everywhere=True)
        # Padded to a multiple of the devices, so that every process takes part.
        order = np.full(-(-count // mesh.size) * mesh.size, PADDING)
        order[:count] = self.indices
        order = order[None, process_rows(mesh, len(order))]
        (batch,) = batches(
            split, order, metadata_encoding=spec.metadata_encoding,
            bands=spec.bands,
        )  # fmt: skip
        self._batch = on_device(batch)
        self._thread = ThreadPoolExecutor(1)
        self._drawing: Future | None = None
        self._names = [as_text(split.records[index]["id"]) for index in self.indices]

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
        """Predicts now, and draws and writes in a thread; every process must call this.

        Args:
            writer: receives the images on the first process.
            step: the training step of the weights.
            params, batch_stats: of the model.
            confusion: (classes, classes) counts over the split, rows are the truth.
            first: also write what does not change, the images and their masks.
        """
        self.wait()
        batch = to_global(self._batch, self._mesh)
        predicted = np.asarray(self._predict(params, batch_stats, batch))
        if jax.process_index() == 0:
            self._drawing = self._thread.submit(
                self._draw, writer, step, predicted, confusion, first
            )

    def wait(self) -> None:
        """Returns when all is written; raises what went wrong in that."""
        drawing, self._drawing = self._drawing, None
        if drawing is not None:
            drawing.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _draw(
        self,
        writer: MetricWriter,
        step: int,
        predicted: np.ndarray,
        confusion: np.ndarray,
        first: bool,
    ) -> None:
        nomenclature = self._spec.nomenclature
        for index, name, classes in zip(self.indices, self._names, predicted, strict=False):
            summaries = {"prediction": images.paint(classes, nomenclature)}
            if first:
                summaries |= self._fixed_images(index)
            for kind, image in summaries.items():
                writer.write_image(step, f"patches/{name}_{kind}", image)
        matrix = figures.confusion_image(confusion, nomenclature)
        writer.write_image(step, "confusion_matrix", matrix)

    def _fixed_images(self, index: int) -> dict[str, np.ndarray]:
        record, nomenclature, fixed = self._split.records[index], self._spec.nomenclature, {}
        colour = images.composite(record["image"], self._split.data.bands, "colour")
        if colour is not None:
            fixed["colour"] = colour
        if record["has_mask"]:
            fixed["truth"] = images.paint(nomenclature.labels[record["mask"]], nomenclature)
        return fixed
