"""The eager step on a machine that is known by its profile only, and the same step in one CUDA graph."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from taxbreak_fx import hardware_costs as costs
from taxbreak_fx.errors import UncoveredError
from taxbreak_fx.family_types import VENDOR_LIBRARIES
from taxbreak_fx.hardware import Profile
from taxbreak_fx.kinds import site_kind, site_op
from taxbreak_fx.predict_device import Launcher, waits
from taxbreak_fx.predict_layout import GraphLaunch, Launch, Layout, Place, spread
from taxbreak_fx.predicted import FakeOp, FakeStep
from taxbreak_fx.recording import Site

OPS, PYTHON = "ops", "python"
NO_GRAPH = "a CUDA graph cannot hold a wait of the host"


def eager(step: FakeStep, profile: Profile) -> Layout:
    """Every call of the step with what it costs, and the Python between them.

    ΔFT and ΔCT of a call: ``hardware_costs.host_us`` and ``library_us``; Python outside the calls: ``python_us``,
    spread evenly, as nothing tells where it lies.  Raises ``UncoveredError`` that names everything the profile lacks.
    """
    calls = calls_of(step)
    _require(profile, calls)
    launcher = Launcher(profile)
    bases: collections.Counter[str] = collections.Counter()
    hosts: dict[costs.Call, tuple[costs.Cost | None, float]] = {}
    places: list[Place] = []
    assumed = 0
    for site, call, ops in calls:
        if call not in hosts:
            hosts[call] = _host(profile, call), _library(profile, call)
        cost, ct = hosts[call]
        bases["in the glue" if cost is None else cost.basis] += 1
        made = launcher.of(call, ops)
        assumed += made.assumed
        place = _place(site, call, made.launches)
        us = 0.0 if cost is None else cost.us
        places.append(msgspec.structs.replace(place, ft_us=us, ct_us=ct, waits=any(map(waits, ops))))
    glue = costs.python_us(profile, len(step.sites), step.modules, step.functions)
    told = ", ".join(f"{count} {basis}" for basis, count in bases.most_common())
    notes = [f"host time of its {len(places)} calls was looked up by: {told}"]
    if assumed:
        notes.append(f"{assumed} ops are taken to launch one kernel each: neither shapes nor the profile tell")
    return Layout(name="eager", entries=tuple(spread(places, glue, PYTHON)), notes=tuple(notes))


def eager_graph(step: FakeStep, profile: Profile) -> Layout | str:
    """The kernels of the eager step, as it runs under capture, as one CUDA graph; or why there can be none.

    Raises ``UncoveredError`` where the profile has no graph launches, or lacks a device time.
    """
    calls, launcher = calls_of(step), Launcher(profile)
    waiting = [(site, op) for site, _, ops in calls for op in ops if waits(op)]
    if waiting:
        site, op = waiting[0]
        line = f" ({site.source})" if site.source is not None else ""
        return f"{NO_GRAPH}, and the step waits {len(waiting)} times: first in {op.op}{line}"
    held = [_place(site, call, launcher.of(call, ops).launches) for site, call, ops in calls]
    held = [place for place in held if place.launches]
    if not held:
        return "the step launches nothing"
    return Layout(name="eager-graph", entries=(graph_launch(held, profile),))


def graph_launch(held: Sequence[Place], profile: Profile) -> GraphLaunch:
    """One launch of the kernels and copies of ``held``.  Raises ``UncoveredError`` without graph launches."""
    host, first = costs.graph_us(profile, sum(len(place.launches) for place in held))
    return GraphLaunch(held=tuple(held), host_us=host, first_node_us=first)


def _place(site: Site, call: costs.Call, launches: tuple[Launch, ...]) -> Place:
    """A call without host time."""
    return Place(
        op=site_op(site),
        kind=site_kind(site, "cuda"),
        source=site.source,
        module_path=site.module_path,
        ft_us=0.0,
        launches=launches,
        part=OPS if call.ops else PYTHON,
        shown=bool(call.ops or launches),
    )


def calls_of(step: FakeStep) -> list[tuple[Site, costs.Call, list[FakeOp]]]:
    """Every call of the step, as costs are looked up, with its leaf ops, in issue order."""
    return [(site, costs.call_of(site), ops) for site, ops in _calls(step)]


def _calls(step: FakeStep) -> Iterable[tuple[Site, list[FakeOp]]]:
    """The author's calls with their leaf ops; an op outside every call is a call of its own, where it was met."""
    under: dict[int, list[FakeOp]] = collections.defaultdict(list)
    loose: dict[int, list[FakeOp]] = collections.defaultdict(list)  # behind that call; −1: before the first
    last = -1
    for op in step.ops:
        if op.site is None:
            loose[last].append(op)
        else:
            last = op.site
            under[op.site].append(op)
    for index in range(-1, len(step.sites)):
        if index >= 0:
            yield step.sites[index], under[index]
        for op in loose[index]:
            site = Site(target=op.op, ops=(op.op,), source=None, module_path=None, dtype=op.dtype, leaf_keys=(op.key,))
            yield site, [op]


def _host(profile: Profile, call: costs.Call) -> costs.Cost | None:
    """ΔFT of a call; None for one that dispatches nothing where the profile holds no such calls: its glue, which is
    all that lies outside the calls it does hold, contains them.

    One that was never measured itself costs what a torch function that dispatches nothing does.
    """
    if not call.ops and profile.python.torch_us is None and all(entry.ops for entry in profile.ops):
        return None
    try:
        return costs.host_us(profile, call)
    except UncoveredError:
        if call.ops or profile.python.torch_us is None:
            raise
        return costs.Cost(us=profile.python.torch_us, basis="family")


def _library(profile: Profile, call: costs.Call) -> float:
    return costs.library_us(profile, call).us if call.library in VENDOR_LIBRARIES else 0.0


def _require(profile: Profile, calls: Sequence[tuple[Site, costs.Call, list[FakeOp]]]) -> None:
    """Raise ``UncoveredError`` with everything that the profile lacks for these calls, each once."""
    launcher = Launcher(profile)
    missing: dict[str, UncoveredError] = {}
    seen = {(call, tuple(op.key for op in ops)): ops for _, call, ops in calls}
    for (call, _), ops in seen.items():
        asked: list[Callable[[], object]] = [
            partial(_host, profile, call),
            partial(_library, profile, call),
            partial(launcher.of, call, ops),
        ]
        for ask in asked:
            try:
                ask()
            except UncoveredError as error:
                missing[str(error)] = error
    if len(missing) == 1:
        raise next(iter(missing.values()))
    if missing:
        raise UncoveredError(_together(profile, missing.values()))


def _together(profile: Profile, errors: Iterable[UncoveredError]) -> str:
    """One line for several: what is alike is said once."""
    kinds: dict[str, list[str]] = {}
    other = []
    for error in errors:
        if error.lacks is None:
            other.append(str(error))
        else:
            kinds.setdefault(error.lacks[0], []).append(error.lacks[1])
    lacks = [f"no {kind} of {', '.join(what)}" for kind, what in kinds.items()]
    mend = f"profile {profile.name} knows {'; '.join(lacks)}: add their families to the profile, or calibrate again"
    return "; ".join([*([mend] if lacks else []), *other])
