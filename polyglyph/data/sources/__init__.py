"""Where documents come from; one file per source, looked up by name. Imports nothing heavy."""

TABLE = {
    "shapes": "polyglyph.data.sources.shapes:Source",
    "folder": "polyglyph.data.sources.folder:Source",
}
