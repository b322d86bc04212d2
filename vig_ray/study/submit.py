"""`vig submit study`: a study as a job of a Ray cluster, whose file goes along.

Relative paths in it start from its own folder here, as with `vig study`; whether they, and all others, are there is
asked where the job runs, which refuses in one line what isn't.
"""

from __future__ import annotations

from typing import Any

from vig_ray.errors import StageError
from vig_ray.storage import absolute, one_line
from vig_ray.study import file as files
from vig_ray.study.chosen import check_names, chosen
from vig_ray.study.graph import spell_out
from vig_ray.study.job import check_out
from vig_ray.submission import stage_options, submit

_FILE = "study.yaml"


def run(stage: str, config: Any) -> int:
    """Submit, and follow. What is wrong in the file, but for paths, is told here. Raises StageError."""
    check_out(config.out)
    study = chosen(files.read(config.study), config)
    options = stage_options(config)
    folder = absolute(options.pop("paths_from", None) or files.folder_of(config.study))
    out = str(options["out"])
    check_names(
        study, config.study, spell_out(study, config.study, out, pilot=config.pilot, folder=folder, check=False)
    )
    if "rates" in options:
        options["rates"] = absolute(options["rates"])
    try:
        with open(config.study, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise StageError(f"{config.study}: {one_line(error)}") from error
    del options["study"]
    return submit(stage, config, {**options, "paths_from": folder}, words=[_FILE], files={_FILE: text})
