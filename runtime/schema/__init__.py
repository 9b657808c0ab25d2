"""What the Python runtime and the C++ library share as data; see schema.toml."""
