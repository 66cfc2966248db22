"""The graph of a plan: its jobs and who waits for whom; of many jobs their stages alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from oellm_autoexp.core.model import CONDITION, JobSpec
from oellm_autoexp.errors import UsageError
from oellm_autoexp.rendering.graph import FORMS, Arrow, Box, Graph
from oellm_autoexp.services.plan import PlanResult
from oellm_autoexp.sweep.stages import REPEAT, STAGE

#: So many jobs are drawn one by one.
MOST_JOBS = 60
#: What the name of a file says of its form.
SUFFIXES = {".svg": "svg", ".mmd": "mermaid", ".mermaid": "mermaid", ".txt": "text"}


def drawn(result: PlanResult, form: str) -> str:
    """The graph of a plan as text, Mermaid or SVG."""
    return FORMS[form](graph_of(result.loaded.project, [job.spec for job in result.jobs]))


def form_of(path: Path) -> str:
    """The form that a file's name asks for.

    Raises:
        UsageError: none.
    """
    form = SUFFIXES.get(path.suffix)
    if form is None:
        hint = f"end it in {', '.join(SUFFIXES)}"
        raise UsageError("nothing tells the form of the graph", where=str(path), hint=hint)
    return form


def graph_of(project: str, specs: Sequence[JobSpec]) -> Graph:
    """One box a job, or one a stage where there are more than MOST_JOBS."""
    stages = list(dict.fromkeys(stage_of(spec) for spec in specs))
    title = f"{project}: {_many(len(specs), 'job')}"
    if len(stages) > 1:
        title += f" in {len(stages)} stages"
    if not any(spec.parents for spec in specs):
        title += "; none waits for another"
    if len(specs) > MOST_JOBS:
        return Graph(title=title, boxes=tuple(_stages(specs)), arrows=tuple(_between_stages(specs)))
    return Graph(
        title=title,
        boxes=tuple(Box(key=spec.name, label=spec.name, group=stage_of(spec)) for spec in specs),
        arrows=tuple(
            Arrow(start=parent.job, end=spec.name, loose=parent.gate == CONDITION)
            for spec in specs
            for parent in spec.parents
        ),
    )


def stage_of(spec: JobSpec) -> str:
    """The stage of a job as its parameters name it; "" for none."""
    return str(spec.parameters.get(STAGE) or "")


def _stages(specs: Sequence[JobSpec]) -> Iterable[Box]:
    stages = {spec.name: stage_of(spec) for spec in specs}
    sizes = Counter(stages.values())
    for stage, size in sizes.items():
        inside = [spec for spec in specs if stages[spec.name] == stage]
        said = [_many(size, "job")]
        segments = max(_segments(inside), default=0)
        if segments:
            said.append(f"chains of {segments}")
        # How many jobs of it wait for one of another stage.
        fans = Counter(
            (parent.stage, parent.job)
            for spec in inside
            for parent in spec.parents
            if stages.get(parent.job) != stage
        )
        for other in dict.fromkeys(other for other, _ in fans):
            most = max(number for (found, _), number in fans.items() if found == other)
            said.append(f"{most} for each of {other}")
        yield Box(key=stage, label=stage or "(no stage)", detail=", ".join(said))


def _segments(specs: Iterable[JobSpec]) -> Iterable[int]:
    for spec in specs:
        number = spec.parameters.get(REPEAT)
        follows = any(parent.stage == stage_of(spec) for parent in spec.parents)
        if follows and isinstance(number, int):
            yield number


def _between_stages(specs: Sequence[JobSpec]) -> Iterable[Arrow]:
    stages = {spec.name: stage_of(spec) for spec in specs}
    found: dict[tuple[str, str], bool] = {}
    for spec in specs:
        for parent in spec.parents:
            pair = stages.get(parent.job, parent.stage), stages[spec.name]
            if pair[0] != pair[1]:
                found[pair] = found.get(pair, True) and parent.gate == CONDITION
    return (Arrow(start=start, end=end, loose=loose) for (start, end), loose in found.items())


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
