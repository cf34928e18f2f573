"""The images themselves: one .npz file per batch, each image under the attack that decided it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np

from bessemer.errors import FileError
from bessemer.evaluation.judge import Batch, Part
from bessemer.records import write_whole

_NAME = re.compile(r"adversarial-\d{6}\.npz")


def clear(folder: Path) -> None:
    """Take away what an earlier evaluation wrote there: it may have had more batches. Raises `FileError`."""
    for path in folder.glob("adversarial-*.npz"):
        if _NAME.fullmatch(path.name):
            try:
                path.unlink(missing_ok=True)
            except OSError as problem:
                raise FileError(f"{path} cannot be replaced: {problem.strerror}") from problem


def save_images(folder: Path, batch: Batch, parts: list[Part]) -> None:
    """Write the images of a batch: as the first attack that turned each left it, unchanged where none did.

    Attacks without a bound count only where none has one, as in the worst case.

    The file holds `images` (N, C, H, W) float32 in [0, 1], `index`, `label`, `clean_prediction`, `prediction` and
    `attack` (empty where the image stands). `numpy.load` reads it without pickle. Raises `FileError`.
    """
    images = batch.images.float().cpu().numpy().copy()
    prediction = batch.prediction.cpu().numpy().copy()
    open_ = batch.right.cpu().numpy().copy()
    label = batch.labels.cpu().numpy()
    parts = [part for part in parts if part.rows.threat] or parts
    by = np.full(len(images), "", dtype=f"<U{max(len(part.rows.name) for part in parts)}")
    for part in parts:
        assert part.images is not None
        said = part.rows["prediction"]
        turned = open_ & (said != label) & (said >= 0)
        images[turned], prediction[turned], by[turned] = part.images[turned], said[turned], part.rows.name
        open_ &= ~turned
    file = io.BytesIO()
    np.savez_compressed(
        file,
        images=images,
        index=batch.index.cpu().numpy(),
        label=label,
        clean_prediction=batch.prediction.cpu().numpy(),
        prediction=prediction,
        attack=by,
    )
    write_whole(folder / f"adversarial-{batch.number:06d}.npz", file.getvalue())
