"""A service over the runtime: jobs that are queued, stored and watched, behind HTTP."""
