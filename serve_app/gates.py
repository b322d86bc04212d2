"""Gates: policies that an operator names, and what they decide of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve_app.clients import Client
from serve_app.errors import RequestError
from serve_app.operator_files import first_finding, parse_yaml, read_text
from serve_app.schema import Decision, Score, ScoreRequest
from vig_ray.errors import StageError


class Policy(BaseModel):
    """What a sample must reach to be kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    tau: float | None = Field(None, strict=True, description="threshold of a token's gain, nats")
    least_gain: float | None = Field(None, strict=True, description="least gain of the sample, nats")
    least_active: float | None = Field(
        None, ge=0, le=1, strict=True, description="least share of the answer tokens whose gain reaches tau"
    )
    action: Literal["gate", "count"] = Field(
        "gate", description="gate decides; count keeps every sample, and says and counts what gate would have decided"
    )

    @model_validator(mode="after")
    def _whole(self) -> Policy:
        if self.least_gain is None and self.least_active is None:
            raise ValueError("decides nothing; give least_gain or least_active")
        if self.least_active is not None and self.tau is None:
            raise ValueError("least_active counts the tokens that reach tau; give tau too")
        return self


class Gate(NamedTuple):
    """The policy of a request, by its name."""

    name: str
    policy: Policy


def read_policies(path: str | None) -> dict[str, Policy]:
    """The policies in a YAML file, by name; {} for None. Raises StageError, which names file, policy and field."""
    if path is None:
        return {}
    where = f"--policies {path}"
    values = parse_yaml(read_text(path, "--policies"), where)
    if not isinstance(values, dict) or not values:
        raise StageError(f"{where}: takes policies by name, as in `strict: {{least_gain: 0.1}}`")
    return {str(name): _policy(each, f"{where}: policy {str(name)!r}") for name, each in values.items()}


def _policy(values: Any, where: str) -> Policy:
    if not isinstance(values, dict):
        raise StageError(f"{where}: takes {', '.join(Policy.model_fields)}")
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        raise StageError(f"{where}: {first_finding(error, Policy)}") from None


def gate_of(request: ScoreRequest, client: Client, policies: Mapping[str, Policy]) -> Gate | None:
    """The gate of a request: the policy that it names, or its key's. Raises RequestError where there is no such one."""
    own = client.key.policy if client.key is not None else None
    name = request.policy if request.policy is not None else own
    if name is None:
        return None
    if name not in policies:
        there = f"there are {', '.join(policies)}" if policies else "this server has none (--policies)"
        raise RequestError(422, "Policy", f"policy: there is no such policy; {there}")
    if request.tau is not None:
        raise RequestError(422, "Policy", f"tau: the key's policy {name!r} decides; leave tau out")
    return Gate(name, policies[name])


def decided(score: Score, gate: Gate) -> tuple[Score, str]:
    """The score with the gate's decision, and the verdict to count, a dry run's too.

    `score`: with its active tokens counted at the policy's tau, where it has one.
    """
    name, policy = gate
    share = (score.active_tokens or 0) / score.num_answer_tokens
    of_tokens = f"the share of answer tokens that reach {policy.tau:g} nats," if policy.tau is not None else ""
    asked = [("vig", score.vig, policy.least_gain), (of_tokens, share, policy.least_active)]
    told = [_told(*each, reached=False) for each in asked if each[2] is not None and not each[1] >= each[2]]
    verdict: Literal["kept", "dropped"] = "dropped" if told else "kept"
    told = told or [_told(*each, reached=True) for each in asked if each[2] is not None]
    reason, dry_run = " and ".join(told), policy.action == "count"
    decision = Decision(
        policy=name,
        verdict="kept" if dry_run else verdict,
        reason=f"{reason} (counted only: this policy keeps every sample)" if dry_run else reason,
        dry_run=dry_run,
        would=verdict if dry_run else None,
    )
    return score.model_copy(update={"decision": decision, "kept": decision.verdict == "kept"}), verdict


def _told(what: str, value: float, least: float | None, *, reached: bool) -> str:
    """As in "vig 0.03 is below 0.1", with as many digits as tell the two apart."""
    digits = next((n for n in range(3, 17) if f"{value:.{n}g}" != f"{least:.{n}g}"), 3)
    return f"{what} {value:.{digits}g} {'reaches' if reached else 'is below'} {least:.{digits}g}"
