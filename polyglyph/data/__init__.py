"""Corpora: sources of documents, shards of ids, and the loader that packs them. Imports nothing."""
