"""Where the public data lie, for the tests that reproduce published fits."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # law_worlds


def _folder() -> Path | None:
    chosen = os.environ.get("EDGESCALE_LAW_DATA")
    places = (
        [Path(chosen)] if chosen else [base / "shared" / "data" / "laws" for base in (ROOT.parent, ROOT.parent.parent)]
    )
    return next((place for place in places if place.is_dir()), None)


class LawData:
    """Rows and columns of the files in the data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def vectors(self) -> dict:
        return json.loads((self.folder / "check_vectors.json").read_text())

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    def rows(self, name: str) -> list[dict]:
        text = (self.folder / name).read_text()
        if name.endswith(".csv"):
            return list(csv.DictReader(text.splitlines()))
        return [json.loads(line) for line in text.splitlines() if line]

    def columns(self, name: str, *wanted: str) -> list[np.ndarray]:
        rows = self.rows(name)
        return [np.array([float(row[column]) for row in rows]) for column in wanted]


@pytest.fixture(scope="session")
def law_data() -> LawData:
    folder = _folder()
    if folder is None:
        pytest.skip("no shared/data/laws beside the checkout, and EDGESCALE_LAW_DATA is not set")
    return LawData(folder)


@pytest.fixture(scope="session")
def vectors(law_data: LawData) -> dict:
    return law_data.vectors()
