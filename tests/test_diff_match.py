"""Which op is which across an edit, and what the edit did to each line."""

from __future__ import annotations

import msgspec
from diff_samples import at, with_nodes
from sample_review import AUTHOR_FILE, sample_review

from taxbreak_fx.diff import diff
from taxbreak_fx.diff_match import match
from taxbreak_fx.diff_types import LineChange
from taxbreak_fx.variant_record import Node

replace = msgspec.structs.replace


def pairs_of(base: list[Node], head: list[Node]) -> list[tuple[int | None, int | None]]:
    """Lines of the matched rows."""
    return [
        (a.source.line if a and a.source else None, b.source.line if b and b.source else None)
        for a, b, _ in match(base, head)
    ]


def lines_of(base: list[Node], head: list[Node]) -> list[LineChange]:
    """The changed lines of eager."""
    review = sample_review()
    return diff(with_nodes(review, base), with_nodes(review, head)).lines


def test_an_insertion_above_moves_all_rows_alike() -> None:
    # Ten lines inserted above; by nearest line alone, 50 would be taken for 50, which was 40.
    anchor, moved = at(30, "aten.mm.default"), at(40, "aten.mm.default")
    found = pairs_of([anchor, at(40), at(50)], [moved, at(50), at(60)])
    assert found == [(30, 40), (40, 50), (50, 60)]


def test_the_row_that_is_new_is_the_one_that_has_no_other() -> None:
    anchor = at(30, "aten.mm.default")
    assert pairs_of([anchor, at(40), at(50)], [anchor, at(40), at(43), at(50)]) == [
        (30, 30), (40, 40), (50, 50), (None, 43),
    ]  # fmt: skip
    assert pairs_of([anchor, at(40), at(43), at(50)], [anchor, at(40), at(50)]) == [
        (30, 30), (40, 40), (43, None), (50, 50),
    ]  # fmt: skip


def test_of_two_that_moved_alike_the_one_that_counts_alike_is_it() -> None:
    # Both rows of the head are on the base row's line; only the second is called as often.
    twice = at(40, launches=2)
    (pair, other) = match([twice], [at(40), replace(twice, device_us=3.0)])
    assert pair.head is not None and pair.head.launches == 2 and pair.same
    assert other.base is None


def test_folders_do_not_matter_modules_and_ops_do() -> None:
    other = at(40, file="/other/checkout/a.py")
    assert match([at(40)], [other])[0].same
    assert len(match([at(40)], [replace(at(41), module_path="n")])) == 2
    assert len(match([at(40)], [replace(other, op="aten.sub.Tensor")])) == 2
    assert len(match([at(40)], [at(40, file="b.py")])) == 2


def test_numbers_of_generated_kernels_shift() -> None:
    # One kernel more at the start: what was _0 and _1 is _1 and _2.
    base = [at(40, "triton:triton_poi_fused_add_0"), at(60, "triton:triton_poi_fused_add_1")]
    head = [
        at(40, "triton:triton_poi_fused_add_1"),
        at(60, "triton:triton_poi_fused_add_2"),
        at(5, "triton:fused_mul_0"),
    ]
    assert pairs_of(base, head) == [(40, 40), (60, 60), (None, 5)]


def test_a_renamed_module_is_no_change() -> None:
    (pair,) = match([at(40)], [replace(at(40), module_path="renamed")])
    assert pair.same and pair.by_place
    assert lines_of([at(40)], [replace(at(40), module_path="renamed")]) == []


def test_a_generated_kernel_that_fuses_another_op_is_the_same_launch() -> None:
    (pair,) = match([at(40, "triton:triton_poi_fused_add_0")], [at(40, "triton:triton_poi_fused_add_mul_0")])
    assert pair.same and pair.by_place
    assert len(match([at(40, "triton:triton_poi_fused_add_0")], [at(40, "aten.add.Tensor")])) == 2


def test_a_line_that_was_rewritten_is_one_line() -> None:
    # Line 40 called gelu and calls tanh and mul now; two lines above it are new.
    anchor, below = at(30, "aten.mm.default"), at(50, "aten.bmm.default")
    base = [anchor, at(40, "aten.gelu.default"), below]
    head = [anchor, at(42, "aten.tanh.default"), at(42, "aten.mul.Tensor"), replace(below, source=at(52).source)]
    (line,) = lines_of(base, head)
    assert line.presence == "both" and line.source is not None and line.source.line == 42
    assert (line.added, line.removed) == (["aten.tanh.default", "aten.mul.Tensor"], ["aten.gelu.default"])
    assert (line.calls, line.launches, line.kernels) == (1, 1, 1)


def test_a_line_that_is_gone_has_the_line_that_it_had() -> None:
    anchor, below = at(30, "aten.mm.default"), at(50, "aten.bmm.default")
    (line,) = lines_of([anchor, at(40), below], [anchor, replace(below, source=at(49).source)])
    assert (line.presence, line.launches) == ("removed", -1)
    assert line.source is not None and line.source.line == 40


def test_ops_that_only_changed_modules_add_up_to_nothing() -> None:
    # 3 calls outside every module and 1 in one; then 2 in each of two: as many on the line as before.
    base = [at(40, module=None, launches=3), at(40, module="n", launches=1)]
    head = [at(40, module="layers.n", launches=2), at(40, module="layers.m", launches=2)]
    assert lines_of(base, head) == []
    (line,) = lines_of(base, [*head, at(40, module="layers.k", launches=1)])
    assert (line.launches, line.presence) == (1, "both")


def test_a_line_names_the_module_that_holds_its_ops() -> None:
    base = [at(40, module="layers.*.norm", file=AUTHOR_FILE)]
    more = [at(40, "aten.mul.Tensor", "layers.*.a"), at(40, "aten.mul.Tensor", "layers.*.b")]
    assert [line.module_path for line in lines_of(base, [*base, *more])] == ["layers.*"]
    other = [at(40, "aten.mul.Tensor", "layers.*.a"), at(40, "aten.mul.Tensor", "head")]
    assert [line.module_path for line in lines_of(base, [*base, *other])] == [None]
