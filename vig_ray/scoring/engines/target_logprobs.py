"""From hidden states to the log-probs of target tokens: the head in slices, its product and log-softmax in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vig_ray.model.arrays import on_device
from vig_ray.model.head import applied_softcap, capped

_LOGITS_AT_ONCE = 1 << 26  # elements: 256 MB of float32


class TargetLogProbs:
    """The head of `model`, and what the model does to its logits."""

    def __init__(self, model: Any) -> None:
        self._head = model.get_output_embeddings()
        self._head_weight: torch.Tensor | None = None
        self._dtype = next(model.parameters()).dtype
        self._vocabulary = model.config.get_text_config().vocab_size
        # Llama 4 has no part without its head to ask, and no cap.
        self.softcap = applied_softcap(model, self._uncapped) if hasattr(model, "model") else None

    def __call__(
        self, hidden_KD: torch.Tensor, target_N: torch.Tensor, state_N: np.ndarray[Any, Any] | None = None
    ) -> torch.Tensor:
        """log q of each target, float32 [N], by the state with its number (None: by the one in its place).

        `state_N`: rising. Logits exist for a slice of states at a time.
        """
        state_N = np.arange(len(hidden_KD)) if state_N is None else state_N
        states = max(1, _LOGITS_AT_ONCE // self._vocabulary)
        slices = [torch.zeros(0, device=hidden_KD.device)]
        for start in range(0, len(hidden_KD), states):
            logits_KV = capped(self._uncapped(hidden_KD[start : start + states]), self.softcap)
            first, past = np.searchsorted(state_N, (start, start + states)).tolist()
            state = on_device(state_N[first:past] - start, hidden_KD.device)
            slices.append(logits_KV[state, target_N[first:past]] - logits_KV.logsumexp(dim=1)[state])
        return torch.cat(slices)

    @torch.inference_mode()
    def error_norms(self, hidden_TD: torch.Tensor, target_T: torch.Tensor) -> torch.Tensor:
        """||q - onehot(target)||_2 over the vocabulary for each state, float32 [T]: what EL2N is the mean of (Paul et
        al., arXiv 2107.07075). Between 0 and the square root of 2."""
        norms = [torch.zeros(0, device=hidden_TD.device)]
        states = max(1, _LOGITS_AT_ONCE // self._vocabulary)
        for start in range(0, len(hidden_TD), states):
            part_KD, target_K = hidden_TD[start : start + states], target_T[start : start + states]
            q_KV = capped(self._uncapped(part_KD), self.softcap).float().softmax(dim=1)
            q_KV[torch.arange(len(target_K), device=q_KV.device), target_K] -= 1
            norms.append(q_KV.norm(dim=1))
        return torch.cat(norms)

    def _uncapped(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Logits in float32 whatever the dtype: bfloat16 logits near 16 lie 0.06 apart, as much as a small gain."""
        head = self._head
        if self._dtype == torch.float32 or type(head) is not torch.nn.Linear:
            logits = head(hidden_ND).float()
        elif hidden_ND.device.type == "cuda":
            logits = torch.mm(hidden_ND, head.weight.T, out_dtype=torch.float32)
        else:
            if self._head_weight is None:
                self._head_weight = head.weight.float()
            logits = hidden_ND.float() @ self._head_weight.T
        if type(head) is torch.nn.Linear and head.bias is not None and self._dtype != torch.float32:
            logits = logits + head.bias.float()
        return torch.as_tensor(logits)


class ErrorNorms(TargetLogProbs):
    """In place of log-probs `error_norms`, for an engine that is asked for them."""

    def __call__(
        self, hidden_KD: torch.Tensor, target_N: torch.Tensor, state_N: np.ndarray[Any, Any] | None = None
    ) -> torch.Tensor:
        """The norm of each target, float32 [N], by the state with its number (None: by the one in its place)."""
        hidden_ND = hidden_KD if state_N is None else hidden_KD[on_device(state_N, hidden_KD.device)]
        return self.error_norms(hidden_ND, target_N)
