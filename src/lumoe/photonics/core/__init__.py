"""The analog arithmetic: products, convolutions and layers through the rings, with their errors."""
