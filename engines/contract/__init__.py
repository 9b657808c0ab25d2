"""What an engine directory says: manifest, dimensions, tensors, plans, integrity, and how exact its parts must be."""
