"""How fast ImageNet-like files become training batches: with 0, 1 and 2 workers, against a bare Pillow loop.

    python benchmarks/decoding.py

500×375 JPEG files, cut to random parts of 224×224. The bare loop decodes each file whole, cuts and resizes the same
parts; a stream is begun anew each time, so that nothing is decoded before the clock runs. Writes
results/benchmarks-decoding.json.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bessemer import data, randomness
from bessemer.data.decoding import crop_box
from bessemer.records import provenance, write_whole
from timing import ratios

BATCH, BATCHES, PER_CLASS = 32, 6, 48
SIDE = 224


def photo(number: int) -> Image.Image:
    """A 500×375 image with about as much detail as a photo of ImageNet: some 110 kB as a JPEG file."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 12, (375, 500, 1))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def write(home: Path) -> None:
    """train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
    for part, images in (("train", PER_CLASS), ("val", 1)):
        for label in range(4):
            folder = home / part / f"n{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                photo(1000 * label + number).save(folder / f"{number}.JPEG", quality=92)


def requests(split: data.LazySplit, seed: int) -> list[tuple[torch.Tensor, int]]:
    """So many batches and no more: what is decoded ahead and dropped at the end would count too."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return [(index, seed) for index in order.split(BATCH)[:BATCHES]]


def bare(split: data.LazySplit, seed: int) -> None:
    """What a user of Pillow writes."""
    for index, own_seed in requests(split, seed):
        draws = randomness.uniform((10, 5), own_seed, index, stream=11).tolist()
        images = []
        for place, own in zip(index.tolist(), draws, strict=True):
            with Image.open(split.images.path(place)) as file:
                image = file.convert("RGB")
            left, top, width, height = crop_box(*image.size, own)
            part = image.crop((left, top, left + width, top + height))
            images.append(np.asarray(part.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).transpose(2, 0, 1))
        torch.from_numpy(np.stack(images)).float().div_(255)


def ours(split: data.LazySplit, seed: int) -> None:
    """The same with Bessemer."""
    for _ in split.read(requests(split, seed)):
        pass


def main(pairs: int) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    began, seeds = time.monotonic(), count()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "photos"
        write(home)
        size = round(np.mean([file.stat().st_size for file in islice(home.glob("train/*/*"), 100)]) / 1000)
        splits = {
            workers: data.load("image-folder", path=str(home), workers=workers, held_out=0).train
            for workers in (0, 1, 2)
        }
        found = ratios(
            {
                f"a stream with {workers} workers / Pillow's loop": lambda split=split: ours(split, next(seeds))
                for workers, split in splits.items()
            },
            lambda: bare(splits[0], next(seeds)),
            pairs,
        )
    for name, row in found.items():
        row["images per second"] = round(BATCH * BATCHES / row["seconds"])
        row["images per second, Pillow's loop"] = round(BATCH * BATCHES / row["base_seconds"])
        print(f"{row['ratio']:6.3f}  {row['images per second']:5d} images/s  {name}")
    load = [round(one, 1) for one in os.getloadavg()]
    facts = provenance(threads=1, seconds=round(time.monotonic() - began, 1), file_kilobytes=size, load=load)
    text = json.dumps({"ratios": found, "provenance": facts}, indent=1, ensure_ascii=False)
    write_whole(Path(__file__).parents[1] / "results" / "benchmarks-decoding.json", text.encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
