"""How a download shows its progress."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


@contextmanager
def bars(name: str) -> Iterator[dict[str, Any]]:
    """Yield the options of huggingface_hub's ``snapshot_download`` that decide what is drawn.

    On a terminal these are huggingface_hub's own bars, and elsewhere nothing is drawn. Where a command's spinner shows the log records (level DEBUG), bars
    would break its line, so each step is a record.

    Args:
        name: what is downloaded, for the records.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, tqdm

    class Records(tqdm):
        """A bar that draws nothing and logs how far it is."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO()})

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            if self.unit == "B" and self.total and self.n:
                log.debug("downloading %s: %.2f of %.2f GB", name, self.n / 1e9, self.total / 1e9)
            return True

    if log.isEnabledFor(logging.DEBUG):
        yield {"tqdm_class": Records}
    elif sys.stderr.isatty() or are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield {}
    else:
        disable_progress_bars()
        try:
            yield {}
        finally:
            enable_progress_bars()
