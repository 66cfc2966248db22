"""Whether loaders can go on where a state of them was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oellm_autoexp.core.experiment import EpochLengthPolicy, MultiDataLoaderConfig, plain
from oellm_autoexp.errors import LoaderError
from oellm_autoexp.trainer.sources import Source

#: The version of the states of loaders that this program writes and reads.
FORMAT = 1


def check(
    state: Mapping[str, Any],
    sources: Sequence[Source],
    config: MultiDataLoaderConfig,
    seed: int,
    world: int,
    *,
    between: bool,
) -> bool:
    """Whether batches are the same as when the state was taken; `between`: it was taken between two epochs.

    Raises:
        LoaderError: the loaders cannot go on there; the message says what differs, and what would do.
    """
    if state.get("format") != FORMAT:
        what = f"the state of the loaders has format {state.get('format')}, this program reads {FORMAT}"
        raise LoaderError(what, hint="use the version of oellm-autoexp that wrote the checkpoint")
    saved = state["loaders"]
    names = [each["name"] for each in saved]
    if names != [source.name for source in sources]:
        now = ", ".join(source.name for source in sources)
        what = f"the checkpoint has the loaders {', '.join(names)}, and these are {now}"
        raise LoaderError(what, hint="give the loaders of the checkpoint, in its order")
    if world != state["world"]:
        _check_world(sources, state["world"], world, between=between)
    if between:
        return True
    if seed != state["seed"]:
        raise _mid_epoch(state, f"the seed was {state['seed']} and is {seed}")
    for key, value in plain(config).items():
        if state["config"].get(key) != value:
            raise _mid_epoch(state, f"{key} was {state['config'].get(key)} and is {value}")
    same = True
    for source, old in zip(sources, saved, strict=True):
        new = source.geometry()
        key, unit = ("samples", "samples") if "batch" in new else ("length", "batches")
        if old.get(key) != new.get(key):
            what = f"loader {source.name} had {old.get(key)} {unit} and has {new.get(key)}"
            raise _mid_epoch(state, what)
        same = same and all(old.get(name) == value for name, value in new.items())
    if not same:
        _check_policy(state, sources, config)
    return same


def _mid_epoch(state: Mapping[str, Any], what: str) -> LoaderError:
    where = f"epoch {state['epoch']} was left after {sum(state['before']) + sum(state['given'])} batches"
    hint = "set it as it was until the epoch has ended, or start anew"
    return LoaderError(f"{where}, and since then {what}", hint=hint)


def _check_world(sources: Sequence[Source], old: int, new: int, *, between: bool) -> None:
    for source in sources:
        if (source.shares_itself and not between) or not source.is_global:
            what = f"each of {old} processes has its own place in loader {source.name}; now there are {new}"
            raise LoaderError(what, hint=f"go on with {old} processes, or use a map-style data set")


def _check_policy(state: Mapping[str, Any], sources: Sequence[Source], config: MultiDataLoaderConfig) -> None:
    """Batches are others than before; what counts them cannot go on in the middle of an epoch."""
    policy = config.epoch_length_policy
    if policy is EpochLengthPolicy.SUM_OF_LENGTHS:
        return
    if policy is EpochLengthPolicy.FIXED_NUM_STEPS:
        if config.cycle_short_loaders:
            return
    elif len(sources) == 1:
        return
    what = f"batches have another size or are shared by other processes, and {policy.name} counts batches"
    raise _mid_epoch(state, what)
