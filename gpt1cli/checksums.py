"""Whether files are still what was written: a CRC-32 of each, kept in a JSON file beside them.

It is against accidents (bits that flip, copies that end early), not against forgers: what is read is never executed.
A CRC-32 finds every change within 32 bits in a row.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

from gpt1cli import rundir
from gpt1cli.config.schema import InputError

FILE = "checksums.json"
PIECE = 2**22  # bytes read at a time


def of(path: Path, size: int | None = None) -> str:
    """The checksum of a file, or of its first `size` bytes: 8 hexadecimal digits."""
    found, left = 0, path.stat().st_size if size is None else size
    with open(path, "rb") as file:
        while piece := file.read(min(PIECE, left)):
            found, left = zlib.crc32(piece, found), left - len(piece)
    return f"{found:08x}"


def write(folder: Path) -> None:
    """Write the checksums of all files of a folder beside them."""
    rundir.write_json(folder / FILE, {file.name: of(file) for file in sorted(folder.iterdir())})


def check(folder: Path, names: Iterable[str], way_on: str) -> None:
    """InputError names a file that is not what was written, and the way on; a folder without checksums is believed."""
    if not (folder / FILE).exists():  # written by an older gpt1, or by another program
        return
    written = rundir.read_json(folder / FILE)
    for name in names:
        if name in written and not (folder / name).is_file():
            raise InputError(f"{folder / name}: missing; {way_on}")
        if name in written and (found := of(folder / name)) != written[name]:
            told = f"damaged (its checksum is {found}, {written[name]} was written)"
            raise InputError(f"{folder / name}: {told}; {way_on}")
