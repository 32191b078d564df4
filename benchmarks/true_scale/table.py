"""A table that grows row by row on disk, so that a command can stop at any time and the next one goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lumoe.files import read_csv, write_csv


class Table:
    """Rows of a CSV file, told apart by some of their columns."""

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str]) -> None:
        self.path, self._columns, self._key = path, list(columns), list(key)
        self.rows = read_csv(path, columns) if path.is_file() else pd.DataFrame(columns=self._columns)

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        match = pd.Series(True, index=self.rows.index)
        for name in self._key:
            match &= self.rows[name].astype(str) == str(key[name])
        return bool(match.any())

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row and write the file, whole or not at all."""
        more = pd.DataFrame([row], columns=self._columns)
        self.rows = more if self.rows.empty else pd.concat([self.rows, more], ignore_index=True)
        write_csv(self.path, self.rows, self._columns)
