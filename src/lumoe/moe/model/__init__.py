"""The decoder written out: attention, router, experts, with and without recorded graphs."""
