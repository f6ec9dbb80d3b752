"""How the cost of an image grows with its size, and what structured linear blocks cost in bits."""
