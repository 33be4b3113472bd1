"""Put the bodies of ``torch.no_grad()`` and switched-off ``torch.autocast`` blocks in the place of their calls.

torch.export keeps such a block as one operator with a graph of its own. Neither changes what is computed in evaluation.
"""

from __future__ import annotations

import operator

import torch

_higher = torch.ops.higher_order
_BODY = {_higher.wrap_with_set_grad_enabled: 1, _higher.wrap_with_autocast: 4}
_AUTOCAST_ENABLED = 2


def inline_blocks(exported: torch.export.ExportedProgram) -> None:
    """Rewrite the exported graph in place. Autocast that is switched on stays: it is an operator without a rule."""
    module = exported.graph_module
    for node in list(module.graph.nodes):
        place = _BODY.get(node.target) if node.op == "call_function" else None
        if place is None or node.target is _higher.wrap_with_autocast and node.args[_AUTOCAST_ENABLED]:
            continue
        body = getattr(module, node.args[place].target).graph
        inputs = [n for n in body.nodes if n.op == "placeholder"]
        with module.graph.inserting_before(node):
            results = module.graph.graph_copy(body, dict(zip(inputs, node.args[place + 1 :])))
        for user in list(node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(results[user.args[1]])
                module.graph.erase_node(user)
        holder = node.args[place]
        module.graph.erase_node(node)
        if not holder.users:
            module.graph.erase_node(holder)
    module.recompile()
