"""Data sets for tests, laid out as the Hugging Face hub lays them out."""

from __future__ import annotations

from pathlib import Path

import datasets


def data_set(folder: Path, subsets: dict[str, dict[str, dict]]) -> Path:
    """A data set as the hub holds it: subset -> split -> columns, in parquet, with the README that lists them."""
    lines = ["---", "configs:"]
    for subset, splits in subsets.items():
        lines += [f'- config_name: "{subset}"', "  data_files:"]
        for split, columns in splits.items():
            (folder / subset).mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(columns).to_parquet(folder / subset / f"{split}-00000-of-00001.parquet")
            lines += [f"  - split: {split}", f"    path: {subset}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder
