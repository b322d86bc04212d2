"""What packages log as they are imported, on every machine and in every process, and nobody can do anything about.

transformers and peft import torchao and bitsandbytes wherever they are installed, and those say which of their parts
are for other machines. tests/compat/test_quiet.py fails where a release says it in another way.
"""

from __future__ import annotations

import logging

# Part of a message, by the logger's name.
_KNOWN = {
    "torchao": "Failed to load ",  # parts for GPUs, on a machine without
    "torchao.kernel.intmm": "Detected no triton",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",  # faster evaluation on some CPUs
    "torch.utils._pytree": " is an Enum subclass and is now natively supported",  # of torchao's own types
}


def be_quiet() -> None:
    """Leave these messages out in this process, from now on. Imports nothing."""
    for name, text in _KNOWN.items():
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Without) for each in logger.filters):
            logger.addFilter(_Without(text))


class _Without(logging.Filter):
    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is another one."""
        return self._text not in str(record.msg)
