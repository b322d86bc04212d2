"""What a person watches while a run trains: TensorBoard's files, Weights & Biases, MLflow; and what is told live."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from vig_ray.errors import StageError
from vig_ray.storage import join, scheme_of
from vig_ray.training.run import Run, Step
from vig_ray.training.vdep_log import figures

log = logging.getLogger(__name__)

# Dense bfloat16 matrix rate of one device, FLOP/s, from the makers' data sheets.
_PEAK = {
    "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "RTX 4090": 165e12,
    "B200": 2250e12,
}  # fmt: skip


class MetricsLogger(Protocol):
    """Is told what happens, on every worker; the first of them speaks."""

    def start(self, run: Run) -> None:
        """Training begins, after the steps that `run.log` holds."""

    def checked(self, done: int, total: int) -> None:
        """So many samples of `total` have had their tokens compared."""

    def step(self, step: Step) -> None:
        """A step is done."""

    def end(self) -> None:
        """All steps are done."""


class SilentLogger:
    """A `MetricsLogger` that says nothing."""

    def start(self, run: Run) -> None:
        """See `MetricsLogger`."""

    def checked(self, done: int, total: int) -> None:
        """See `MetricsLogger`."""

    def step(self, step: Step) -> None:
        """See `MetricsLogger`."""

    def end(self) -> None:
        """See `MetricsLogger`."""


class Tracker(Protocol):
    """Where figures go."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures after `step` steps."""

    def close(self) -> None:
        """No more follow."""


class TensorBoard:
    """Event files in a folder, or at a URI that fsspec knows; their names end in the run's id."""

    def __init__(self, directory: str, first: int, identity: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an attempt wrote beyond its last checkpoint is hidden: those steps are done again.
        self._writer = SummaryWriter(directory, purge_step=first or None, filename_suffix=f".{identity}")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class Wandb:
    """Weights & Biases: one run of `name`, which a later attempt goes on with."""

    def __init__(self, name: str, config: Mapping[str, Any], identity: str) -> None:
        import wandb

        self._run = wandb.init(project="vig-ray", name=name, id=identity, resume="allow", config=dict(config))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI: one run of `name`, which a later attempt goes on with."""

    def __init__(self, name: str, config: Mapping[str, Any], identity: str) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment("vig-ray")
        earlier = mlflow.search_runs(filter_string=f"tags.vig_run = '{identity}'", output_format="list")
        mlflow.start_run(run_id=earlier[0].info.run_id if earlier else None, run_name=name)
        if not earlier:
            mlflow.set_tag("vig_run", identity)
            mlflow.log_params(dict(config))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._mlflow.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._mlflow.end_run()


def trackers(
    names: Sequence[str], *, out: str, name: str, config: Mapping[str, Any], identity: str, first: int
) -> list[Tracker]:
    """Those asked for. Raises StageError where one isn't installed."""
    trackers: list[Tracker] = []
    for which in dict.fromkeys(names):
        try:
            if which == "tensorboard":
                folder = join(out, "tensorboard")
                local = folder.removeprefix("file://") if scheme_of(folder) == "file" else folder
                trackers.append(TensorBoard(local, first, identity))
            elif which == "wandb":
                trackers.append(Wandb(name, config, identity))
            elif which == "mlflow":
                trackers.append(MLflow(name, config, identity))
        except ImportError as error:
            raise StageError(f"--watch {which}: {error}; pip install {which} on the machines that train") from error
    return trackers


def figures_of(step: Step, flops_per_token: float, device: torch.device) -> dict[str, float]:
    """A step's line as what trackers show. Rates are of all workers together; memory is the first worker's."""
    seconds = max(step.seconds, 1e-9)
    values = {
        "train/loss": step.loss,
        "train/learning_rate": step.lr,
        "train/grad_norm": step.grad_norm,
        "speed/samples_per_s": step.samples / seconds,
        "speed/tokens_per_s": step.tokens / seconds,
        "speed/active_tokens_per_s": step.active_tokens / seconds,
        "speed/workers": step.workers,
        "speed/tflops_per_worker": flops_per_token * step.tokens / seconds / step.workers / 1e12,
    }
    if step.held_out_active_loss is not None and step.held_out_answer_loss is not None:
        values["held_out/active_loss"] = step.held_out_active_loss
        values["held_out/answer_loss"] = step.held_out_answer_loss
    values |= figures(step.vdep)
    if device.type == "cuda":
        values["memory/allocated_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        peak = peak_flops(torch.cuda.get_device_name(device))
        if peak:
            values["speed/mfu"] = values["speed/tflops_per_worker"] * 1e12 / peak
    return values


def peak_flops(device: str) -> float | None:
    """A device's dense bfloat16 FLOP/s by its name; None where it isn't known."""
    return next((peak for name, peak in _PEAK.items() if name in device), None)


def flops_per_token(run: Run) -> float:
    """FLOP a token of a forward and backward pass, by the usual estimate: 6 a trained weight, 4 a frozen one of the
    language model (no gradient of its own); embeddings, attention scores and the vision tower aren't counted.
    """
    decoder = run.training_model.model.get_decoder()
    trained = frozen = 0
    for name, parameter in decoder.named_parameters():
        if "embed" not in name:
            trained += parameter.numel() * parameter.requires_grad
            frozen += parameter.numel() * (not parameter.requires_grad)
    return 6.0 * trained + 4.0 * frozen


class Shown(Protocol):
    """Whoever shows a person how far a run is."""

    def started(self, done: int, steps: int, workers: str) -> None:
        """Workers begin, after `done` of `steps` steps; what they are, in words."""

    def checked(self, done: int, total: int) -> None:
        """So many samples of `total` have had their tokens compared."""

    def step(self, done: int, figures: Mapping[str, float]) -> None:
        """So many steps are done; the last one's figures."""


class JobMetricsLogger:
    """The first worker's: sends figures to trackers and to `shown`."""

    def __init__(self, shown: Shown, *, out: str, name: str, identity: str) -> None:
        self._shown, self._out, self._name, self._identity = shown, out, name, identity
        self._trackers: list[Tracker] = []
        self._flops = 0.0
        self._device = torch.device("cpu")
        self._speaks = False

    def start(self, run: Run) -> None:
        """See `MetricsLogger`."""
        self._speaks = run.distributed.rank == 0
        self._device, self._flops = run.distributed.device, flops_per_token(run)
        if self._speaks:
            config = run.setup.config
            self._trackers = trackers(
                config.watch, out=self._out, name=self._name, config=config.model_dump(mode="json"),
                identity=self._identity, first=run.step,
            )  # fmt: skip
            self._shown.started(run.step, run.setup.sampler.steps, _described(run))

    def checked(self, done: int, total: int) -> None:
        """See `MetricsLogger`."""
        if self._speaks:
            self._shown.checked(min(done, total), total)

    def step(self, step: Step) -> None:
        """See `MetricsLogger`."""
        if self._speaks:
            figures = figures_of(step, self._flops, self._device)
            for tracker in self._trackers:
                tracker.log(step.step + 1, figures)
            self._shown.step(step.step + 1, figures)

    def end(self) -> None:
        """See `MetricsLogger`."""
        for tracker in self._trackers:
            tracker.close()


def _described(run: Run) -> str:
    trained = sum(parameter.numel() for parameter in run.training_model.parameters() if parameter.requires_grad)
    workers = run.distributed.workers
    apart = run.checked.apart
    checked = "" if apart is None else f"; checked on a small copy, to {apart:.0e} nats"
    kept = f", whole gradients kept until a step's end: {run.whole_gradients / 1e9:,.1f} GB a worker"
    return (
        f"{workers} worker{'s' if workers > 1 else ''} on {run.distributed.device.type} in {run.setup.dtype}, "
        f"{trained:,} weights trained, samples {'packed' if run.packed else 'padded'}"
        f"{', FSDP' if run.sharded else ''}{kept if run.whole_gradients else ''}{checked}"
    )


def line_of(figures: Mapping[str, float]) -> str:
    """A step's figures on one short line."""
    if not figures:
        return ""
    line = f"loss {figures['train/loss']:.4f}, lr {figures['train/learning_rate']:.2e}"
    line += f", {figures['speed/tokens_per_s']:,.0f} tokens/s ({figures['speed/active_tokens_per_s']:,.0f} active)"
    if "held_out/active_loss" in figures:
        line += f", held out {figures['held_out/active_loss']:.4f}"
    return line
