"""Loading a network: a shipped one or your own `module:factory`, traced, or the file of one traced before.

torch is imported only where a module is traced.
"""

from __future__ import annotations

from lumoe.errors import UserError
from lumoe.photonics.network.layers import Network, Shape, read_network, words


def load_network(name: str, input_shape: Shape | None = None) -> Network:
    """Return a network: a shipped one by name, the user's own `module:factory`, or one that was traced before.

    Args:
        name: a name of `lumoe.photonics.network.zoo.NETWORKS`, ``package.module:factory`` where ``factory()`` returns
            an `nn.Module` (the current folder is searched too), or a ``.json`` file of `write_network`.
        input_shape: (channels, height, width); 3 x 224 x 224 unless given.

    Raises:
        UserError: an unknown name, a module that cannot be imported, a factory that does not return a module, a file
            that is not a traced network or was traced for another input.
    """
    shape = input_shape or (3, 224, 224)
    if min(shape) < 1:
        raise UserError(f"the input is {words(shape)}, but every side must be at least 1")
    if name.endswith(".json"):
        network = read_network(name)
        if network.input_shape != shape:
            raise UserError(f"{name}: traced for an input of {words(network.input_shape)}, but {words(shape)} is given")
        return network
    # torch and its tracing take seconds to import; a network traced before needs neither.
    from lumoe.photonics.network.trace import trace_network

    return trace_network(name, shape)
