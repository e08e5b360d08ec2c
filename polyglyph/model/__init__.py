"""The transformer over ids, its cache, sampling and generation. Knows ids and slots, no media."""
