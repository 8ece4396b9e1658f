"""Silence other libraries, so that the terminal shows progress bars and errors only."""

from __future__ import annotations

import logging
import sys
import warnings

# At import these log that kernels for other hardware are missing.
_LOGGERS = ("torchao", "torch.utils._pytree", "bitsandbytes")


def quiet() -> None:
    """Turn off the log messages and most warnings of other libraries. Call it before they are imported."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|peft|transformers|trl)\b")
    warnings.showwarning = lambda message, category, *rest, **kw: print(f"allora: warning: {message}", file=sys.stderr)
