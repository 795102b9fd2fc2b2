"""What a step costs: operations, bytes and messages, for any model, precision, layout and mix of rows.

The only home of these formulas. Nothing here knows a device or a second: ``perf/roofline`` turns costs into time.

::

    ModelShape ─┐
    Formats    ─┼─ step_ops ─ (Op, Op, …)  per device, one pass through all layers
    Layout     ─┤
    Work       ─┘
"""

from tokenmill.perf.costs.collectives import Message
from tokenmill.perf.costs.formats import (
    Format,
    Formats,
    cpu_formats,
    device_formats,
    format_named,
    formats_named,
    own_formats,
    served_formats,
)
from tokenmill.perf.costs.layout import Layout
from tokenmill.perf.costs.ops import Op, step_ops
from tokenmill.perf.costs.storage import (
    kv_bytes_per_token,
    largest_batch_of,
    reserved_bytes,
    state_bytes,
    weight_bytes,
)
from tokenmill.perf.costs.work import Rows, Work

__all__ = [
    "Format",
    "Formats",
    "Layout",
    "Message",
    "Op",
    "Rows",
    "Work",
    "cpu_formats",
    "device_formats",
    "format_named",
    "formats_named",
    "kv_bytes_per_token",
    "largest_batch_of",
    "own_formats",
    "reserved_bytes",
    "served_formats",
    "state_bytes",
    "step_ops",
    "weight_bytes",
]
