"""The one home of op or kernel -> family, library and I_lib, each with its reason (docs/families.md).

Tables are in ``family_products``, ``family_solvers`` and ``family_ops``, what they ask of a call's inputs in
``family_conditions``, kernel names in ``family_kernels``; this room looks them up, and holds what users and plugins
register.  It never guesses: what no rule knows is ``unknown``, and says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from taxbreak_fx.errors import TaxbreakError, UsageError
from taxbreak_fx.family_inputs import parse_inputs
from taxbreak_fx.family_kernels import KINDS, kernel_identity, match_kernel, match_transfer
from taxbreak_fx.family_ops import OWN_RULES
from taxbreak_fx.family_products import PRODUCT_RULES
from taxbreak_fx.family_solvers import SOLVER_RULES
from taxbreak_fx.family_types import FAMILIES, LIBRARIES, VENDOR_LIBRARIES, OpRule
from taxbreak_fx.variant_record import Classification

__all__ = [
    "ENTRY_POINT_GROUP",
    "FAMILIES",
    "LIBRARIES",
    "classify_kernel",
    "classify_op",
    "kernel_identity",
    "launches_nothing",
    "register_family",
]

ENTRY_POINT_GROUP = "taxbreak_fx.families"
DEVICES = ("cuda", "cpu")

OpTable = dict[tuple[str, str], list[OpRule]]

# Inductor names a fused kernel after the ops it came from; views and gemms in that name are neighbours, not contents.
_CPP_REDUCTION = re.compile(
    r"_(mean|sum|amax|amin|argmax|argmin|max|min|prod|var|var_mean|std|any|all|logsumexp|softmax|log_softmax|"
    r"native_layer_norm|native_group_norm|rms_norm|fused_rms_norm)(?=_)"
)
# Kineto spells dtypes as C++ does.
_DTYPE_NAMES = {
    "c10::bfloat16": "bfloat16",
    "c10::half": "float16",
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "long": "int64",
    "int": "int32",
}


def _build_table(rules: Iterable[OpRule]) -> OpTable:
    """Index ``rules`` by op and device, in their order.

    Raises ``ValueError`` when two rules claim the same op, device and dtype on the same condition.
    """
    table: OpTable = {}
    for rule in rules:
        for op in rule.ops.split():
            name = op if "." in op else f"aten.{op}"
            for device in DEVICES if rule.device == "any" else (rule.device,):
                known = table.setdefault((name, device), [])
                for other in (other for other in known if other.when == rule.when):
                    if rule.dtypes == other.dtypes or (rule.dtypes and other.dtypes and rule.dtypes & other.dtypes):
                        raise ValueError(f"{name} on {device} is claimed by rules {other.code} and {rule.code}")
                known.append(rule)
    return table


_TABLE = _build_table((*PRODUCT_RULES, *SOLVER_RULES, *OWN_RULES))
_registered_ops: dict[tuple[str, str], Classification] = {}
_registered_kernels: dict[str, Classification] = {}
_plugins_loaded = False


def _op_name(op: str) -> str:
    """``namespace.name`` of an op in any spelling, without overload; ``aten`` where no namespace is written."""
    name = op.removeprefix("extern:").removeprefix("extern_kernels.").removeprefix("torch.ops.").replace("::", ".")
    parts = name.split(".")
    return f"aten.{parts[0]}" if len(parts) == 1 else ".".join(parts[:2])


def _spellings(name: str) -> Iterable[str]:
    """``name`` and the base names whose rule it shares: out-of-place, not foreach, ATen for a prim."""
    namespace, base = name.split(".", 1)
    plain = base.removesuffix("_")
    yield name
    yield f"{namespace}.{plain}"
    if plain.startswith("_foreach_"):
        yield f"{namespace}.{plain.removeprefix('_foreach_')}"
    if namespace == "prims":
        yield f"aten.{base}"


def _device_type(device: str) -> str:
    kind = device.split(":", 1)[0]
    if kind not in DEVICES:
        raise UsageError(f"no op families for device {device!r}; use one of: {', '.join(DEVICES)}")
    return kind


def _dtype_name(dtype: str | None) -> str | None:
    if dtype is None:
        return None
    name = dtype.lower().removeprefix("torch.")
    return _DTYPE_NAMES.get(name, name)


def _known(op: str, device: str, dtype: str | None, inputs: str | None = None) -> Classification | None:
    for name in _spellings(_op_name(op)):
        registered = _registered_ops.get((name, device))
        if registered is not None:
            return registered
        rules = _TABLE.get((name, device))
        if rules:
            return _decide(rules, dtype, inputs)
    return None


def _decide(rules: list[OpRule], dtype: str | None, inputs: str | None) -> Classification:
    """What the rule that fits best says: one on the inputs, else one on the dtype, else the general one."""
    conditional = [rule for rule in rules if rule.when and (rule.dtypes is None or dtype in rule.dtypes)]
    call = parse_inputs(inputs) if conditional and inputs is not None else None
    plain = sorted((rule for rule in rules if not rule.when), key=lambda rule: rule.dtypes is None)
    fitting = (rule for rule in plain if rule.dtypes is None or dtype in rule.dtypes)
    rule = next((rule for rule in conditional if call and rule.when and rule.when.holds(call)), None) or next(fitting)
    reason = rule.reason
    if conditional and call is None:
        others = ", ".join(f"{other.library} where {other.when.text}" for other in conditional if other.when)
        reason += f"; not told without the call's inputs: {others}"
    return Classification(
        family=rule.family,
        library=rule.library,
        i_lib=rule.library in VENDOR_LIBRARIES,
        code=rule.code,
        reason=reason,
    )


def _unknown(what: str, name: str, on: str) -> Classification:
    return Classification(
        family="unknown",
        library="unknown",
        i_lib=False,
        code="unknown",
        reason=f"no rule knows {what} {name}; add one with register_family({name!r}, on={on!r}, ...)",
    )


def _fused_cpp(name: str) -> Classification:
    reduces = _CPP_REDUCTION.search(f"_{name}_") is not None
    return Classification(
        family="reduction" if reduces else "elementwise",
        library="Triton/Inductor",
        i_lib=False,
        code="cpp.reduction" if reduces else "cpp.elementwise",
        reason=f"Inductor's fused C++ loop; the ops in its name {'include a' if reduces else 'include no'} reduction",
    )


def classify_op(op: str, device: str, *, dtype: str | None = None, inputs: str | None = None) -> Classification:
    """What ``op`` is on ``device`` (``cuda`` or ``cpu``) and who does its work; ``unknown`` when no rule knows it.

    ``op`` is an ATen or custom op in any spelling (``aten.addmm.default``, ``aten::add_``, ``linear``), ``extern:mm``
    (an extern kernel of Inductor), ``triton:NAME`` or ``cpp:NAME`` (a generated kernel).  ``dtype`` (``bfloat16``,
    ``torch.float32``) refines the library where it depends on it; without it the answer is for bf16 on CUDA and fp32
    on the CPU.  ``inputs`` is the text of the call's inputs as in a leaf's key (``family_inputs``); where the library
    depends on them and they are not known, the reason says what could not be told.  Raises ``UsageError`` for another
    device, ``TaxbreakError`` when a plugin fails to load.
    """
    _load_plugins()
    device = _device_type(device)
    if op.startswith("triton:"):
        name = op.removeprefix("triton:")
        known = classify_kernel(name)
        if known.library == "Triton/Inductor" or known.code.startswith("registered:"):
            return known
        return Classification(
            family="custom-triton",
            library="Triton",
            i_lib=False,
            code="triton.user",
            reason="a Triton kernel without Inductor's prefix: the model author's",
        )
    if op.startswith("cpp:"):
        return _fused_cpp(op.removeprefix("cpp:"))
    return _known(op, device, _dtype_name(dtype), inputs) or _unknown("op", _op_name(op), "op")


def classify_kernel(name: str, kind: str = "kernel") -> Classification:
    """What a device activity is, from its demangled ``name`` (as Kineto prints it) and ``kind`` (see ``KINDS``).

    A user's Triton kernel cannot be told by its name: it is ``unknown`` here unless registered; pass ``triton:NAME``
    to ``classify_op`` where the launcher is known.  Raises ``UsageError`` for an unknown kind, ``TaxbreakError`` when
    a plugin fails to load.
    """
    _load_plugins()
    if kind not in KINDS:
        raise UsageError(f"no device activity of kind {kind!r}; use one of: {', '.join(KINDS)}")
    return match_transfer(kind) if kind != "kernel" else _classify_kernel(name)


@lru_cache(maxsize=4096)
def _classify_kernel(name: str) -> Classification:
    identity = kernel_identity(name)
    for pattern, classification in _registered_kernels.items():
        if re.search(pattern, identity):
            return classification
    return match_kernel(identity) or _unknown("kernel", identity, "kernel")


def launches_nothing(op: str) -> bool:
    """Whether ``op`` never launches a kernel (a view, a size query, an empty allocation).

    False for ops that only may launch, such as ``reshape``, ``contiguous`` and ``to``.
    """
    _load_plugins()
    known = _known(op, "cuda", None)
    return known is not None and known.family == "view" and known.code != "view.may_copy"


def register_family(
    pattern_or_op: str,
    *,
    family: str,
    library: str,
    i_lib: bool,
    reason: str,
    device: str | None = None,
    on: Literal["op", "kernel"] = "op",
) -> None:
    """Teach the registry an op (``mylib.attention``, any overload) or kernels (a regular expression, ``re.search``).

    ``device`` limits an op to ``cuda`` or ``cpu``; kernels are CUDA's.  Registered kernel patterns are asked before the
    built-in rules, since an author knows a kernel better than its name does.  ``library`` may be new, ``family`` must
    be one of ``FAMILIES``.  Raises ``UsageError`` for an op or pattern registered already, an op that has a built-in
    rule, or a value that makes no sense.
    """
    if family not in FAMILIES or family == "unknown":
        raise UsageError(f"no family {family!r} to register; use one of: {', '.join(FAMILIES[:-1])}")
    if not library or not reason or not pattern_or_op:
        raise UsageError("register_family needs a non-empty op or pattern, library and reason")
    entry = Classification(
        family=family, library=library, i_lib=i_lib, code=f"registered:{pattern_or_op}", reason=reason
    )
    if on == "kernel":
        _register_kernel(pattern_or_op, entry, device)
    elif on == "op":
        _register_op(pattern_or_op, entry, device)
    else:
        raise UsageError(f"cannot register on {on!r}; use 'op' or 'kernel'")


def _register_op(op: str, entry: Classification, device: str | None) -> None:
    name = _op_name(op)
    devices = DEVICES if device is None else (_device_type(device),)
    for kind in devices:
        known = _registered_ops.get((name, kind)) or _known(name, kind, None)
        if known is not None:
            raise UsageError(f"{name} on {kind} has a rule already ({known.code}); remove the second registration")
    _registered_ops.update({(name, kind): entry for kind in devices})


def _register_kernel(pattern: str, entry: Classification, device: str | None) -> None:
    if device not in (None, "cuda"):
        raise UsageError(f"kernels run on cuda, not {device!r}; leave out device, or register the op")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"kernel pattern {pattern!r} is no regular expression: {error}") from error
    if pattern in _registered_kernels:
        raise UsageError(f"kernel pattern {pattern!r} is registered already; remove the second registration")
    _registered_kernels[pattern] = entry
    _classify_kernel.cache_clear()


def _load_plugins() -> None:
    """Call every installed ``taxbreak_fx.families`` entry point once; a failed one leaves nothing behind."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True  # set first: a plugin may itself classify
    before = dict(_registered_ops), dict(_registered_kernels)
    for plugin in entry_points(group=ENTRY_POINT_GROUP):
        try:
            plugin.load()(register_family)
        except Exception as error:
            _plugins_loaded = False
            _restore(*before)
            raise TaxbreakError(f"{_package(plugin)} failed to register its op families: {error}") from error


def _restore(ops: dict[tuple[str, str], Classification], kernels: dict[str, Classification]) -> None:
    _registered_ops.clear()
    _registered_ops.update(ops)
    _registered_kernels.clear()
    _registered_kernels.update(kernels)
    _classify_kernel.cache_clear()


def _package(plugin: EntryPoint) -> str:
    return f"package {plugin.dist.name}" if plugin.dist else f"plugin {plugin.value}"
