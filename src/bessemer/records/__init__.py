"""What a run leaves behind: plain data, no torch."""

from bessemer.records.evaluation import (
    BUDGETS,
    COLUMNS,
    NOT_TRIED,
    WORST,
    AttackRows,
    Curve,
    Evaluation,
    Exhibit,
    Finding,
    Share,
    file_name,
    wilson,
)
from bessemer.records.files import read_record, write_record, write_whole
from bessemer.records.provenance import provenance
from bessemer.records.result import Claim, Result
from bessemer.records.run import RunRecord, read_metrics
from bessemer.records.sweep import Sweep

__all__ = [
    "BUDGETS",
    "COLUMNS",
    "NOT_TRIED",
    "WORST",
    "AttackRows",
    "Claim",
    "Curve",
    "Evaluation",
    "Exhibit",
    "Finding",
    "Result",
    "RunRecord",
    "Share",
    "Sweep",
    "file_name",
    "provenance",
    "read_metrics",
    "read_record",
    "wilson",
    "write_record",
    "write_whole",
]
