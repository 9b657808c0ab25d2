"""A request for images: its fields, their validation, and their JSON form."""
