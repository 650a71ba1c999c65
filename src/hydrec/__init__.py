"""hydrec: experiments in sequential recommendation and click-through-rate prediction that can be believed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hydrec.loaded import LoadedRun

__version__ = "0.1.0"


def load(run: str) -> "LoadedRun":
    """Opens a finished run to use its model: from its folder alone, without the data.

    Args:
        run: its folder, such as ``runs/single/NAME``.

    Raises:
        InputError: it is no run folder, or of a run that is not finished.
    """
    from hydrec.loaded import LoadedRun  # torch takes seconds to import

    return LoadedRun(run)
