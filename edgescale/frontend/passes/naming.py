"""Names for what the exporter left without: reports and generated C speak of nodes by name."""

from __future__ import annotations

import onnx_ir as ir


class NameNodes(ir.passes.InPlacePass):
    """Give every node of the main graph a unique, stable name.

    Contract: a node's own name stays, unless an earlier node carries it too (then `name_1`, ...). A node
    without one becomes `<Op>_<i>`, i counting the nodes of that operator from 0 in graph order. Run
    first, so that the numbers are those of the file the user looks at. Touches nothing else.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Name the nodes."""
        modified = False
        own = {node.name for node in model.graph if node.name}
        used: set[str] = set()
        counts: dict[str, int] = {}
        for node in model.graph:
            index = counts.get(node.op_type, 0)
            counts[node.op_type] = index + 1
            wanted = node.name or f"{node.op_type}_{index}"
            candidate, suffix = wanted, 0
            while candidate in used or (candidate in own and candidate != node.name):
                suffix += 1
                candidate = f"{wanted}_{suffix}"
            used.add(candidate)
            if candidate != node.name:
                node.name = candidate
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Every name is there and unique."""
        names = [node.name for node in model.graph]
        if not all(names) or len(set(names)) != len(names):
            raise ir.passes.PostconditionError("node names are empty or double")
