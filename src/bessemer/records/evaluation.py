"""A verdict per image and attack, and what follows from them.

An `Evaluation` is plain data: every summary, table, curve and page is computed from its rows, later, without a model.
Distances are in [0, 1] pixel units. Intervals are Wilson's, at 95 % (E. B. Wilson, "Probable inference, the law of
succession, and statistical inference", 1927).
"""

from __future__ import annotations

import base64
import csv
import io
import math
import re
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bessemer.errors import FileError
from bessemer.records.files import read_record, write_record, write_whole

Column = npt.NDArray[Any]

NOT_TRIED = -1  # the prediction of an image that fell to an earlier attack of a cascade and was not attacked again
WORST = "worst case"  # the name of the curve that unites several attacks
BUDGETS = (10, 20, 30, 50, 100, 200, 500, 1000, 2000)  # steps after which the suite `pgd-curve` looks

# one value per image; `pass_score` is NaN where it was not measured
COLUMNS: dict[str, type] = {
    "prediction": np.int64,  # the class the model gives the image the attack returned, or NOT_TRIED
    "linf": np.float64,
    "l2": np.float64,
    "l1": np.float64,
    "pass_score": np.float64,
    "forwards": np.int64,  # forward and backward passes this image was part of
    "backwards": np.int64,
    "verifications": np.int64,  # forward passes that confirmed a success found through a cheaper copy of the model
    "gradients": np.int64,  # input gradients asked for, and how many of them were all zero in float32
    "zero_gradients": np.int64,
    "zero_in_float64": np.float64,  # 1: the first all-zero gradient was all zero in float64 too; NaN: cannot be asked
}


@dataclass(frozen=True)
class Share:
    """A share of images, with its 95 % interval: `count` of `total`."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share itself, NaN of nothing."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval; (0, 1) of nothing."""
        return wilson(self.count, self.total)

    def __str__(self) -> str:
        if not self.total:
            return "nothing to count"
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def wilson(count: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The score interval of a share; `z` is the normal quantile (95 % by default)."""
    if total == 0:
        return 0.0, 1.0
    share = count / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


@dataclass(frozen=True)
class AttackRows:
    """What one attack did to each image, in the order of `Evaluation.index`.

    kind: `bounded` (the worst point of a ball), `minimal` (the nearest misclassified point), `random` (one draw).
    threat: the ball as text, such as `Linf:8/255`; empty for minimal attacks. norm: what a minimal attack minimises.
    In a cascade an attack meets only images that stood so far; the others hold NOT_TRIED.
    """

    name: str
    attack: str  # its repr: the call that makes it again
    kind: str
    threat: str
    columns: dict[str, Column]
    norm: str = ""

    def __getitem__(self, column: str) -> Column:
        return self.columns[column]

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes null."""
        facts = {key: getattr(self, key) for key in ("name", "attack", "kind", "threat", "norm")}
        return {**facts, "columns": {name: _listed(column) for name, column in self.columns.items()}}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> AttackRows:
        """The rows that `to_json` described."""
        facts = {key: record[key] for key in ("name", "attack", "kind", "threat", "norm")}
        return cls(**facts, columns={name: _column(record["columns"][name], kind) for name, kind in COLUMNS.items()})

    @classmethod
    def joined(cls, parts: list[AttackRows]) -> AttackRows:
        """The rows of one attack on several batches, one after another."""
        columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
        return replace(parts[0], columns=columns)


@dataclass(frozen=True)
class Finding:
    """Something the evaluation noticed.

    verdict: `trust` (looked for and absent), `doubt` (the figures of `attack` cannot be trusted), `note`.
    """

    name: str
    verdict: str
    figure: str  # the number, as text: "29.3 % of images"
    meaning: str
    advice: str
    attack: str = ""


@dataclass(frozen=True)
class Curve:
    """Robust accuracy over the radius: `robust[i]` of `total` images survive `eps[i]`.

    attack: one attack, or WORST for all that were followed, united image by image.
    """

    attack: str
    norm: str
    eps: list[float]
    robust: list[int]
    total: int


@dataclass(frozen=True)
class Exhibit:
    """One image under one attack, for the gallery. Pixels are (C, H, W) arrays in [0, 1]."""

    attack: str
    index: int
    label: int
    prediction: int  # of the clean image
    adversarial_prediction: int
    linf: float
    l2: float
    original: npt.NDArray[np.float32]
    adversarial: npt.NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        """Plain values; pixels at the 11 bits of a half, which no eye can tell from the original."""
        return {**asdict(self), "original": _packed(self.original), "adversarial": _packed(self.adversarial)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Exhibit:
        """The exhibit that `to_json` described."""
        pixels = {key: _unpacked(record[key]) for key in ("original", "adversarial")}
        return cls(**{**record, **pixels})


@dataclass(frozen=True)
class Evaluation:
    """One model under one suite: a row per image and attack, and where it all came from.

    `robust` of an attack counts images that are right without and under the attack. The worst case is pointwise: an
    image counts as robust only if every attack of the suite that has a bound failed on it.
    """

    model: str
    data: str
    suite: str
    threat: str
    seed: int
    classes: list[str]
    index: Column
    label: Column
    prediction: Column  # of the clean image
    attacks: list[AttackRows]
    findings: list[Finding] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    gallery: list[Exhibit] = field(default_factory=list)  # a few images under every attack
    specimens: list[Exhibit] = field(default_factory=list)  # more images, each under the attack that decided it
    notes: dict[str, Any] = field(default_factory=dict)  # e.g. how often PASS could not align
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def name(self) -> str:
        """What was asked, as a file's name; see `file_name`."""
        fast = str(self.provenance.get("mode", "")).startswith("fast")
        return file_name(self.suite, self.threat, self.data, len(self), self.seed, fast)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One table of everything: a row per image and attack, in plain values."""
        return [
            {
                "attack": rows.name,
                "index": int(self.index[place]),
                "label": int(self.label[place]),
                "clean_prediction": int(self.prediction[place]),
                **{name: column[place].item() for name, column in rows.columns.items()},
            }
            for rows in self.attacks
            for place in range(len(self))
        ]

    def attack(self, name: str) -> AttackRows:
        """The rows of one attack, by name."""
        return next(rows for rows in self.attacks if rows.name == name)

    @property
    def bounded(self) -> list[AttackRows]:
        """The attacks that stay in a ball, random draws from it included."""
        return [rows for rows in self.attacks if rows.threat]

    @property
    def right(self) -> Column:
        """Which images are classified correctly when nobody attacks."""
        return self.prediction == self.label

    def clean_accuracy(self) -> Share:
        """The share of images classified correctly when nobody attacks."""
        return Share(int(self.right.sum()), len(self))

    def survivors(self, name: str) -> Column:
        """Which images are right without and under the attack; in a cascade, under those before it too."""
        return self.right & (self.attack(name)["prediction"] == self.label)

    def turned(self, name: str) -> Column:
        """Which images this attack itself turned; those that an earlier one of a cascade turned do not count."""
        prediction = self.attack(name)["prediction"]
        return self.right & (prediction != self.label) & (prediction != NOT_TRIED)

    def decided(self) -> list[str]:
        """The attack that turned each image first, in the order of the suite; empty where it stands or was wrong."""
        by = [""] * len(self)
        for rows in reversed(self.bounded or self.attacks):
            for place in self.turned(rows.name).nonzero()[0]:
                by[place] = rows.name
        return by

    def effort(self) -> Column:
        """Forward passes spent on each image until it fell: 0 where it was wrong, infinite where it stands."""
        spent = np.zeros(len(self))
        fallen = ~self.right
        for rows in self.bounded or self.attacks:
            spent[~fallen] += rows["forwards"][~fallen]
            fallen = fallen | self.turned(rows.name)
        return np.where(fallen, spent, np.inf)

    def distances(self, norm: str, name: str = "") -> Column:
        """How far the nearest wrong answer lies from each image: of one minimal attack, or of all of them in a norm.

        In units of [0, 1] pixels; 0 where the image is wrong already, infinite where nothing was found.
        """
        found = np.where(self.right, np.inf, 0.0)
        for rows in self.attacks:
            if rows.name == name or (not name and rows.kind == "minimal" and rows.norm == norm):
                distance = np.where(self.turned(rows.name), rows[norm.lower()], np.inf)
                found = np.minimum(found, distance)
        return found

    def over_steps(self, name: str, steps: list[int]) -> list[Share]:
        """Robust accuracy after so many steps of one run of a gradient attack.

        An image leaves the attack with the forward pass that finds it misclassified; the first looks at the start.
        """
        rows = self.attack(name)
        fell_after = np.where(self.turned(name), rows["forwards"] - 1, np.inf)
        return [Share(int((self.right & (fell_after > count)).sum()), len(self)) for count in steps]

    def over_budgets(self) -> dict[int, Share]:
        """Robust accuracy after so many steps, of the suite `pgd-curve`: its attacks are called PGD-10, PGD-2000.

        Of a budget with a run of its own, what that leaves; of the others, what the longest run leaves by then, unless
        it searched on another network: then no image left it early, and nothing says when one fell. Empty for other
        suites, and where some right image never met one of the attacks.
        """
        own = {int(match[1]): rows for rows in self.attacks if (match := re.fullmatch(r"PGD-(\d+)", rows.name))}
        curved = bool(own) and self.suite.startswith("pgd-curve")
        if not curved or any((rows["prediction"][self.right] == NOT_TRIED).any() for rows in own.values()):
            return {}
        longest = max(own)
        between = [] if "Transfer(" in own[longest].attack else [count for count in BUDGETS if count < longest]
        return {
            count: self.robust_accuracy(own[count].name)
            if count in own
            else self.over_steps(own[longest].name, [count])[0]
            for count in sorted({*own, *between})
        }

    def robust_accuracy(self, name: str) -> Share:
        """The share of all images that are right without and under the attack."""
        return Share(int(self.survivors(name).sum()), len(self))

    def success_rate(self, name: str) -> Share:
        """The share of correctly classified images that the attack turns (the papers' `rate`)."""
        return Share(int((self.right & ~self.survivors(name)).sum()), int(self.right.sum()))

    def worst_case(self) -> Share | None:
        """The share of images that survive every attack with a bound; None where the suite has none."""
        if not self.bounded:
            return None
        return Share(int(np.logical_and.reduce([self.survivors(rows.name) for rows in self.bounded]).sum()), len(self))

    def produced(self, name: str, column: str) -> tuple[float, float]:
        """Mean and standard deviation of a column over the adversarial examples the attack produced (NaN of none)."""
        values = self.attack(name)[column][self.turned(name)]
        values = values[~np.isnan(values.astype(np.float64))]
        return (float(values.mean()), float(values.std())) if len(values) else (math.nan, math.nan)

    def zero_gradient_share(self, name: str) -> Share:
        """The share of correctly classified images for which the attack met an all-zero float32 input gradient."""
        return Share(int((self.right & (self.attack(name)["zero_gradients"] > 0)).sum()), int(self.right.sum()))

    def zero_in_float64_share(self, name: str) -> Share:
        """The share whose gradient is all zero in float64 too: no precision helps there. Of nothing where not asked."""
        zero = self.attack(name)["zero_in_float64"][self.right]
        return Share(0, 0) if np.isnan(zero).any() else Share(int(zero.sum()), len(zero))

    def summary(self) -> list[dict[str, Any]]:
        """One row for clean images, one per attack, and the worst case: plain numbers, for tables."""
        clean = self.clean_accuracy()
        rows = [{"attack": "clean", "accuracy": clean.value, "interval": clean.interval, "images": len(self)}]
        for attack in self.attacks:
            share, rate = self.robust_accuracy(attack.name), self.success_rate(attack.name)
            linf, pass_score = self.produced(attack.name, "linf"), self.produced(attack.name, "pass_score")
            rows.append(
                {
                    "attack": attack.name,
                    "kind": attack.kind,
                    "accuracy": share.value,
                    "interval": share.interval,
                    "success_rate": rate.value,
                    "success_interval": rate.interval,
                    "images": len(self),
                    "zero_gradient_share": self.zero_gradient_share(attack.name).value,
                    "zero_in_float64_share": self.zero_in_float64_share(attack.name).value,
                    "linf": linf,
                    "linf_grey_levels": (255 * linf[0], 255 * linf[1]),
                    "median_distance": float(np.median(self.distances(attack.norm, attack.name)))
                    if attack.norm and len(self)
                    else math.nan,
                    "norm": attack.norm,
                    "pass_score": pass_score,
                }
            )
        worst = self.worst_case()
        if worst is not None:
            rows.append(
                {
                    "attack": "worst case",
                    "accuracy": worst.value,
                    "interval": worst.interval,
                    "images": len(self),
                }
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """The whole evaluation as JSON values (NaN becomes null); `Evaluation.from_json` reads it back."""
        return {
            "model": self.model,
            "data": self.data,
            "suite": self.suite,
            "threat": self.threat,
            "seed": self.seed,
            "classes": self.classes,
            "index": self.index.tolist(),
            "label": self.label.tolist(),
            "prediction": self.prediction.tolist(),
            "attacks": [rows.to_json() for rows in self.attacks],
            "findings": [asdict(finding) for finding in self.findings],
            "curves": [asdict(curve) for curve in self.curves],
            "gallery": [exhibit.to_json() for exhibit in self.gallery],
            "specimens": [exhibit.to_json() for exhibit in self.specimens],
            "notes": self.notes,
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Evaluation:
        """The evaluation that `to_json` described."""
        return cls(
            **{key: record[key] for key in ("model", "data", "suite", "threat", "seed", "classes")},
            index=np.array(record["index"], np.int64),
            label=np.array(record["label"], np.int64),
            prediction=np.array(record["prediction"], np.int64),
            attacks=[AttackRows.from_json(rows) for rows in record["attacks"]],
            findings=[Finding(**finding) for finding in record["findings"]],
            curves=[Curve(**curve) for curve in record["curves"]],
            gallery=[Exhibit.from_json(exhibit) for exhibit in record["gallery"]],
            specimens=[Exhibit.from_json(exhibit) for exhibit in record["specimens"]],
            notes=record["notes"],
            provenance=record["provenance"],
        )

    def save(self, folder: str | Path) -> Path:
        """Write it (with its digest) into a folder, under a name that another question does not share.

        Returns the path. Raises `FileError`.
        """
        path = Path(folder) / f"{self.name}.json"
        self.write(path)
        return path

    def write(self, path: str | Path) -> None:
        """Write it (with its digest) under a name of your own. Raises `FileError`."""
        write_record(Path(path), self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> Evaluation:
        """The evaluation in a file that `save` wrote. Raises `FileError` where the file is damaged or another kind."""
        record = read_record(Path(path))
        try:
            return cls.from_json(record)
        except (KeyError, TypeError, ValueError) as problem:
            raise FileError(f"{path} is no evaluation of this version of Bessemer: {problem}") from problem

    def to_csv(self, path: str | Path | None = None) -> str:
        """A line per image and attack, as CSV; written to `path` too, if one is given."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["attack", "index", "label", "clean_prediction", *COLUMNS])
        for rows in self.attacks:
            figures = [_figures(rows[name]) for name in COLUMNS]
            columns = zip(self.index, self.label, self.prediction, *figures, strict=True)
            writer.writerows([rows.name, *line] for line in columns)
        if path is not None:
            write_whole(Path(path), text.getvalue().encode())
        return text.getvalue()


def file_name(suite: str, threat: str, data: str, images: int, seed: int = 0, fast: bool = False) -> str:
    """A name for the answer to one question: no other suite, threat, name of data, number of images or seed shares it.

    What the fast mode found stands beside what the exact mode found.
    """
    parts = [suite, threat.replace("/", "of"), data, str(images), f"seed{seed}" if seed else "", "fast" if fast else ""]
    return "_".join(re.sub(r"[^\w.]+", "-", part) for part in parts if part)


def _figures(column: Column) -> list[Any]:
    """A column as plain values; floats at the precision that a float32 has."""
    return [float(f"{value:.9g}") if isinstance(value, float) else value for value in column.tolist()]


def _listed(column: Column) -> list[Any]:
    """A column as JSON values: NaN as null."""
    return [None if math.isnan(value) else value for value in _figures(column)]


def _packed(pixels: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Pixels as text: an ImageNet picture takes 300 kB instead of 1.6 MB."""
    packed = zlib.compress(pixels.astype("<f2").tobytes())
    return {"shape": list(pixels.shape), "halves": base64.b64encode(packed).decode()}


def _unpacked(record: dict[str, Any]) -> npt.NDArray[np.float32]:
    pixels = np.frombuffer(zlib.decompress(base64.b64decode(record["halves"])), "<f2")
    return pixels.astype(np.float32).reshape(record["shape"])


def _column(values: list[Any], kind: type) -> Column:
    return np.array([math.nan if value is None else value for value in values], kind)
