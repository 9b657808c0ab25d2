"""The stages of an export, one module each. A stage reads a `Context` and returns a `StageResult`."""
