"""Read by Python at the start of every process of the vLLM tests (`make test-vllm` puts this folder on PYTHONPATH).

It mends two things of the test machine:

    - PyPI's torchvision is built for CUDA, and beside a CPU build of torch it can be imported where vig_ray was before:
      vLLM's own processes, which it isn't, need it too.
    - With TRITON_INTERPRET=1, Triton's interpreter stands in for a GPU, so that vLLM's V2 model runner, kernels and
      all, runs on a CPU.
"""

from __future__ import annotations

import importlib.abc
import os
import sys


class _Mender(importlib.abc.MetaPathFinder):
    """Finds nothing; acts just before a module is looked for."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "vllm.triton_utils" and os.environ.get("TRITON_INTERPRET") == "1":
            _offer_interpreter()


def _offer_interpreter() -> None:
    """A Triton backend called "cpu", which is what vLLM looks for; interpreted kernels ask nothing else of it."""
    import torch
    from triton import backends
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class Interpreter(DriverBase):
        def __init__(self):
            pass

        @classmethod
        def is_active(cls):
            return True

        def map_python_to_cpp_type(self, ty):
            return ty

        def get_current_target(self):
            return GPUTarget("cpu", 0, 1)

        def get_active_torch_device(self):
            return torch.device("cpu")

        def get_device_interface(self):
            return torch.cpu

        def get_benchmarker(self):
            raise NotImplementedError

    backends.backends.clear()
    backends.backends["cpu"] = backends.Backend(None, Interpreter)


sys.meta_path.insert(0, _Mender())

import vig_ray  # noqa: E402, F401
