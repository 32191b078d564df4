"""Loading a network: a shipped one or your own `module:factory`, traced, or the file of one traced before.

torch is imported only where a module is traced.
"""

from __future__ import annotations

from collections.abc import Sequence

from lumoe.errors import UserError
from lumoe.photonics.network.layers import Input, Network, Shape, as_inputs, listed, read_network

IMAGE = (3, 224, 224)


def load_network(name: str, inputs: Shape | Sequence[Input] | None = None) -> Network:
    """Return a network: a shipped one by name, the user's own `module:factory`, or one that was traced before.

    Args:
        name: a name of `lumoe.photonics.network.zoo.NETWORKS`, ``package.module:factory`` where ``factory()`` returns
            an `nn.Module` (the current folder is searched too), or a ``.json`` file of `write_network`.
        inputs: of a network with one input its shape without the batch, such as (channels, height, width), or all
            inputs. 3 x 224 x 224 unless given; a traced file has its own.

    Raises:
        UserError: an unknown name, a module that cannot be imported, a factory that does not return a module, a file
            that is not a traced network or was traced for another input.
    """
    given = as_inputs(inputs) if inputs else None
    for one in given or ():
        if min(one.shape) < 1:
            raise UserError(f"the input is {one}, but every side must be at least 1")
    if name.endswith(".json"):
        network = read_network(name)
        if given and network.inputs != given:
            raise UserError(f"{name}: traced for an input of {listed(network.inputs)}, but {listed(given)} is given")
        return network
    # torch and its tracing take seconds to import; a network traced before needs neither.
    from lumoe.photonics.network.trace import trace_network

    return trace_network(name, given or as_inputs(IMAGE))
