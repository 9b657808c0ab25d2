"""The tokenizer, as one JSON file."""

from ebca.engines.contract.manifest import TokenizerSpec
from ebca.export.stages.context import Context, StageResult

FILE = "tokenizer.json"


def export(context: Context) -> StageResult:
    """Write the tokenizer, if the checkpoint has one."""
    checkpoint = context.checkpoint
    if checkpoint.tokenizer_json is None:
        return StageResult()
    (context.folder / FILE).write_text(checkpoint.tokenizer_json, encoding="utf-8")
    return StageResult(files=(FILE,), sections={"tokenizer": TokenizerSpec(FILE, checkpoint.tokenizer_info)})
