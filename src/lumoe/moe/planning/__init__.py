"""Which expert has how many bits and lies where, for a budget, and what that will give. numpy only."""
