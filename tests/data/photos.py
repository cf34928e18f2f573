"""Folders of photos, made by the tests: smooth colours, so that what is cut out of them tells where it was."""

from __future__ import annotations

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def photo(number, width, height):
    """An RGB image of a few waves, each number its own."""
    random = np.random.default_rng(number)
    down, across = np.mgrid[0:height, 0:width]
    waves = sum(
        random.uniform(0.5, 1, 3) * np.sin(down[..., None] / random.uniform(8, 40) + across[..., None] / wave)
        for wave in random.uniform(8, 40, 3)
    )
    return Image.fromarray((127.5 + 40 * waves).clip(0, 255).astype(np.uint8))


def save(path, image, **settings):
    """Write an image, and the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **settings)
    return path


def rotated():
    """What a camera writes that lay on its side."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


def imagenet(home, classes=24, train=6, val=2):
    """train/CLASS/*.JPEG and val/CLASS/*.JPEG with photos of many sizes; one class has odd ones besides."""
    sizes = [(50, 40), (40, 60), (64, 48), (90, 40), (44, 44), (30, 75)]
    for part, count in (("train", train), ("val", val)):
        for label in range(classes):
            for number in range(count):
                image = photo([part == "val", label, number], *sizes[(label + number) % len(sizes)])
                save(home / part / f"n{label:08}" / f"n{label:08}_{number}.JPEG", image, quality=90)
        odd = home / part / "n00000001"
        save(odd / "grey.JPEG", photo(1, 50, 40).convert("L"))
        save(odd / "cmyk.JPEG", photo(2, 50, 40).convert("CMYK"))
        save(odd / "lying.JPEG", photo(3, 90, 40), exif=rotated())
        save(odd / "png.JPEG", photo(4, 50, 40), format="PNG")
    return home
