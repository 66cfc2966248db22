"""The sockets that plug-ins fill: one registrable interface each, with what it is given and must answer.

A plug-in is a config dataclass plus one class, registered by compoconf under its class name. It returns
facts or decisions; the host acts. `class_name` selects it in a config.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from compoconf import ConfigInterface, RegistrableConfigInterface, register_interface

from oellm_autoexp.core.model import (
    EndedAttempt,
    Resources,
    Restart,
    Scalar,
    SchedulerFact,
    SchedulerRef,
    Stop,
)
from oellm_autoexp.core.script import ScriptRequest as ScriptRequest
from oellm_autoexp.errors import UsageError

P = TypeVar("P")


class Plugin(RegistrableConfigInterface):
    """The base of all sockets: a plug-in keeps the config it was made with."""

    def __init__(self, config: Any) -> None:
        self.config = config


def made(socket: Callable[..., P], config: ConfigInterface, **context: Any) -> P:
    """The plug-in that a parsed config selects, made with that config."""
    plugin: P = config.instantiate(socket, **context)  # type: ignore[no-untyped-call]
    return plugin


# ---------------------------------------------------------------- backend: what is run


@dataclass(frozen=True, kw_only=True)
class BackendJobSpec:
    """What a backend is told of one job. `parameters` are the point's resolved values."""

    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    name: str = ""
    output_dir: str = ""
    checkpoint_dir: str = ""
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True)
class LaunchCommand:
    """An argv with the environment it adds. Lists and mappings are taken and frozen."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "argv", tuple(self.argv))
        object.__setattr__(self, "environment", dict(self.environment))


@register_interface
class BackendInterface(Plugin):
    """What trains: turns a job into an argv and an environment.

    `reads_parameters`: whether it looks at the parameters of a job. Where a backend does not, a variable of
    the sweep that the config never refers to is refused as forgotten.
    """

    reads_parameters: bool = True

    def validate(self, spec: BackendJobSpec) -> None:
        """Refuse a job that cannot work.

        Raises:
            ConfigError, ValueError: what is wrong and how to repair it.
        """

    @abstractmethod
    def build_launch_command(self, spec: BackendJobSpec) -> LaunchCommand:
        """The command of one job. Pure: the same spec gives the same command."""


# ---------------------------------------------------------------- scheduler: who runs it


@dataclass(frozen=True, kw_only=True)
class Task:
    """One attempt within a submission."""

    name: str
    script_path: str
    log_path: str
    #: Where the guard claims the attempt and writes its start, heartbeat and exit files.
    attempt_dir: str
    #: AUTOEXP_* variables of this attempt.
    environment: Mapping[str, str] = field(default_factory=dict)
    time_limit_s: int | None = None
    #: What its command is sent before the limit, see `Resources.signal`.
    signal: str = ""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One call to the scheduler: one task, or an array of them."""

    token: str
    tasks: Sequence[Task]
    #: Nodes that none of them may be given, beside those that a script itself excludes.
    exclude: Sequence[str] = ()
    #: At most so many tasks run at once; None: no bound. Only where `Capabilities.throttles`.
    at_once: int | None = None
    #: The ids, joined by ":", of the jobs behind whose ends they wait, however these end; "" for none. Only
    #: where `Capabilities.successors`.
    after: str = ""
    #: With `after`: what the scripts themselves depend on has to hold, too.
    keeps_dependency: bool = False


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a scheduler can do, as far as it has been asked; it may change between turns."""

    #: Most tasks of one submission; 1 means no arrays.
    max_array_size: int = 1
    #: An array may be given more tasks than are to run at once.
    throttles: bool = False
    #: How long after an unclear submission a look-up by token may still come too early.
    find_grace_s: float = 600.0
    #: How long an answered "not known" must last before an attempt counts as lost.
    gone_grace_s: float = 600.0
    #: Seconds between polls when nothing happens.
    poll_interval_s: float = 30.0
    #: Live attempts at once where the config names none; None: no bound.
    default_max_jobs: int | None = None
    #: Whether a submission may wait in the queue behind the ends of other jobs (`Submission.after`).
    successors: bool = False


@register_interface
class SchedulerInterface(Plugin):
    """Who runs it. Instances are made with `config, effects=Effects, state_dir=Path`.

    Every query answers or raises `SchedulerUnavailable`: "I could not ask" is never "it is gone".
    """

    capabilities: Capabilities
    cluster: str

    @abstractmethod
    def render(self, request: ScriptRequest) -> str:
        """The job script. Pure: equal requests give equal bytes."""

    def batch_key(self, script: str) -> str:  # noqa: ARG002 - for those that have arrays
        """Jobs whose scripts have equal keys may be tasks of one submission."""
        return ""

    def prepare(self) -> None:
        """Learn what the scheduler can do, before the first turn; what is not answered is asked later."""
        return

    def identify(self, identity: str) -> SchedulerRef | None:  # noqa: ARG002 - for those that can
        """The reference of a job that somebody else has submitted, by the id that people know; None: unknown.

        It has no token: cluster, id and time of submission tell it from others.

        Raises:
            SchedulerUnavailable: no answer.
            UsageError: this scheduler knows only what was submitted from here.
        """
        raise UsageError(f"{type(self).__name__} knows only what was submitted from here")

    @abstractmethod
    def submit(self, submission: Submission) -> Sequence[SchedulerRef]:
        """Hand over a submission; one reference per task, in order.

        Raises:
            SubmitRejected: refused for good.
            SubmitDeferred: refused for the moment (a limit).
            SubmitUnclear: it may have been accepted: look it up by its token.
            SchedulerUnavailable: it was certainly not accepted, and nobody answered.
        """

    @abstractmethod
    def find(self, tokens: Sequence[str]) -> Mapping[str, Sequence[SchedulerRef]]:
        """The references of submissions by token, from one answered look-up; unknown tokens are absent.

        Raises:
            SchedulerUnavailable: no answer.
        """

    @abstractmethod
    def poll(self, refs: Sequence[SchedulerRef]) -> Mapping[SchedulerRef, SchedulerFact]:
        """What the scheduler says of every reference, with a constant number of calls.

        A reference the scheduler does not know is `SchedulerState.GONE`. Where very many would have to be
        asked about one by one, some are absent: nothing is known of them until a later poll.

        Raises:
            SchedulerUnavailable: no answer.
        """

    @abstractmethod
    def cancel(self, refs: Sequence[SchedulerRef]) -> None:
        """Ask for the end of attempts; ones that ended already are fine. Death is seen by `poll`.

        Raises:
            SchedulerUnavailable: no answer.
        """

    @abstractmethod
    def update(self, refs: Sequence[SchedulerRef], changes: Mapping[str, Any]) -> None:
        """Change queued or running attempts ({"time_limit_s": …}), or queued ones ({"exclude": [node, …]}).

        `exclude` takes the place of the submission's list. {"at_once": 4} changes the arrays of the attempts.

        Raises:
            SchedulerUnavailable: no answer.
            SubmitRejected: none of them was changed: this scheduler cannot, or they have begun or ended.
        """

    def eligible_nodes(self, script_path: str) -> frozenset[str] | None:  # noqa: ARG002
        """The nodes that the jobs of a script could be given: those of its partition; None: not known.

        It makes no call of its own.
        """
        return None


# ---------------------------------------------------------------- monitor: what is watched


@register_interface
class MonitorInterface(Plugin):
    """How jobs are watched: which files, which signals, when silence is a stall."""


# ---------------------------------------------------------------- policies: what follows an end


@register_interface
class RestartPolicyInterface(Plugin):
    """What follows when an attempt has ended. Pure: no clock, no files."""

    @abstractmethod
    def decide(self, ended: EndedAttempt) -> Restart | Stop:
        """The decision, with the sentence a person reads."""


# ---------------------------------------------------------------- conditions: what gates


@dataclass(frozen=True, kw_only=True)
class CommandCheck:
    """Holds when stdout is `1`, or the exit status is 0 with empty stdout."""

    command: str | Sequence[str]
    timeout_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """Holds when at least `at_least` paths match the glob pattern."""

    pattern: str
    at_least: int = 1


@dataclass(frozen=True, kw_only=True)
class SignalCheck:
    """Holds once the log of a job has said it, in an attempt since the job was added or last begun anew."""

    job: str
    signal: str


@dataclass(frozen=True, kw_only=True)
class MetricCheck:
    """Holds once a value in the series of a job, or its counter of that name, was as high or as low."""

    job: str
    metric: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, kw_only=True)
class AllOf:
    checks: Sequence[Check]


@dataclass(frozen=True, kw_only=True)
class AnyOf:
    checks: Sequence[Check]


@dataclass(frozen=True, kw_only=True)
class Not:
    check: Check


Check: TypeAlias = "CommandCheck | FileCheck | SignalCheck | MetricCheck | AllOf | AnyOf | Not"


@register_interface
class ConditionInterface(Plugin):
    """A gate. It describes the check; the host carries it out, never blocking the loop.

    Until a check has answered, its value is unknown: an unknown gate holds a job and is shown;
    it never passes or kills it.
    """

    @abstractmethod
    def check(self, fields: Mapping[str, Scalar]) -> Check:
        """What to look at. `fields` are the job's name, output_dir, … and parameters.

        `sibling.STAGE` is the name of the job that it waits for in that stage.
        """


# ---------------------------------------------------------------- actions: what is done


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """A local process of its own, with a time limit and a log; journaled and adopted like an attempt."""

    command: str | Sequence[str]
    timeout_s: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    #: An interrupted run is tried again, or counts as failed.
    on_interrupt: str = "retry"
    #: Tries after a non-zero exit.
    retries: int = 0


@dataclass(frozen=True, kw_only=True)
class AppendText:
    path: str
    text: str


@dataclass(frozen=True, kw_only=True)
class PostJson:
    """An HTTP POST of a JSON object."""

    url: str
    body: Mapping[str, Any]
    timeout_s: float = 10.0


@dataclass(frozen=True, kw_only=True)
class EndJob:
    """End the job with this mode ("cancelled", "success", "crash.nan", …)."""

    mode: str
    why: str


@dataclass(frozen=True, kw_only=True)
class RestartJob:
    """Cancel the live attempt and ask the policy of `mode`."""

    mode: str
    why: str


Deed: TypeAlias = "RunCommand | AppendText | PostJson | EndJob | RestartJob"


@register_interface
class ActionInterface(Plugin):
    """What is done when a signal is found or something happened. It describes the deed; the host does it."""

    @abstractmethod
    def deed(self, fields: Mapping[str, Scalar]) -> Deed:
        """What to do, with `{field}` placeholders filled in (shell-quoted where a shell reads them)."""

    def placeholders(self) -> frozenset[str]:
        """The `{field}` names it reads, so that a plan can refuse what no signal provides."""
        return frozenset()


# `cfgtype` is a value made at run time: a type checker sees the config base class instead.
if TYPE_CHECKING:
    BackendConfig: TypeAlias = ConfigInterface
    SchedulerConfig: TypeAlias = ConfigInterface
    MonitorConfig: TypeAlias = ConfigInterface
    RestartPolicyConfig: TypeAlias = ConfigInterface
    ConditionConfig: TypeAlias = ConfigInterface
    ActionConfig: TypeAlias = ConfigInterface
else:
    BackendConfig = BackendInterface.cfgtype
    SchedulerConfig = SchedulerInterface.cfgtype
    MonitorConfig = MonitorInterface.cfgtype
    RestartPolicyConfig = RestartPolicyInterface.cfgtype
    ConditionConfig = ConditionInterface.cfgtype
    ActionConfig = ActionInterface.cfgtype
