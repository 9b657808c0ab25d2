"""The HTTP interfaces of a service. Needs the extra `serve`."""
