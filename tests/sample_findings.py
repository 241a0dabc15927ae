"""The sample review with findings and with timelines: what the richer reports show.

Findings: an error on the author's line 41, 405 of 1000 µs (40.5 %), whose fix is predicted to remove 300 µs of ΔFT and
to add 20 µs of device time; a warning in an installed package; a note without a line or a known cost.
Timelines (constants L 2, g 1, graph gap 0.25, s 8 µs): eager, 20 calls of 10 ΔFT, 30 ΔCT … see ``EAGER``.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from sample_review import AUTHOR_FILE, sample_review
from test_timeline import graph, item, kernel, step

from taxbreak_fx.breakdown_timeline import Built, exposed_of
from taxbreak_fx.finding import Finding
from taxbreak_fx.model import Review
from taxbreak_fx.record import SourceLine
from taxbreak_fx.timeline import Floors, Sync, Timeline
from taxbreak_fx.timeline_store import stored

LIBRARY_FILE = "/usr/lib/python3/site-packages/transformers/models/toy/modeling_toy.py"
FLOORS = Floors(latency_us=2.0, gap_us=1.0, graph_gap_us=0.25, sync_us=8.0)
LINE, OTHER = SourceLine(file=AUTHOR_FILE, line=41), SourceLine(file=LIBRARY_FILE, line=7)

EAGER = step(
    *(item(30.0, 5.0, kernel(11.0), ct=10.0, source=LINE) for _ in range(10)),
    item(1.0, action=Sync(), family="host-sync", source=OTHER),
    *(item(30.0, 5.0, kernel(11.0, 9, "copy"), ct=10.0, family="copy", source=OTHER) for _ in range(10)),
    floors=FLOORS,
)
INDUCTOR = step(
    item(54.0, family="around"), *(item(25.0, 5.0, kernel(19.75), ct=18.75) for _ in range(8)), floors=FLOORS
)
REDUCED = step(item(20.0, family="around"), item(0.0, 25.0, graph(17.0, *[15.0] * 11)), floors=FLOORS)
GRAPHED = step(item(0.0, 24.0, graph(45.0, *[8.0] * 20)), floors=FLOORS)
TIMELINES = {"eager": EAGER, "inductor": INDUCTOR, "reduce-overhead": REDUCED, "eager-graph": GRAPHED}


def sample_findings() -> list[Finding]:
    return [
        Finding(
            rule="host-sync", title="Host sync in the step", severity="error", confidence="high", variant="eager",
            source=LINE, module_path="model.layers.*.attention", op="aten.item.default", exposed_us=405.0, share=0.405,
            evidence=["4 calls of aten.item wait 0.3 ms for the device (measured).", "Without them 0.6 ms are left."],
            fix="Keep the value on the device: use torch.where.", saving_us={"ft_us": 300.0, "device_us": -20.0},
            saving_origin="predicted", fingerprint="a1b2c3",
        ),
        Finding(
            rule="hidden-copy", title="A copy that no result needs", severity="warning", confidence="medium",
            variant="inductor", source=OTHER, in_library=True, exposed_us=12.0, share=0.024,
            evidence=["contiguous() copies 2 MiB."], fix="Pass a contiguous tensor.", fingerprint="d4e5f6",
        ),
        Finding(
            rule="graph-skipped", title="CUDA graph skipped", severity="note", confidence="low",
            variant="reduce-overhead", source=None, evidence=["Inductor: cpu device (arg0)."],
            fix="Move the tensor to the device.", fingerprint="070809",
        ),
    ]  # fmt: skip


def with_timelines(review: Review, timelines: dict[str, Timeline]) -> Review:
    variants = []
    for variant in review.variants:
        timeline = timelines.get(variant.name)
        if timeline is not None and variant.t_wall_us is not None:
            shown = exposed_of(Built(timeline, "untraced", []), variant.t_wall_us.median)
            variant = msgspec.structs.replace(variant, timeline=stored(timeline), exposed=shown)
        variants.append(variant)
    return msgspec.structs.replace(review, variants=variants)


def with_findings() -> Review:
    return msgspec.structs.replace(sample_review(), findings=sample_findings())


def full_review() -> Review:
    return with_timelines(with_findings(), TIMELINES)


def on_real_lines(review: Review, file: Path) -> Review:
    """``review`` with ``file`` in place of the author's, which is on no machine."""
    return msgspec.json.decode(
        msgspec.json.encode(review).replace(AUTHOR_FILE.encode(), str(file).encode()), type=Review
    )


if __name__ == "__main__":
    # Renew the golden reports after a wanted change, then read the diff: python tests/sample_findings.py
    from taxbreak_fx.report.markdown import markdown
    from taxbreak_fx.report.text import terminal

    golden = Path(__file__).parent / "golden"
    (golden / "review.txt").write_text(terminal(with_findings()), encoding="utf-8")
    (golden / "review.md").write_text(markdown(with_findings()), encoding="utf-8")
