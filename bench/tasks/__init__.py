"""How well pictures can be edited and filled in, measured on pictures of coloured shapes."""
