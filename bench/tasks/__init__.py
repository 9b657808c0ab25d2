"""How well images can be edited and filled in, measured on images of coloured shapes."""
