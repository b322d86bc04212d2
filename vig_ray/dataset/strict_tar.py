"""Tars that must be whole."""

from __future__ import annotations

import tarfile
from typing import Self


class StrictTarInfo(tarfile.TarInfo):
    """Members of a tar that must end with its block of zeros.

    tarfile takes a damaged header, or a file that is cut off between two members, for the archive's end, so that the
    rest would be missing silently.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next member. Raises tarfile.ReadError where there should be one."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block of zeros that ends a tar
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut off ({error})") from error
