"""Leave the screen to progress lines and to errors."""

from __future__ import annotations

import logging
import sys
import warnings

# What these say at import is for their own developers: kernels for other machines that are not there.
_CHATTY = ("torchao", "torch.utils._pytree", "bitsandbytes")


def quiet() -> None:
    """Silence what other libraries say, for the rest of the process; call it before they are imported."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|peft|transformers|trl)\b")
    warnings.showwarning = lambda message, category, *rest, **kw: print(f"allora: warning: {message}", file=sys.stderr)
