"""Kernel-name rules: which family and library a device kernel's demangled name, as Kineto prints it, stands for.

Names lie, so each rule looks at the function's own qualified name (its *head*) first and reads template arguments only
where the head says nothing: ``cutlass`` inside ``pytorch_flash::flash_fwd_kernel<...>`` is still FlashAttention.
A Triton kernel's name is a bare identifier, so a rule for a short plain name (``dot_kernel``) also asks for the
template arguments or parameters that only C++ names carry; else a user's Triton ``dot_kernel`` would pass for cuBLAS.
"""

from __future__ import annotations

import re

from taxbreak_fx.family_kernel_tables import KERNEL_RULES
from taxbreak_fx.variant_record import Classification

_ANONYMOUS = "(anonymous namespace)"

_TRANSFERS = {
    "memcpy": Classification(
        family="copy",
        library="CUDA runtime",
        i_lib=False,
        code="memcpy",
        reason="a copy by the driver or a copy engine, no kernel",
    ),
    "memset": Classification(
        family="elementwise",
        library="CUDA runtime",
        i_lib=False,
        code="memset",
        reason="a fill by the driver, no kernel",
    ),
}
KINDS = ("kernel", *_TRANSFERS)


def kernel_identity(name: str) -> str:
    """``name`` without return type and insignificant whitespace; functor and template arguments stay.

    Demanglers differ in ``> >`` and spaces after commas; dropping the arguments would merge ``add`` with ``mul``.
    """
    name = " ".join(name.split())
    if name.startswith(("Memcpy ", "Memset ")):
        return name
    depth, start = 0, 0
    for position, character in enumerate(name):
        if character == "(" and depth == 0 and not name.startswith(_ANONYMOUS, position):
            break  # the parameter list: a space before it ended the return type
        if character in "<({[":
            depth += 1
        elif character in ">)}]" and name[position - 1 : position + 1] != "->":
            depth -= 1
        elif character == " " and depth == 0:
            start = position + 1
    return re.sub(r" (?=\W)|(?<=\W) ", "", name[start:].replace(_ANONYMOUS, "\0")).replace("\0", _ANONYMOUS)


def kernel_head(identity: str) -> str:
    """The kernel's qualified function name: ``identity`` without anonymous namespaces, arguments and parameters."""
    text = identity.replace(_ANONYMOUS + "::", "")
    head, depth = [], 0
    for position, character in enumerate(text):
        if character == "(" and depth == 0:
            break
        if character == "<":
            depth += 1
        elif character == ">" and text[position - 1] != "-":
            depth -= 1
        elif depth == 0:
            head.append(character)
    return "".join(head)


def match_kernel(identity: str) -> Classification | None:
    """What the first matching rule says of a kernel; ``None`` when no rule knows the name."""
    head = kernel_head(identity)
    for rule in KERNEL_RULES:
        if rule.matches(head, identity):
            return rule.classification()
    return None


def match_transfer(kind: str) -> Classification:
    """What a ``memcpy`` or ``memset`` is, whatever its name.  Raises ``KeyError`` for another kind."""
    return _TRANSFERS[kind]
