"""`vig push`: scores and their selection, or a trained model, to a repository of the Hugging Face hub, with its card.

    vig push runs/665k --to ORG/NAME --license cc-by-4.0

No image and no text of the dataset is uploaded, nor where anything lies on this machine.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vig_ray.errors import StageError
from vig_ray.push.hub import HubRepository, There
from vig_ray.push.model_repository import model_folder, model_repository
from vig_ray.push.repository import Repository
from vig_ray.push.scores_repository import scores_repository
from vig_ray.stage import StageConfig
from vig_ray.tables.directories import scores_directory

log = logging.getLogger(__name__)


def _licence(value: str | None) -> str | None:
    if value is not None and not all(part.isalnum() for part in value.replace(".", "-").replace("+", "-").split("-")):
        raise ValueError("takes the hub's name of a licence, such as apache-2.0, cc-by-4.0 or other")
    return value


class PushConfig(StageConfig):
    """Upload scores and their selection, or a trained model, to the Hugging Face hub, with a card."""

    run: str = Field(
        description="what `vig score`, `vig train` or `vig export` wrote: the directory that holds scores/ or model/, "
        "or one of these",
        json_schema_extra={"positional": True},
    )
    to: str = Field(description="repository, as ORG/NAME", json_schema_extra={"metavar": "ORG/NAME"})
    what: Literal["auto", "scores", "model"] = Field(
        "auto", description="scores: a dataset repository; model: a model repository; auto: whichever is in RUN"
    )
    selection: str | None = Field(
        None, description="selection/ of these scores; by default the one beside them, if it is theirs"
    )
    license: Annotated[str | None, AfterValidator(_licence)] = Field(
        None,
        description="licence of the source data, or of model and data, by the hub's name; by default the card says "
        "that it has to be confirmed",
    )
    base_model: str | None = Field(
        None, description="hub id of the model that scored or was trained, where it was given as a folder"
    )
    public: bool = Field(False, description="make a new repository public; by default it is private")
    overwrite: bool = Field(
        False, description="write into a repository that vig push didn't make, and replace a card that was edited there"
    )
    dry_run: bool = Field(False, description="only print which files would be uploaded, and the card")
    yes: bool = Field(False, description="don't ask before anything is uploaded")


@dataclass(frozen=True)
class Pushed:
    """What came of it, for a person."""

    told: str

    def text(self) -> str:
        """As it is printed."""
        return self.told


def run(config: PushConfig) -> Pushed:
    """Upload, after asking. Raises StageError where there is nothing to upload, nobody to ask, or the hub refuses."""
    made = _made(config)
    hub = HubRepository(config.to, made.kind)
    heading = f"{made.kind} repository {config.to}"
    if config.dry_run:
        return Pushed(f"{heading} would hold\n{made.text()}\n\n{made.card}".rstrip())
    hub.check_token()
    if not config.yes and not sys.stdin.isatty():
        raise StageError("--yes: needed where nobody can be asked; --dry-run shows what would be uploaded")
    there = hub.look()
    hub.check(there, overwrite=config.overwrite)
    if not config.yes and not _agreed(f"{made.text()}\n{_question(heading, there, config.public)}"):
        return Pushed("nothing was uploaded")
    done = hub.write(made, there, public=config.public, overwrite=config.overwrite)
    if config.public and there is not None and there.private:
        log.warning("%s was private before and stays so; its settings on the hub change that", config.to)
    if done.card_kept:
        log.warning("its card was edited on the hub and is left as it is; --overwrite replaces it")
    if done.commit is None:
        return Pushed(f"nothing had changed: {done.url}")
    deleted = f", {done.deleted:,} deleted" if done.deleted else ""
    return Pushed(f"{len(made.names) + (not done.card_kept):,} files{deleted}: {done.url}")


def _made(config: PushConfig) -> Repository:
    """What RUN is as a repository. Raises StageError where it is neither, or both and nobody says which."""
    scores: str | None = None
    try:
        scores = scores_directory(config.run)
    except StageError:
        if config.what == "scores":
            raise
    model = model_folder(config.run)
    if config.what == "auto" and scores is not None and model is not None:
        raise StageError(f"{config.run}: holds scores and a model; say --what scores or --what model")
    if scores is not None and config.what != "model":
        return scores_repository(
            scores, selection=config.selection, to=config.to, license=config.license, model=config.base_model
        )
    if model is None:
        raise StageError(f"{config.run}: no scores/ and no model/ here; RUN is what vig score, train or export wrote")
    if config.selection is not None:
        raise StageError("--selection: goes with scores, not with a model; leave it out")
    return model_repository(model, to=config.to, license=config.license, base=config.base_model)


def _question(heading: str, there: There | None, public: bool) -> str:
    if there is None:
        return f"upload these to the {heading}, a new {'public' if public else 'private'} one? [y/N] "
    return f"upload these to the {heading}, which is there and {'private' if there.private else 'public'}? [y/N] "


def _agreed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
